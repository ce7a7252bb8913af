// Rows that more than one file of the store reads or writes: that of a job, and those of datasets and base models,
// whose tables are alike.
#pragma once

#include "server/core/job.h"
#include "server/core/state.h"
#include "server/store/connection.h"

namespace luthier {

// Those of attempts come last: before the first one they are not read, for a restart reads a million queued jobs.
inline constexpr char kJobColumns[] =
    "number, id, base_model, datasets, model, devices, nodes, cpu_memory_bytes, gpu_memory_bytes, node_selector, "
    "create_time, state, attempt, end_time, last_event, tenant, service_class, priority, tuning, work_tokens, "
    "estimate, revision, retention, deadline, sweep, max_parallel, "
    "lost_attempts, node, held, others, not_before, start_time, model_version, last_report, report, attempt_start, "
    "preemptions, lost_on, crashed_on, stored_step, stored_bytes, charged";

// A changed job rewrites its row but not the columns that never change, nor their index.
void WriteJob(Connection& connection, const Job& job, bool is_new);
// From the next columns of the row, which are kJobColumns.
Job ReadJob(Query& row);

const char* TableOf(ResourceKind kind);

}  // namespace luthier
