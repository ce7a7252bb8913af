// What is measured. Every scenario starts a server of its own on loopback, in a folder of its own, and answers with one
// line.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "nlohmann/json.hpp"

namespace luthier {

struct BenchOptions {
  std::string program;  // luthierd
  std::string folder;   // for data; on the disk that is to be measured
  int callers = 64;
  absl::Duration time = absl::Seconds(5);
  int agents = 1000;
  int64_t jobs = 1000000;
  int watchers = 10000;
};

using Json = nlohmann::ordered_json;

// Callers that submit one job after the other.
Json BenchSubmit(const BenchOptions& options);
// Jobs from submission to publication over simulated agents.
Json BenchLifecycle(const BenchOptions& options);
// Many watchers of a job that reports progress, one of whom does not read.
Json BenchWatch(const BenchOptions& options);
// Time from start to serving with a full queue, and its memory.
Json BenchRestart(const BenchOptions& options);
// What connected agents cost that only heartbeat.
Json BenchHeartbeats(const BenchOptions& options);
// Submissions into a short queue and into a full one.
Json BenchQueue(const BenchOptions& options);

// Beside every figure: calls a second of the same messages without any work, and jobs a second into the same tables
// without a server, both with `callers` at once.
void AddCeilings(const BenchOptions& options, Json& result);
// The server of the bare gRPC ceiling; runs until its standard input ends.
int ServeBareGrpc();

}  // namespace luthier
