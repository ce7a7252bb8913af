#include "lib/plan/trainer_spec.h"

#include <filesystem>
#include <map>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/json_file.h"
#include "lib/plan/block_reader.h"

namespace luthier {
namespace {

using nlohmann::json;

std::string LastPart(const std::string& path) { return std::filesystem::path(path).filename().string(); }

TrainFile ParseTrainFile(const json& value, std::vector<std::string>& violations) {
  TrainFile file;
  if (value.is_object()) {
    BlockReader reader(value, "dataset.train.", violations);
    std::optional<double> weight;
    reader.Text("path", file.path);
    reader.Number("weight", weight, kMixtureWeight);
    reader.Text("name", file.name);
    reader.Finish();
    file.weight = weight.value_or(1);
  } else if (value.is_string()) {
    file.path = value.get<std::string>();
  }
  if (file.path.empty()) {
    violations.push_back(absl::StrCat("dataset.train: ", value.dump(),
                                      " has no path; give the path of a JSONL file, or {path: PATH, weight: X}"));
  }
  return file;
}

// `train` is one file or a list of them, a file its path or a block.
std::vector<TrainFile> ParseTrainFiles(const json* value, std::vector<std::string>& violations) {
  std::vector<TrainFile> files;
  const json list = value == nullptr ? json::array() : value->is_array() ? *value : json::array({*value});
  for (const json& file : list) files.push_back(ParseTrainFile(file, violations));
  // A short name where it tells the files apart.
  std::map<std::string, int> last_parts;
  for (const TrainFile& file : files) ++last_parts[LastPart(file.path)];
  for (TrainFile& file : files) {
    const std::string last_part = LastPart(file.path);
    if (file.name.empty()) file.name = last_parts[last_part] == 1 ? last_part : file.path;
  }
  if (list.empty()) violations.push_back("dataset.train: is missing; give the path of a JSONL file, or a list of them");
  return files;
}

void ParseDataset(const json* block, TrainerSpec& spec, std::vector<std::string>& violations) {
  if (block == nullptr || !block->is_object()) {
    violations.push_back("dataset: is missing or no block; give {train: PATH, validation: PATH, test: PATH}");
    return;
  }
  BlockReader reader(*block, "dataset.", violations);
  spec.train = ParseTrainFiles(reader.Raw("train"), violations);
  reader.Text("validation", spec.validation);
  reader.Text("test", spec.test);
  reader.Finish();
}

// An export reads a base and an adapter. Whatever else a spec can say would have no effect.
void CheckExport(const json& object, const TrainerSpec& spec, BlockReader& reader,
                 std::vector<std::string>& violations) {
  if (spec.start_adapter.empty())
    reader.Violation("start_adapter", "is missing; give the folder of the adapter to export");
  std::vector<std::string> fields = RecipeFields();
  fields.insert(fields.end(), {"dataset", "init"});
  for (const std::string& field : fields) {
    reader.Ignore(field.c_str());
    if (field != "resources" && object.contains(field)) reader.Violation(field.c_str(), kNoEffectOnExport);
  }
  RefuseSeveralRanks(spec.recipe.resources, violations);
}

}  // namespace

void RefuseSeveralRanks(const ResourceSpec& resources, std::vector<std::string>& violations) {
  const auto refuse = [&](absl::string_view field, const std::optional<int64_t>& value) {
    if (value.value_or(1) == 1) return;
    violations.push_back(
        absl::StrCat("resources.", field, ": ", *value, " is more than an export uses; leave it out, or give 1"));
  };
  refuse("nodes", resources.nodes);
  refuse("devices", resources.devices);
}

absl::StatusOr<TrainerSpec> ParseTrainerSpec(const json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("a trainer spec is one JSON object");
  std::vector<std::string> violations;
  TrainerSpec spec;
  BlockReader reader(json, "", violations);
  std::optional<int64_t> protocol;
  reader.Integer("protocol", protocol, kTrainerProtocol, kTrainerProtocol);
  if (!json.contains("protocol")) reader.Violation("protocol", absl::StrCat("is missing; give ", kTrainerProtocol));
  reader.Text("attempt", spec.attempt);
  reader.Text("base_model", spec.base_model);
  if (spec.base_model.empty()) reader.Violation("base_model", "is missing; give a folder in Hugging Face format");
  spec.base_model_name = spec.base_model;
  reader.Text("base_model_name", spec.base_model_name);
  reader.Choice("init", spec.init, {"pretrained", "random"});
  reader.Text("start_adapter", spec.start_adapter);
  reader.Choice("export", spec.export_as, {"merged", "gguf"});
  spec.recipe = ParseRecipe(json, violations);
  if (spec.exports()) {
    CheckExport(json, spec, reader, violations);
  } else {
    ParseDataset(reader.Raw("dataset"), spec, violations);
  }
  if (!spec.recipe.lora.start_from.empty()) {
    reader.Violation("lora.start_from",
                     "names a version that a server holds; give the adapter's folder as start_adapter");
  }
  if (!spec.start_adapter.empty() && spec.recipe.tuning == "full") {
    reader.Violation("start_adapter", "goes with tuning: lora; for full training give the merged model as base_model");
  }
  if (!spec.start_adapter.empty() && spec.init == "random") {
    reader.Violation("start_adapter",
                     "goes on from what was trained beside the base's weights, but init is random; "
                     "remove start_adapter, or give init: pretrained");
  }
  const std::vector<std::string> recipe_fields = RecipeFields();
  for (const std::string& field : recipe_fields) reader.Ignore(field.c_str());
  reader.Finish();
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return spec;
}

absl::StatusOr<TrainerSpec> ReadTrainerSpec(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const json parsed, ReadJsonFile(path, "give the path of a trainer spec"));
  absl::StatusOr<TrainerSpec> spec = ParseTrainerSpec(parsed);
  if (!spec.ok()) return absl::InvalidArgumentError(absl::StrCat(path, ":\n", spec.status().message()));
  return spec;
}

json ToJson(const TrainerSpec& spec) {
  json out = ToJson(spec.recipe);
  if (spec.exports()) {
    const json resources = out.value("resources", json::object());
    out = {{"export", spec.export_as}, {"resources", resources}};
  }
  out["protocol"] = spec.protocol;
  out["attempt"] = spec.attempt;
  out["base_model"] = spec.base_model;
  out["base_model_name"] = spec.base_model_name;
  if (!spec.start_adapter.empty()) out["start_adapter"] = spec.start_adapter;
  if (spec.exports()) return out;
  out["init"] = spec.init;
  out["dataset"]["train"] = json::array();
  for (const TrainFile& file : spec.train) {
    out["dataset"]["train"].push_back({{"path", file.path}, {"weight", file.weight}, {"name", file.name}});
  }
  if (!spec.validation.empty()) out["dataset"]["validation"] = spec.validation;
  if (!spec.test.empty()) out["dataset"]["test"] = spec.test;
  return out;
}

}  // namespace luthier
