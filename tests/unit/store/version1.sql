-- A database as a luthierd with the first migration alone left it: jobs that wait, run, and have succeeded.
PRAGMA foreign_keys = OFF;
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
INSERT INTO base_models VALUES ('base', 1699990000000000, x'01');
INSERT INTO datasets VALUES ('rows', 1699990000000000, x'02');
INSERT INTO jobs VALUES (1, 'done', 'base', 'rows', 'intents', 1, 1699991000000000, 7, 1, 0, 'n1', '', -9223372036854775808,
  1699991001000000, 1699992000000000, 'models/intents/versions/1', 2, 3, x'03');
INSERT INTO jobs VALUES (2, 'running', 'base', 'rows', 'running', 1, 1699993000000000, 3, 1, 0, 'n1', '0', -9223372036854775808,
  1699999940000000, -9223372036854775808, '', 1, 1, x'');
INSERT INTO jobs VALUES (3, 'waiting', 'base', 'rows', 'waiting', 1, 1699994000000000, 1, 0, 0, '', '', -9223372036854775808,
  -9223372036854775808, -9223372036854775808, '', 1, 0, x'');
INSERT INTO job_specs VALUES (1, x'737065632031'), (2, x'737065632032'), (3, x'737065632033');
INSERT INTO requests VALUES ('request-1', 'body-1', 1);
INSERT INTO events VALUES (1, 1, 1699991000000000, 0, 'state', 'queued', 1, x''), (1, 2, 1699992000000000, 1, 'state', 'published', 7, x''),
  (2, 1, 1699993000000000, 0, 'state', 'queued', 1, x''), (3, 1, 1699994000000000, 0, 'state', 'queued', 1, x'');
INSERT INTO model_versions VALUES ('intents', 1, 'done', 1, 'base', 1699992000000000, x'04');
PRAGMA user_version = 1;
