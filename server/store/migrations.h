// Numbered migrations: number N takes a file of user_version N-1 to N. Never change one that was released; add another.
#pragma once

namespace luthier {

inline constexpr const char* kMigrations[] = {
    // 1: jobs and their history, datasets, models. Specs have a table of their own: a restart reads `jobs` only.
    R"sql(
CREATE TABLE jobs (
  id TEXT PRIMARY KEY, uid TEXT NOT NULL, request_id TEXT, body_sha256 TEXT NOT NULL, base_model TEXT NOT NULL,
  datasets TEXT NOT NULL, devices INTEGER NOT NULL, create_time INTEGER NOT NULL, state INTEGER NOT NULL,
  attempt INTEGER NOT NULL, lost_attempts INTEGER NOT NULL, node TEXT NOT NULL, not_before INTEGER NOT NULL,
  start_time INTEGER NOT NULL, end_time INTEGER NOT NULL, model_version TEXT NOT NULL, last_event INTEGER NOT NULL,
  last_report INTEGER NOT NULL, report BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_by_request ON jobs (request_id) WHERE request_id <> '';
CREATE TABLE job_specs (job TEXT PRIMARY KEY REFERENCES jobs (id), spec BLOB NOT NULL) STRICT;
CREATE TABLE events (
  job TEXT NOT NULL REFERENCES jobs (id), sequence INTEGER NOT NULL, time INTEGER NOT NULL, attempt INTEGER NOT NULL,
  type TEXT NOT NULL, message TEXT NOT NULL, state INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE model_versions (
  model TEXT NOT NULL, version INTEGER NOT NULL, job TEXT NOT NULL UNIQUE REFERENCES jobs (id), attempt INTEGER NOT NULL,
  base_model TEXT NOT NULL, create_time INTEGER NOT NULL, payload BLOB NOT NULL, PRIMARY KEY (model, version)
) STRICT;
CREATE TABLE datasets (id TEXT PRIMARY KEY, create_time INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE base_models (id TEXT PRIMARY KEY, create_time INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
)sql",
};

}  // namespace luthier
