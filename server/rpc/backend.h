// What the handlers work on.
#pragma once

#include <cstdint>
#include <string>

#include "lib/artifact/artifact_store.h"
#include "server/loop/state_loop.h"
#include "server/metrics/server_metrics.h"
#include "server/rpc/access.h"
#include "server/rpc/artifact_errors.h"
#include "server/rpc/housekeeping.h"
#include "server/rpc/planner.h"
#include "server/rpc/task_pool.h"
#include "server/rpc/transfers.h"
#include "server/rpc/watch_hub.h"
#include "server/store/store.h"

namespace luthier {

struct Backend {
  StateLoop& loop;
  Store& store;
  ArtifactStore& artifacts;
  Planner& planner;
  WatchHub& watches;
  TaskPool& tasks;     // for what a gRPC reaction must not do itself
  TaskPool& planning;  // for specs that are new, and datasets that have to be read
  TaskPool& storing;   // for what asks the artifact store, which may be far away
  Housekeeping& housekeeping;
  ServerMetrics& metrics;
  Access& access;
  Transfers& transfers;
  const std::string data_dir;
  int64_t max_dataset_bytes = int64_t{100} << 30;
  ArtifactErrors artifact_errors{};
};

}  // namespace luthier
