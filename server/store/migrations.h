// Numbered migrations: number N takes a file of user_version N-1 to N. Never change one that was released; add another.
#pragma once

namespace luthier {

inline constexpr const char* kMigrations[] = {
    // 1: jobs and their history, datasets, models. Rows of a job carry its number, so that new ones go to the end of every
    // table: a commit of many new jobs touches few pages. What a restart need not read lies in tables of its own.
    R"sql(
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY, id TEXT NOT NULL, base_model TEXT NOT NULL, datasets TEXT NOT NULL, model TEXT NOT NULL,
  devices INTEGER NOT NULL, create_time INTEGER NOT NULL, state INTEGER NOT NULL, attempt INTEGER NOT NULL,
  lost_attempts INTEGER NOT NULL, node TEXT NOT NULL, held TEXT NOT NULL, not_before INTEGER NOT NULL,
  start_time INTEGER NOT NULL, end_time INTEGER NOT NULL, model_version TEXT NOT NULL, last_event INTEGER NOT NULL,
  last_report INTEGER NOT NULL, report BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_by_id ON jobs (id);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE job_specs (job INTEGER PRIMARY KEY REFERENCES jobs (number), spec BLOB NOT NULL) STRICT;
CREATE TABLE requests (
  id TEXT PRIMARY KEY, body_sha256 TEXT NOT NULL, job INTEGER NOT NULL REFERENCES jobs (number)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  job INTEGER NOT NULL REFERENCES jobs (number), sequence INTEGER NOT NULL, time INTEGER NOT NULL, attempt INTEGER NOT NULL,
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
