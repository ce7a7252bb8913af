#include "worker/trainer/train/training_checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/artifact/durable_file.h"
#include "lib/artifact/hash.h"
#include "lib/base/status_macros.h"
#include "lib/base/trainer_words.h"
#include "lib/checkpoint/safetensors.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Files of a checkpoint.
constexpr char kWeights[] = "weights.safetensors", kOptimizer[] = "optimizer.safetensors", kRows[] = "rows.safetensors";
// Names in them.
constexpr char kGeneratorState[] = "generator_state";
constexpr char kHash[] = "hash", kPrevious[] = "previous";
// In front of the names of folders that do not count.
constexpr char kUnfinished[] = ".unfinished-", kDamaged[] = ".damaged-";

// Folders named `prefix`N, newest first. Unfinished ones have another name and are not seen.
std::vector<std::pair<int64_t, fs::path>> ListFolders(const fs::path& parent, const char* prefix) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(parent, ignored)) {
    const std::string name = entry.path().filename();
    absl::string_view number = name;
    int64_t step;
    if (absl::ConsumePrefix(&number, prefix) && absl::SimpleAtoi(number, &step)) found.emplace_back(step, entry.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// All but the newest `keep` checkpoints, and what damaged or unfinished folders left: nobody needs them any more.
void RemoveBeyond(int64_t keep, const fs::path& parent) {
  std::error_code ignored;
  const auto existing = ListFolders(parent, kStepFolder);
  for (size_t i = static_cast<size_t>(keep); i < existing.size(); ++i) fs::remove_all(existing[i].second, ignored);
  for (const auto& entry : fs::directory_iterator(parent, ignored)) {
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

// Of everything in a state.json but the hash itself.
std::string HashOf(json state) {
  state.erase(kHash);
  return Sha256Hex(state.dump(-1, ' ', false, json::error_handler_t::replace));
}

// Names a complete folder. Of the same step, written by the run that this one resumed, there may be one already, and no
// other: so the two change places, and the old one goes only when the new one is on disk.
absl::Status GiveName(const fs::path& unfinished, const fs::path& folder) {
  const bool replaces = renameat2(AT_FDCWD, unfinished.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0;
  std::error_code error;
  if (!replaces) {
    if (errno == EINVAL || errno == ENOSYS) fs::remove_all(folder, error);  // a disk that cannot do that
    fs::rename(unfinished, folder, error);
    if (error) return FileError(folder.string(), "rename", error.value());
  }
  LUTHIER_RETURN_IF_ERROR(SyncFolder(folder.parent_path()));
  if (replaces) fs::remove_all(unfinished, error);
  return absl::OkStatus();
}

// Writes files and state.json with their hashes into a folder that gets its name when all is on disk.
absl::Status WriteFolder(const fs::path& folder, const std::map<std::string, NamedTensors>& files, json state) {
  const fs::path unfinished = folder.parent_path() / (kUnfinished + folder.filename().string());
  std::error_code ignored;
  fs::remove_all(unfinished, ignored);
  LUTHIER_RETURN_IF_ERROR(CreateFolders(unfinished));
  for (const auto& [name, tensors] : files) {
    LUTHIER_RETURN_IF_ERROR(WriteTensors(unfinished / name, tensors));
    LUTHIER_ASSIGN_OR_RETURN(state["sha256"][name], Sha256OfFile(unfinished / name));
  }
  state[kHash] = HashOf(state);
  LUTHIER_RETURN_IF_ERROR(
      WriteFileDurably(unfinished / kStateFile, state.dump(2, ' ', false, json::error_handler_t::replace) + "\n"));
  return GiveName(unfinished, folder);
}

// Whatever is wrong with the folder is a status: what is damaged may be its JSON too. That there is no memory to read
// it with (LibTorch's exception, or the C++ library's) says nothing about it, and goes on.
template <typename Read>
auto ReadOrSay(const fs::path& folder, const Read& read) -> decltype(read(folder)) {
  try {
    return read(folder);
  } catch (const json::exception& error) {
    return absl::DataLossError(error.what());
  } catch (const std::out_of_range& error) {  // a tensor that is not there
    return absl::DataLossError(error.what());
  }
}

// state.json of a folder, if it is as it was written; the other files are not looked at. Throws nlohmann's exceptions
// if it lacks something.
absl::StatusOr<json> ReadState(const fs::path& folder) {
  std::ifstream stream(folder / kStateFile);
  json state = json::parse(stream);
  if (state.at(kHash) != HashOf(state)) return absl::DataLossError("state.json does not match its own hash");
  return state;
}

// The same if the files have the hashes that it says.
absl::StatusOr<json> VerifiedState(const fs::path& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const json state, ReadState(folder));
  for (const auto& [name, expected] : state.at("sha256").items()) {
    LUTHIER_ASSIGN_OR_RETURN(const std::string actual, Sha256OfFile(folder / name));
    if (actual != expected) return absl::DataLossError(absl::StrCat(name, " does not match its SHA-256"));
  }
  return state;
}

// What state.json says of the checkpoint that one of this step follows: the newest one before it that is intact.
json PreviousOf(const fs::path& parent, int64_t step) {
  for (const auto& [other, folder] : ListFolders(parent, kStepFolder)) {
    if (other >= step) continue;
    const absl::StatusOr<json> state = ReadOrSay(folder, ReadState);
    if (state.ok()) return {{"step", other}, {kHash, state->at(kHash)}};
  }
  return nullptr;
}

// Errors: DATA_LOSS if the checkpoint that this one follows is there, and is another one than it was.
absl::Status CheckChain(const fs::path& folder, const json& previous) {
  if (previous.is_null()) return absl::OkStatus();
  const fs::path before = folder.parent_path() / absl::StrCat(kStepFolder, previous.at("step").get<int64_t>());
  const absl::StatusOr<json> state = ReadOrSay(before, ReadState);
  if (!state.ok() || state->at(kHash) == previous.at(kHash)) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("it does not follow ", before.filename().string()));
}

absl::StatusOr<TrainingState> ReadCheckpoint(const fs::path& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const json state_json, VerifiedState(folder));
  LUTHIER_RETURN_IF_ERROR(CheckChain(folder, state_json.at(kPrevious)));
  TrainingState state;
  LUTHIER_ASSIGN_OR_RETURN(state.weights, ReadTensors(folder / kWeights));
  LUTHIER_ASSIGN_OR_RETURN(state.optimizer, ReadTensors(folder / kOptimizer));
  state.generator_states = state.optimizer.at(kGeneratorState);
  state.optimizer.erase(kGeneratorState);
  state.step = state_json.at("step");
  if (folder.filename() != absl::StrCat(kStepFolder, state.step)) {
    return absl::DataLossError(absl::StrCat("it holds step ", state.step));
  }
  state.tokens = state_json.at("tokens");
  state.loss = state_json.at("loss");
  state.seconds = state_json.at("seconds");
  state.spec_hash = state_json.at("spec_hash");
  state.evaluated_step = state_json.at("evaluated_step");
  state.selection = Selection::FromJson(state_json.at("selection"));
  LUTHIER_ASSIGN_OR_RETURN(state.row_losses, ReadTensors(folder / kRows));
  return state;
}

// Removes best weights but those of `step` and those that a checkpoint names: a run that goes on from it may have to
// publish them.
void RemoveOtherBestWeights(int64_t step, const fs::path& parent) {
  std::set<int64_t> needed = {step};
  for (const auto& [unused, folder] : ListFolders(parent, kStepFolder)) {
    const absl::StatusOr<int64_t> named = ReadOrSay(folder, [](const fs::path& of) -> absl::StatusOr<int64_t> {
      LUTHIER_ASSIGN_OR_RETURN(const json state, ReadState(of));
      return Selection::FromJson(state.at("selection")).best_step();
    });
    if (named.ok()) needed.insert(*named);
  }
  for (const auto& [other, folder] : ListFolders(parent, kBestFolder)) {
    std::error_code ignored;
    if (!needed.contains(other)) fs::remove_all(folder, ignored);
  }
}

fs::path CheckpointsOf(const std::string& run_folder) { return fs::path(run_folder) / kCheckpointsFolder; }

fs::path BestWeightsOf(const std::string& run_folder, int64_t step) {
  return CheckpointsOf(run_folder) / absl::StrCat(kBestFolder, step);
}

}  // namespace

std::string CheckpointFolder(const std::string& run_folder, int64_t step) {
  return CheckpointsOf(run_folder) / absl::StrCat(kStepFolder, step);
}

std::optional<MachineValues> MachineValuesOfNewest(const std::string& run_folder) {
  for (const auto& [step, folder] : ListFolders(CheckpointsOf(run_folder), kStepFolder)) {
    const absl::StatusOr<json> state = ReadOrSay(folder, ReadState);
    if (!state.ok()) continue;
    const json machine = state->value("machine", json::object());
    if (!machine.contains("micro_batch_tokens") || !machine.contains("precision")) return std::nullopt;
    return MachineValues{machine["micro_batch_tokens"].get<int64_t>(), machine["precision"].get<std::string>()};
  }
  return std::nullopt;
}

absl::StatusOr<std::string> WriteCheckpoint(const std::string& run_folder, const TrainingState& state, int64_t keep) {
  const fs::path folder = CheckpointFolder(run_folder, state.step);
  NamedTensors optimizer = state.optimizer;
  optimizer[kGeneratorState] = state.generator_states;
  LUTHIER_RETURN_IF_ERROR(WriteFolder(
      folder, {{kWeights, state.weights}, {kOptimizer, optimizer}, {kRows, state.row_losses}},
      {{"step", state.step},
       {kPrevious, PreviousOf(folder.parent_path(), state.step)},
       {"tokens", state.tokens},
       {"loss", state.loss},
       {"seconds", state.seconds},
       {"spec_hash", state.spec_hash},
       {"machine", {{"micro_batch_tokens", state.machine.micro_batch_tokens}, {"precision", state.machine.precision}}},
       {"evaluated_step", state.evaluated_step},
       {"selection", state.selection.ToJson()}}));
  RemoveBeyond(keep, folder.parent_path());
  RemoveOtherBestWeights(state.selection.best_step(), folder.parent_path());
  return folder.string();
}

absl::Status WriteBestWeights(const std::string& run_folder, int64_t step, const NamedTensors& weights) {
  const fs::path folder = BestWeightsOf(run_folder, step);
  LUTHIER_RETURN_IF_ERROR(WriteFolder(folder, {{kWeights, weights}}, {{"step", step}}));
  RemoveOtherBestWeights(step, folder.parent_path());
  return absl::OkStatus();
}

bool HasBestWeights(const std::string& run_folder, int64_t step) {
  std::error_code ignored;
  return fs::exists(BestWeightsOf(run_folder, step), ignored);
}

absl::StatusOr<NamedTensors> ReadBestWeights(const std::string& run_folder, int64_t step) {
  const auto read = [](const fs::path& folder) -> absl::StatusOr<NamedTensors> {
    std::error_code ignored;
    if (!fs::exists(folder, ignored)) return absl::NotFoundError(absl::StrCat(folder.string(), " is gone"));
    LUTHIER_RETURN_IF_ERROR(VerifiedState(folder).status());
    return ReadTensors(folder / kWeights);
  };
  return ReadOrSay(BestWeightsOf(run_folder, step), read);
}

absl::StatusOr<std::optional<TrainingState>> ReadNewestCheckpoint(const std::string& run_folder,
                                                                  const std::string& spec_hash,
                                                                  const std::function<void(std::string)>& warn) {
  const fs::path parent = CheckpointsOf(run_folder);
  std::error_code error;
  fs::directory_iterator(parent, error);
  // Not as if there were none: the run would begin anew without a word.
  if (error && error != std::errc::no_such_file_or_directory) return FileError(parent.string(), "list", error.value());
  for (const auto& [step, folder] : ListFolders(parent, kStepFolder)) {
    absl::StatusOr<TrainingState> state = ReadOrSay(folder, ReadCheckpoint);
    if (absl::IsUnavailable(state.status())) return state.status();  // no memory to read it with: it may be intact
    if (!state.ok()) {
      std::error_code ignored;
      fs::rename(folder, folder.parent_path() / (kDamaged + folder.filename().string()), ignored);
      warn(absl::StrCat(folder.string(), " is damaged (", state.status().message(),
                        "); going back to the checkpoint before"));
      continue;
    }
    if (state->spec_hash != spec_hash) {
      return absl::FailedPreconditionError(absl::StrCat(
          folder.string(),
          ": belongs to a run with another spec, base model or rows; give another --out, or remove the folder to "
          "start anew"));
    }
    return std::optional<TrainingState>(*std::move(state));
  }
  return std::nullopt;
}

}  // namespace luthier
