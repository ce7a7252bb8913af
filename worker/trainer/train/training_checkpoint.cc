#include "worker/trainer/train/training_checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr char kGeneratorState[] = "generator_state";
constexpr char kUnfinished[] = ".unfinished-step-", kDamaged[] = ".damaged-step-";

// Folders named step-N under the run, newest first. Unfinished ones have another name and are not seen.
std::vector<std::pair<int64_t, fs::path>> ListCheckpoints(const fs::path& folder) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename();
    absl::string_view number = name;
    int64_t step;
    if (absl::ConsumePrefix(&number, "step-") && absl::SimpleAtoi(number, &step)) found.emplace_back(step, entry.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// The oldest checkpoints, and what damaged or unfinished ones left: with a newer one on disk nobody needs them.
void RemoveBeyond(int64_t keep, const fs::path& folder) {
  std::error_code ignored;
  const auto existing = ListCheckpoints(folder);
  for (size_t i = static_cast<size_t>(keep); i < existing.size(); ++i) fs::remove_all(existing[i].second, ignored);
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(kDamaged) || name.starts_with(kUnfinished)) fs::remove_all(entry.path(), ignored);
  }
}

absl::Status WriteTensors(const fs::path& path, const NamedTensors& tensors) {
  std::vector<Tensor> on_cpu;  // keeps what `views` borrows
  std::vector<TensorToWrite> views;
  for (const auto& [name, tensor] : tensors) {
    on_cpu.push_back(tensor.detach().to(at::kCPU).contiguous());
    views.push_back(ToWrite(name, on_cpu.back()));
  }
  return WriteSafetensors(path, views, {});
}

absl::StatusOr<NamedTensors> ReadTensors(const fs::path& path) {
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  NamedTensors tensors;
  for (const auto& [name, view] : file.tensors()) tensors[name] = ToTensor(view, ToScalarType(view.dtype));
  return tensors;
}

// Throws nlohmann's exceptions for a state.json that lacks something; the caller takes it for damaged.
absl::StatusOr<TrainingState> ReadCheckpoint(const fs::path& folder) {
  std::ifstream stream(folder / "state.json");
  const json state_json = json::parse(stream);
  for (const auto& [name, expected] : state_json.at("sha256").items()) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string actual, Sha256OfFile(folder / name));
    if (actual != expected) return absl::DataLossError(absl::StrCat(name, " does not match its SHA-256"));
  }
  TrainingState state;
  LUTHIER_ASSIGN_OR_RETURN(state.weights, ReadTensors(folder / "weights.safetensors"));
  LUTHIER_ASSIGN_OR_RETURN(state.optimizer, ReadTensors(folder / "optimizer.safetensors"));
  state.generator_state = state.optimizer.at(kGeneratorState);
  state.optimizer.erase(kGeneratorState);
  state.step = state_json.at("step");
  state.tokens = state_json.at("tokens");
  state.loss = state_json.at("loss");
  state.seconds = state_json.at("seconds");
  state.spec_hash = state_json.at("spec_hash");
  return state;
}

absl::StatusOr<TrainingState> ReadCheckpointOrSay(const fs::path& folder) {
  try {
    return ReadCheckpoint(folder);
  } catch (const std::exception& error) {
    return absl::DataLossError(error.what());
  }
}

}  // namespace

absl::StatusOr<std::string> WriteCheckpoint(const std::string& run_folder, const TrainingState& state, int64_t keep) {
  const fs::path checkpoints = fs::path(run_folder) / "checkpoints";
  const fs::path folder = checkpoints / absl::StrCat("step-", state.step);
  const fs::path unfinished = checkpoints / absl::StrCat(kUnfinished, state.step);
  std::error_code error;
  fs::remove_all(unfinished, error);
  fs::create_directories(unfinished, error);
  if (error) return absl::ResourceExhaustedError(absl::StrCat(unfinished.string(), ": ", error.message()));

  NamedTensors optimizer = state.optimizer;
  optimizer[kGeneratorState] = state.generator_state;
  LUTHIER_RETURN_IF_ERROR(WriteTensors(unfinished / "weights.safetensors", state.weights));
  LUTHIER_RETURN_IF_ERROR(WriteTensors(unfinished / "optimizer.safetensors", optimizer));
  json hashes;
  for (const char* name : {"weights.safetensors", "optimizer.safetensors"}) {
    LUTHIER_ASSIGN_OR_RETURN(hashes[name], Sha256OfFile(unfinished / name));
  }
  const json state_json = {{"step", state.step},       {"tokens", state.tokens},           {"loss", state.loss},
                           {"seconds", state.seconds}, {"spec_hash", state.spec_hash},
                           {"sha256", hashes}};
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(unfinished / "state.json",
                                           state_json.dump(2, ' ', false, json::error_handler_t::replace) + "\n"));

  fs::remove_all(folder, error);  // the same step, written by the run that this one resumed
  fs::rename(unfinished, folder, error);
  if (error) return absl::DataLossError(absl::StrCat(folder.string(), ": rename: ", error.message()));
  LUTHIER_RETURN_IF_ERROR(SyncFolder(checkpoints));
  RemoveBeyond(keep, checkpoints);
  return folder.string();
}

absl::StatusOr<std::optional<TrainingState>> ReadNewestCheckpoint(const std::string& run_folder, const std::string& spec_hash,
                                                                  const std::function<void(std::string)>& warn) {
  for (const auto& [step, folder] : ListCheckpoints(fs::path(run_folder) / "checkpoints")) {
    absl::StatusOr<TrainingState> state = ReadCheckpointOrSay(folder);
    if (!state.ok()) {
      std::error_code ignored;
      fs::rename(folder, folder.parent_path() / absl::StrCat(kDamaged, step), ignored);
      warn(absl::StrCat(folder.string(), " is damaged (", state.status().message(), "); going back to the checkpoint before"));
      continue;
    }
    if (state->spec_hash != spec_hash) {
      return absl::FailedPreconditionError(absl::StrCat(folder.string(),
          ": belongs to a run with another spec; give another --out, or remove the folder to start anew"));
    }
    return std::optional<TrainingState>(*std::move(state));
  }
  return std::nullopt;
}

}  // namespace luthier
