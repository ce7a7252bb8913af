#include "worker/agent/trainer_start.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/manifest.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Inputs that are folders of files; the others are one file of rows.
bool IsFolder(const v1::AttemptInput& input) { return input.role() == "base_model" || input.role() == "start_adapter"; }

absl::Status LinkFiles(const v1::AttemptInput& input, const InputCache::Lease& lease, const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(folder));
  for (const v1::ModelFile& file : input.files()) {
    LUTHIER_RETURN_IF_ERROR(CheckRelativePath(file.path()));
    const fs::path link = folder / file.path();
    LUTHIER_RETURN_IF_ERROR(CreateFolders(link.parent_path()));
    fs::create_symlink(lease.Path(file.sha256()), link, error);
    if (error) return FileError(link, "link", error.value());
  }
  return absl::OkStatus();
}

}  // namespace

bool TrainsWholeModel(const v1::StartAttempt& order) {
  const json spec = json::parse(order.trainer_spec_json(), nullptr, /*allow_exceptions=*/false);
  if (!spec.is_object()) return false;
  const auto tuning = spec.find("tuning");
  return tuning != spec.end() && *tuning == "full";
}

std::vector<InputCache::Blob> InputBlobs(const v1::StartAttempt& order) {
  std::vector<InputCache::Blob> blobs;
  for (const v1::AttemptInput& input : order.inputs()) {
    for (const v1::ModelFile& file : input.files()) blobs.push_back({file.sha256(), file.size_bytes()});
  }
  return blobs;
}

absl::Status LinkInputs(const v1::StartAttempt& order, const InputCache::Lease& inputs, const std::string& folder) {
  for (const v1::AttemptInput& input : order.inputs()) {
    if (IsFolder(input)) LUTHIER_RETURN_IF_ERROR(LinkFiles(input, inputs, absl::StrCat(folder, "/", input.role())));
  }
  return absl::OkStatus();
}

absl::StatusOr<json> LocalSpec(const v1::StartAttempt& order, const AttemptPath& attempt,
                               const InputCache::Lease& inputs, const std::string& folder) {
  json spec = json::parse(order.trainer_spec_json(), nullptr, /*allow_exceptions=*/false);
  if (!spec.is_object()) return absl::InternalError("the server's trainer spec is no JSON object");
  spec["attempt"] = attempt.text();
  for (const v1::AttemptInput& input : order.inputs()) {
    if (IsFolder(input)) spec[input.role()] = absl::StrCat(folder, "/", input.role());
    if (IsFolder(input) || input.files_size() == 0) continue;
    const std::string& path = inputs.Path(input.files(0).sha256());
    json& part = spec["dataset"][input.role()];
    if (input.weight() > 0) {  // of `train`; 0 is that of a server that knows no mixtures
      part.push_back({{"path", path}, {"weight", input.weight()}, {"name", input.name()}});
    } else {
      part = path;
    }
  }
  return spec;
}

std::vector<std::string> TrainerCommand(const std::string& trainer, const v1::StartAttempt& order,
                                        const std::string& spec_file, const std::string& run_folder) {
  std::vector<std::string> words = {trainer, "run", "--spec", spec_file, "--out", run_folder, "--die-with-parent"};
  if (!order.has_gang()) return words;
  const v1::Gang& gang = order.gang();
  words.insert(words.end(), {"--node-rank", absl::StrCat(gang.node_rank()), "--meeting", gang.meeting(), "--address",
                             gang.address()});
  return words;
}

std::vector<std::string> TrainerEnvironment(const v1::StartAttempt& order, const v1::Inventory& machine) {
  const int shares = std::max(1, machine.shares());
  // As NVML counts. None on a CPU node: a GPU that the server did not give must not be taken.
  std::vector<int> gpus;
  for (const int device : order.gpus()) {
    if (machine.gpus_size() > 0) gpus.push_back(device / shares);
  }
  std::vector<std::string> environment = {"CUDA_DEVICE_ORDER=PCI_BUS_ID",
                                          absl::StrCat("CUDA_VISIBLE_DEVICES=", absl::StrJoin(gpus, ","))};
  if (shares == 1) return environment;
  environment.push_back(absl::StrCat("LUTHIER_DEVICE_SHARES=", shares));
  environment.push_back(absl::StrCat("OMP_NUM_THREADS=", std::max(1, machine.cpus() / shares)));
  // What one attempt takes too much of a GPU ends that one, and none of the others.
  environment.push_back(absl::StrFormat("PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:%.3f", 1.0 / shares));
  return environment;
}

}  // namespace luthier
