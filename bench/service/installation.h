// A server with a base model and a dataset, and what clients need to load it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/service/latencies.h"
#include "bench/service/scenarios.h"
#include "luthier/v1/jobs.grpc.pb.h"
#include "luthier/v1/worker.grpc.pb.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"

namespace luthier {

class Installation {
 public:
  explicit Installation(const BenchOptions& options);

  // Starts the server (again) on the same folder.
  void Start();
  // Stops it as a power cut would.
  void Kill() { server_.reset(); }
  Luthierd& server() { return *server_; }
  std::string data_dir() const { return data_dir_; }

  // A connection of its own.
  std::shared_ptr<grpc::Channel> Connect();
  v1::CreateFineTuningJobRequest Request() const { return request_; }

  // What the server has used of a processor since it started, in seconds.

 private:
  const std::string program_;
  const std::string data_dir_;
  v1::CreateFineTuningJobRequest request_;
  std::unique_ptr<Luthierd> server_;
};

// Ends the program with a message: a figure that was measured of something else is worse than none.
void Require(bool holds, const std::string& what);
void Require(const grpc::Status& status, const std::string& what);

// Ids that were acknowledged, and how long that took.
struct Submitted {
  Latencies latencies;
  std::vector<std::string> ids;
  double seconds = 0;

  double PerSecond() const { return static_cast<double>(ids.size()) / seconds; }
  void Add(const Submitted& later) {
    latencies.Merge(later.latencies);
    ids.insert(ids.end(), later.ids.begin(), later.ids.end());
    seconds += later.seconds;
  }
};
// Connections for so many callers.
std::vector<std::shared_ptr<grpc::Channel>> ConnectTo(const std::string& address, int callers);
// So many call CreateFineTuningJob at once for `time`, each again as soon as its last call is answered.
Submitted CallForAWhile(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                        const v1::CreateFineTuningJobRequest& request, int callers, absl::Duration time);
Submitted SubmitForAWhile(Installation& installation, int callers, absl::Duration time);

// Of `ids`, those that are not on record; the server must not run.
int64_t CountLost(const std::string& data_dir, const std::vector<std::string>& ids);

}  // namespace luthier
