// Numbered migrations: number N takes a file of user_version N-1 to N. Never change one that was released; add another.
#pragma once

namespace luthier {

inline constexpr const char* kMigrations[] = {
    // 1: jobs and their history, datasets, models. Rows of a job carry its number, so that new ones go to the end of
    // every
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
    // 2: what users change of a job, tenants, drained nodes, names of versions.
    R"sql(
ALTER TABLE jobs ADD COLUMN tenant TEXT NOT NULL DEFAULT 'default';
ALTER TABLE jobs ADD COLUMN service_class INTEGER NOT NULL DEFAULT 2;
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN estimate INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN attempt_start INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET attempt_start = start_time;  -- else a running job would cost its tenant all time since 1970
ALTER TABLE jobs ADD COLUMN preemptions INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN lost_here INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
ALTER TABLE job_specs ADD COLUMN labels BLOB;  -- null: those of the spec
CREATE TABLE tenants (
  id TEXT PRIMARY KEY, weight REAL NOT NULL, max_devices INTEGER NOT NULL, max_queued_jobs INTEGER NOT NULL,
  usage REAL NOT NULL, usage_time INTEGER NOT NULL
) STRICT;
CREATE TABLE drained_nodes (id TEXT PRIMARY KEY) STRICT;
CREATE TABLE model_aliases (
  model TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (model, name),
  FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
) STRICT;
)sql",
    // 3: restorations from a backup.
    R"sql(
CREATE TABLE epochs (number INTEGER PRIMARY KEY, start INTEGER NOT NULL) STRICT;
)sql",
    // 4: tokens.
    R"sql(
CREATE TABLE tokens (
  id TEXT PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, role INTEGER NOT NULL, tenant TEXT NOT NULL, create_time INTEGER NOT NULL,
  expire_time INTEGER NOT NULL, revoke_time INTEGER NOT NULL
) STRICT;
)sql",
    // 5: sweeps, whose jobs have the numbers from first_job on.
    R"sql(
CREATE TABLE sweeps (
  id TEXT PRIMARY KEY, tenant TEXT NOT NULL, first_job INTEGER NOT NULL UNIQUE REFERENCES jobs (number), jobs INTEGER NOT NULL,
  create_time INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
)sql",
    // 6: how long events are kept. The index holds jobs that are over and have not been looked at.
    R"sql(
ALTER TABLE jobs ADD COLUMN retention INTEGER;  -- null: the server's
ALTER TABLE jobs ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;
CREATE INDEX jobs_to_expire ON jobs (end_time) WHERE end_time > 0 AND expired = 0;
)sql",
    // 7: what a job asks of nodes, deadlines, and versions that were deleted: their rows stay, so that no number is
    // given again.
    R"sql(
ALTER TABLE jobs ADD COLUMN cpu_memory_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN gpu_memory_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN node_selector TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN deadline INTEGER;  -- null: none
ALTER TABLE model_versions ADD COLUMN deleted INTEGER NOT NULL DEFAULT 0;
)sql",
    // 8: nodes on which a job's trainer died, separated by commas.
    R"sql(
ALTER TABLE jobs ADD COLUMN crashed_on TEXT NOT NULL DEFAULT '';
)sql",
    // 9: the newest stored checkpoint of each job that is not over.
    R"sql(
ALTER TABLE jobs ADD COLUMN stored_step INTEGER NOT NULL DEFAULT 0;
CREATE TABLE checkpoints (
  job INTEGER PRIMARY KEY REFERENCES jobs (number), attempt INTEGER NOT NULL, step INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
)sql",
    // 10: how many jobs of a sweep run at a time.
    R"sql(
ALTER TABLE jobs ADD COLUMN sweep INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN max_parallel INTEGER NOT NULL DEFAULT 0;
)sql",
    // 11: tokens for one node.
    R"sql(
ALTER TABLE tokens ADD COLUMN node TEXT NOT NULL DEFAULT '';
)sql",
    // 12: what the jobs of one plan share of their specs, which made a page of the log of each.
    R"sql(
CREATE TABLE plans (plan_number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, bytes BLOB NOT NULL) STRICT;
ALTER TABLE job_specs ADD COLUMN plan INTEGER REFERENCES plans (plan_number);  -- null: all of it is in `spec`
)sql",
    // 13: whose a version is: else whoever looks at many of them looks at the job of each.
    R"sql(
ALTER TABLE model_versions ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
UPDATE model_versions SET tenant = (SELECT jobs.tenant FROM jobs WHERE jobs.id = model_versions.job);
)sql",
    // 14: nodes in quarantine, and jobs whose attempts died there, separated by commas.
    R"sql(
CREATE TABLE quarantined_nodes (id TEXT PRIMARY KEY, jobs TEXT NOT NULL, end_time INTEGER NOT NULL) STRICT;
)sql",
    // 15: what is guaranteed to tenants, and what they store. The sums stand beside what they are of, so that a start
    // reads
    // no list of files. What was stored before counts for nothing.
    R"sql(
ALTER TABLE tenants ADD COLUMN guaranteed_devices INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN max_storage_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN storage_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE datasets ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE datasets ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE base_models ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE base_models ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE model_versions ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN stored_bytes INTEGER NOT NULL DEFAULT 0;
)sql",
    // 16: nodes that a job asks for, and those of its current attempt beside the leading one: "n2:0,1;n3:0".
    R"sql(
ALTER TABLE jobs ADD COLUMN nodes INTEGER NOT NULL DEFAULT 1;
ALTER TABLE jobs ADD COLUMN others TEXT NOT NULL DEFAULT '';
)sql",
    // 17: each node at which attempts of a job were lost, as often as they were, separated by commas. Before, only how
    // often at the last one.
    R"sql(
ALTER TABLE jobs ADD COLUMN lost_on TEXT NOT NULL DEFAULT '';
UPDATE jobs SET lost_on = CASE lost_here WHEN 1 THEN node ELSE node || ',' || node END WHERE lost_here > 0;
ALTER TABLE jobs DROP COLUMN lost_here;
)sql",
    // 18: what a job has to do, how fast jobs like it train, and what was charged for an attempt: so far what was
    // expected when the job was submitted, or an hour.
    R"sql(
ALTER TABLE jobs ADD COLUMN tuning INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN work_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN charged INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET charged = CASE WHEN estimate > 0 THEN estimate ELSE 3600000000 END WHERE state IN (2, 3, 5, 6, 10, 13);
CREATE TABLE speeds (
  base_model TEXT NOT NULL, tuning INTEGER NOT NULL, nodes INTEGER NOT NULL, devices INTEGER NOT NULL,
  tokens_per_second REAL NOT NULL, PRIMARY KEY (base_model, tuning, nodes, devices)
) STRICT, WITHOUT ROWID;
)sql",
};

}  // namespace luthier
