#include "lib/plan/job_spec.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/civil_time.h"
#include "lib/checkpoint/name_pattern.h"

namespace luthier {
namespace {

using nlohmann::json;

// Upper bounds only keep mistakes (a learning rate of 3) and overflow out; real runs lie far inside.
constexpr int64_t kMaxSteps = 100'000'000;
constexpr NumberRange kFraction = {0, 1, true, false, "a number from 0 up to, but not including, 1"};
constexpr NumberRange kLearningRate = {0, 1, false, true, "a number above 0 and at most 1"};
constexpr NumberRange kEpochs = {0, 10'000, false, true, "a number above 0 and at most 10000"};
constexpr NumberRange kAlpha = {0, 65'536, false, true, "a number above 0 and at most 65536"};
constexpr NumberRange kPlusRatio = {1, 1000, true, true, "a number from 1 to 1000"};
constexpr int64_t kMaxLayer = 9999;
constexpr NumberRange kWeightDecay = {0, 10, true, true, "a number from 0 to 10"};
constexpr int64_t kMaxNodes = 64;
constexpr NumberRange kClipNorm = {0, 1e6, false, true, "a number above 0 and at most 1000000"};

// Each is a file to find, to keep here and to read.
constexpr size_t kMaxMixture = 1000;

constexpr size_t kMaxLabels = 16;
constexpr size_t kMaxLabelKey = 64;
constexpr size_t kMaxLabelValue = 256;
constexpr size_t kMaxModelName = 63;

// No published template has a tenth of it.
constexpr size_t kMaxTemplateBytes = 256 << 10;

bool IsDate(const std::string& text) {
  absl::CivilDay day;
  return absl::ParseCivilTime(text, &day) && absl::FormatCivilTime(day) == text;
}

const json& EmptyObject() {
  static const json empty = json::object();
  return empty;
}

// A block of the file; one that is no object is a violation and reads as empty.
const json& Block(const json& file, const char* name, std::vector<std::string>& violations) {
  const auto found = file.find(name);
  if (found == file.end() || found->is_null() || *found == "auto") return EmptyObject();
  if (found->is_object()) return *found;
  violations.push_back(absl::StrCat(name, ": is not a block of fields; write it as `", name, ": {field: value}`"));
  return EmptyObject();
}

// `lora.target_modules`: all-linear, which is what an empty list means, or names.
std::vector<std::string> ParseTargetModules(BlockReader& reader) {
  std::vector<std::string> names;
  const json* targets = reader.Raw("target_modules");
  if (targets == nullptr || *targets == "all-linear") return names;
  constexpr const char* kRemedy = "give all-linear or a list of layer names such as [q_proj, v_proj]";
  if (!targets->is_array() || targets->empty()) {
    reader.Violation("target_modules", absl::StrCat(targets->dump(), " is not a list of names; ", kRemedy));
    return names;
  }
  for (const json& name : *targets) {
    if (name.is_string() && !name.get<std::string>().empty()) {
      names.push_back(name.get<std::string>());
    } else {
      reader.Violation("target_modules", absl::StrCat(name.dump(), " is not a name; ", kRemedy));
    }
  }
  return names;
}

// Fields that exclude each other, and patterns that are none.
void CheckTargets(const LoraSpec& lora, const json& block, BlockReader& reader) {
  if (block.value("target_modules", json()) == "all-linear" && !lora.target_parameters.empty()) {
    reader.Violation("target_modules",
                     "all-linear goes with no lora.target_parameters; give a list of layer names, or leave it out for "
                     "adapters on the parameters alone");
  }
  const auto check = [&](const char* field, const std::string& pattern) {
    if (absl::Status status = CheckPattern(pattern); !status.ok()) reader.Violation(field, status.message());
  };
  check("target_pattern", lora.target_pattern);
  check("exclude_pattern", lora.exclude_pattern);
  for (const auto& [pattern, rank] : lora.rank_pattern) check("rank_pattern", pattern);
  for (const auto& [pattern, alpha] : lora.alpha_pattern) check("alpha_pattern", pattern);
  if (!lora.target_pattern.empty() && (!lora.target_modules.empty() || !lora.layers.empty())) {
    reader.Violation(
        "target_pattern",
        "excludes target_modules and layers; a pattern can name layers itself, as in .*\\.[0-7]\\..*q_proj");
  }
  if (!lora.exclude_pattern.empty() && !lora.exclude_modules.empty()) {
    reader.Violation("exclude_pattern",
                     "excludes exclude_modules; a pattern can name several, as in .*\\.(k_proj|v_proj)");
  }
}

// An adapter that training goes on from has its shape already.
void CheckStartFrom(const LoraSpec& lora, const json& block, BlockReader& reader) {
  if (lora.start_from.empty()) return;
  for (const char* field :
       {"rank", "alpha", "rslora", "dora", "target_modules", "target_pattern", "target_parameters", "exclude_modules",
        "exclude_pattern", "layers", "rank_pattern", "alpha_pattern", "modules_to_save"}) {
    if (block.contains(field) && block[field] != "auto")
      reader.Violation(field, "is that of the adapter in lora.start_from; leave it out");
  }
}

LoraSpec ParseLora(const json& block, std::vector<std::string>& violations) {
  LoraSpec lora;
  BlockReader reader(block, "lora.", violations);
  reader.Integer("rank", lora.rank, 1, kMaxLoraRank);
  reader.Number("alpha", lora.alpha, kAlpha);
  reader.Number("dropout", lora.dropout, kFraction);
  reader.Flag("rslora", lora.rslora);
  reader.Flag("dora", lora.dora);
  reader.Number("plus_ratio", lora.plus_ratio, kPlusRatio);
  reader.Text("target_pattern", lora.target_pattern);
  reader.TextList("target_parameters", lora.target_parameters);
  reader.TextList("exclude_modules", lora.exclude_modules);
  reader.Text("exclude_pattern", lora.exclude_pattern);
  reader.IntegerList("layers", lora.layers, 0, kMaxLayer);
  reader.IntegerMap("rank_pattern", lora.rank_pattern, 1, kMaxLoraRank);
  reader.NumberMap("alpha_pattern", lora.alpha_pattern, kAlpha);
  reader.TextList("modules_to_save", lora.modules_to_save);
  lora.target_modules = ParseTargetModules(reader);
  CheckTargets(lora, block, reader);
  reader.Text("start_from", lora.start_from);
  CheckStartFrom(lora, block, reader);
  reader.Finish();
  return lora;
}

TrainingSpec ParseTraining(const json& block, std::vector<std::string>& violations) {
  TrainingSpec training;
  BlockReader reader(block, "training.", violations);
  reader.Number("epochs", training.epochs, kEpochs);
  reader.Integer("max_steps", training.max_steps, 1, kMaxSteps);
  reader.Number("learning_rate", training.learning_rate, kLearningRate);
  reader.Choice("schedule", training.schedule, {"linear", "cosine", "constant"});
  reader.Number("warmup_ratio", training.warmup_ratio, kFraction);
  reader.Number("weight_decay", training.weight_decay, kWeightDecay);
  reader.Number("beta1", training.beta1, kFraction);
  reader.Number("beta2", training.beta2, kFraction);
  reader.Number("clip_norm", training.clip_norm, kClipNorm);
  reader.Integer("batch_tokens", training.batch_tokens, 1, kMaxTokens);
  reader.Integer("micro_batch_tokens", training.micro_batch_tokens, 1, kMaxTokens);
  reader.Integer("max_length", training.max_length, 2, kMaxTokens);  // one token has no next one to predict
  reader.Integer("seed", training.seed, 0, int64_t{1} << 53);        // what a double, and so JSON, holds exactly
  reader.Choice("precision", training.precision, {"fp32", "bf16"});
  reader.Choice("order", training.order, {"shuffled", "grouped", "file"});
  reader.Choice("loss_on", training.loss_on, {"assistant", "completion", "all"});
  reader.Choice("too_long", training.too_long, {"refuse", "truncate", "keep_answer", "drop"});
  reader.Flag("activation_checkpointing", training.activation_checkpointing);
  reader.Flag("optimizer_in_backward", training.optimizer_in_backward);
  if (training.optimizer_in_backward.value_or(false) && training.clip_norm) {
    reader.Violation("clip_norm",
                     "has a value, but with optimizer_in_backward no gradient is known whole; remove one of the two");
  }
  reader.TextList("freeze", training.freeze);
  for (const std::string& pattern : training.freeze) {
    if (absl::Status status = CheckPattern(pattern); !status.ok()) reader.Violation("freeze", status.message());
  }
  reader.Finish();
  return training;
}

EvaluationSpec ParseEvaluation(const json& block, std::vector<std::string>& violations) {
  EvaluationSpec evaluation;
  BlockReader reader(block, "evaluation.", violations);
  reader.Integer("every", evaluation.every, 1, kMaxSteps);
  reader.Choice("metric", evaluation.metric, {"exact_match", "json_equality", "field_f1", "loss"});
  reader.Integer("max_rows", evaluation.max_rows, 1, kMaxSteps);
  reader.Integer("max_new_tokens", evaluation.max_new_tokens, 1, kMaxTokens);
  reader.Integer("patience", evaluation.patience, 1, 1000);
  reader.Finish();
  return evaluation;
}

CheckpointSpec ParseCheckpoint(const json& block, std::vector<std::string>& violations) {
  CheckpointSpec checkpoint;
  BlockReader reader(block, "checkpoint.", violations);
  reader.Integer("every", checkpoint.every, 1, kMaxSteps);
  reader.Integer("keep", checkpoint.keep, 1, 1000);
  reader.Choice("publish", checkpoint.publish, {"best", "last"});
  reader.Finish();
  return checkpoint;
}

ResourceSpec ParseResources(const json& block, std::vector<std::string>& violations) {
  ResourceSpec resources;
  BlockReader reader(block, "resources.", violations);
  reader.Integer("nodes", resources.nodes, 1, kMaxNodes);
  reader.Integer("devices", resources.devices, 1, 1024);
  reader.Integer("threads", resources.threads, 1, 1024);
  reader.TextMap("node_selector", resources.node_selector);
  for (const std::string& violation : LabelViolations(resources.node_selector)) {
    violations.push_back(absl::StrCat("resources.node_selector: ", violation));
  }
  for (const auto& [key, value] : resources.node_selector) {
    if (absl::StrContains(key + value, ',') || absl::StrContains(key, '='))
      reader.Violation("node_selector", absl::StrCat("'", key, "=", value, "' is no label that a node can have"));
  }
  reader.Finish();
  return resources;
}

std::vector<WeightedDataset> ParseMixture(const json* value, std::vector<std::string>& violations) {
  std::vector<WeightedDataset> mixture;
  if (value == nullptr) return mixture;
  if (!value->is_array()) {
    violations.push_back("dataset.mixture: is no list; give [{dataset: NAME, weight: X}, …]");
    return mixture;
  }
  if (value->size() > kMaxMixture) {
    violations.push_back(absl::StrCat("dataset.mixture: ", value->size(), " datasets are given; give at most ",
                                      kMaxMixture, ", each with the rows of several"));
  }
  for (const json& entry : *value) {
    if (mixture.size() == kMaxMixture) break;
    WeightedDataset& weighted = mixture.emplace_back();
    if (!entry.is_object()) {
      violations.push_back(
          absl::StrCat("dataset.mixture: ", entry.dump(), " is no block; give {dataset: NAME, weight: X}"));
      continue;
    }
    BlockReader reader(entry, "dataset.mixture.", violations);
    std::optional<double> weight;
    reader.Text("dataset", weighted.dataset);
    reader.Number("weight", weight, kMixtureWeight);
    reader.Finish();
    weighted.weight = weight.value_or(1);
    if (weighted.dataset.empty()) reader.Violation("dataset", "is missing; give the name of a dataset, or NAME/PART");
  }
  return mixture;
}

DatasetSelection ParseDataset(BlockReader& file, std::vector<std::string>& violations) {
  DatasetSelection dataset;
  const json* value = file.Raw("dataset");
  if (value == nullptr) {
    file.Violation("dataset", "is missing; give the name of a dataset, or {train: …, validation: …}");
  } else if (value->is_string() && !value->get<std::string>().empty()) {
    dataset.name = value->get<std::string>();
  } else if (value->is_object()) {
    BlockReader reader(*value, "dataset.", violations);
    reader.Text("train", dataset.train);
    dataset.mixture = ParseMixture(reader.Raw("mixture"), violations);
    reader.Text("validation", dataset.validation);
    reader.Text("test", dataset.test);
    reader.Finish();
    if (dataset.train.empty() && dataset.mixture.empty()) {
      reader.Violation("train",
                       "is missing; give the dataset to train on: a block stands in place of `dataset: NAME`, "
                       "so each part that is wanted has to be named in it");
    }
    if (!dataset.train.empty() && !dataset.mixture.empty()) {
      reader.Violation("mixture", "excludes dataset.train; put that one into the mixture too");
    }
  } else {
    file.Violation("dataset", "is neither a name nor a block; give a name, or {train: …, validation: …}");
  }
  return dataset;
}

// A line break or a terminal's command in a label would be one in every list that shows it.
bool HasControlCharacter(absl::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); });
}

std::map<std::string, std::string> ParseLabels(const json& block, std::vector<std::string>& violations) {
  std::map<std::string, std::string> labels;
  for (const auto& [key, value] : block.items()) {
    if (value.is_string()) {
      labels[key] = value.get<std::string>();
    } else {
      violations.push_back(absl::StrCat("labels.", key, ": is not text; put it in quotes"));
    }
  }
  for (std::string& violation : LabelViolations(labels)) violations.push_back(std::move(violation));
  return labels;
}

void CheckModelName(const std::string& name, std::vector<std::string>& violations) {
  const auto allowed = [](char c) { return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '.'; };
  const bool fits =
      name.size() <= kMaxModelName && absl::ascii_islower(name[0]) && std::all_of(name.begin(), name.end(), allowed);
  if (fits) return;
  violations.push_back(absl::StrCat("output_model: '", name.substr(0, 80), "' is no name; give 1 to ", kMaxModelName,
                                    " characters a-z, 0-9, '-', '.', a letter first"));
}

template <typename T>
void Put(json& block, const char* field, const std::optional<T>& value) {
  if (value) block[field] = *value;
}

template <typename Container>
void PutFilled(json& block, const char* field, const Container& values) {
  if (!values.empty()) block[field] = values;
}

void PutBlock(json& out, const char* name, json block) {
  if (!block.empty()) out[name] = std::move(block);
}

json LoraJson(const LoraSpec& lora) {
  json block = json::object();
  Put(block, "rank", lora.rank);
  Put(block, "alpha", lora.alpha);
  PutFilled(block, "target_modules", lora.target_modules);
  Put(block, "dropout", lora.dropout);
  Put(block, "rslora", lora.rslora);
  Put(block, "dora", lora.dora);
  Put(block, "plus_ratio", lora.plus_ratio);
  PutFilled(block, "target_pattern", lora.target_pattern);
  PutFilled(block, "target_parameters", lora.target_parameters);
  PutFilled(block, "exclude_modules", lora.exclude_modules);
  PutFilled(block, "exclude_pattern", lora.exclude_pattern);
  PutFilled(block, "layers", lora.layers);
  PutFilled(block, "rank_pattern", lora.rank_pattern);
  PutFilled(block, "alpha_pattern", lora.alpha_pattern);
  PutFilled(block, "modules_to_save", lora.modules_to_save);
  PutFilled(block, "start_from", lora.start_from);
  return block;
}

json TrainingJson(const TrainingSpec& training) {
  json block = json::object();
  Put(block, "epochs", training.epochs);
  Put(block, "max_steps", training.max_steps);
  Put(block, "learning_rate", training.learning_rate);
  Put(block, "schedule", training.schedule);
  Put(block, "warmup_ratio", training.warmup_ratio);
  Put(block, "weight_decay", training.weight_decay);
  Put(block, "beta1", training.beta1);
  Put(block, "beta2", training.beta2);
  Put(block, "clip_norm", training.clip_norm);
  Put(block, "batch_tokens", training.batch_tokens);
  Put(block, "micro_batch_tokens", training.micro_batch_tokens);
  Put(block, "max_length", training.max_length);
  Put(block, "seed", training.seed);
  Put(block, "precision", training.precision);
  Put(block, "order", training.order);
  Put(block, "loss_on", training.loss_on);
  Put(block, "too_long", training.too_long);
  Put(block, "activation_checkpointing", training.activation_checkpointing);
  Put(block, "optimizer_in_backward", training.optimizer_in_backward);
  PutFilled(block, "freeze", training.freeze);
  return block;
}

json EvaluationJson(const EvaluationSpec& evaluation) {
  json block = json::object();
  Put(block, "every", evaluation.every);
  Put(block, "metric", evaluation.metric);
  Put(block, "max_rows", evaluation.max_rows);
  Put(block, "max_new_tokens", evaluation.max_new_tokens);
  Put(block, "patience", evaluation.patience);
  return block;
}

json CheckpointJson(const CheckpointSpec& checkpoint) {
  json block = json::object();
  Put(block, "every", checkpoint.every);
  Put(block, "keep", checkpoint.keep);
  Put(block, "publish", checkpoint.publish);
  return block;
}

json ResourcesJson(const ResourceSpec& resources) {
  json block = json::object();
  Put(block, "nodes", resources.nodes);
  Put(block, "devices", resources.devices);
  Put(block, "threads", resources.threads);
  PutFilled(block, "node_selector", resources.node_selector);
  return block;
}

}  // namespace

std::vector<std::string> RecipeFields() {
  return {"task",     "tuning",     "chat_template", "template_date", "lora",
          "training", "evaluation", "checkpoint",    "resources"};
}

Recipe ParseRecipe(const json& json, std::vector<std::string>& violations) {
  Recipe recipe;
  BlockReader reader(json, "", violations);
  reader.Choice("task", recipe.task, {"classification", "ner", "extraction", "qa", "tool_calling", "chat", "text"});
  reader.Choice("tuning", recipe.tuning, {"lora", "full"});
  reader.Text("chat_template", recipe.chat_template);
  if (recipe.chat_template.size() > kMaxTemplateBytes) {
    reader.Violation("chat_template",
                     absl::StrCat("has ", recipe.chat_template.size(), " bytes; give at most ", kMaxTemplateBytes));
  }
  reader.Text("template_date", recipe.template_date);
  if (!recipe.template_date.empty() && !IsDate(recipe.template_date)) {
    reader.Violation("template_date",
                     absl::StrCat("'", recipe.template_date.substr(0, 80), "' is no date; give YYYY-MM-DD"));
  }
  recipe.lora = ParseLora(Block(json, "lora", violations), violations);
  recipe.training = ParseTraining(Block(json, "training", violations), violations);
  recipe.evaluation = ParseEvaluation(Block(json, "evaluation", violations), violations);
  recipe.checkpoint = ParseCheckpoint(Block(json, "checkpoint", violations), violations);
  recipe.resources = ParseResources(Block(json, "resources", violations), violations);
  if (recipe.tuning == "full" && !LoraJson(recipe.lora).empty()) {
    violations.push_back("lora: has values, but tuning is full; remove the block, or give tuning: lora");
  }
  if (recipe.tuning == "lora" && !recipe.training.freeze.empty()) {
    violations.push_back(
        "training.freeze: has values, but tuning is lora, which freezes the whole base; remove it, or give tuning: "
        "full");
  }
  return recipe;
}

std::vector<std::string> LabelViolations(const std::map<std::string, std::string>& labels) {
  std::vector<std::string> violations;
  if (labels.size() > kMaxLabels) {
    violations.push_back(absl::StrCat("labels: ", labels.size(), " labels; give at most ", kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    if (key.empty() || key.size() > kMaxLabelKey) {
      violations.push_back(absl::StrCat("labels: a key of ", key.size(), " bytes; give 1 to ", kMaxLabelKey));
    } else if (HasControlCharacter(key)) {
      violations.push_back(
          absl::StrCat("labels: the key '", absl::CHexEscape(key), "' has a control character; remove it"));
    } else if (HasControlCharacter(value)) {
      violations.push_back(absl::StrCat("labels.", key, ": '", absl::CHexEscape(value.substr(0, kMaxLabelKey)),
                                        "' has a control character; remove it"));
    } else if (value.size() > kMaxLabelValue) {
      violations.push_back(absl::StrCat("labels.", key, ": ", value.size(), " bytes; give at most ", kMaxLabelValue));
    }
  }
  return violations;
}

absl::StatusOr<JobSpec> ParseJobSpec(const json& json) {
  if (!json.is_object()) return absl::InvalidArgumentError("a job file is one block of fields, base_model first");
  std::vector<std::string> violations;
  JobSpec spec;
  BlockReader reader(json, "", violations);
  reader.Text("base_model", spec.base_model);
  if (spec.base_model.empty()) reader.Violation("base_model", "is missing; give the name of a registered base model");
  spec.dataset = ParseDataset(reader, violations);
  spec.recipe = ParseRecipe(json, violations);
  reader.Text("output_model", spec.output_model);
  if (!spec.output_model.empty()) CheckModelName(spec.output_model, violations);
  reader.Ignore("labels");
  spec.labels = ParseLabels(Block(json, "labels", violations), violations);
  const std::vector<std::string> recipe_fields = RecipeFields();
  for (const std::string& field : recipe_fields) reader.Ignore(field.c_str());
  reader.Finish();
  if (!violations.empty()) return absl::InvalidArgumentError(absl::StrJoin(violations, "\n"));
  return spec;
}

std::string LeaveOutOtherTuning(json& file, const std::string& tuning) {
  if (tuning == "full") return file.erase("lora") > 0 ? "lora" : "";
  const auto training = file.find("training");
  if (tuning != "lora" || training == file.end() || !training->is_object()) return "";
  return training->erase("freeze") > 0 ? "training.freeze" : "";
}

json ToJson(const Recipe& recipe) {
  json out = {{"task", recipe.task}, {"tuning", recipe.tuning}};
  PutFilled(out, "chat_template", recipe.chat_template);
  PutFilled(out, "template_date", recipe.template_date);
  if (recipe.tuning == "lora") PutBlock(out, "lora", LoraJson(recipe.lora));
  PutBlock(out, "training", TrainingJson(recipe.training));
  PutBlock(out, "evaluation", EvaluationJson(recipe.evaluation));
  PutBlock(out, "checkpoint", CheckpointJson(recipe.checkpoint));
  PutBlock(out, "resources", ResourcesJson(recipe.resources));
  return out;
}

json ToJson(const JobSpec& spec) {
  json out = ToJson(spec.recipe);
  out["base_model"] = spec.base_model;
  if (!spec.dataset.name.empty()) {
    out["dataset"] = spec.dataset.name;
  } else {
    out["dataset"] = json::object();
    PutFilled(out["dataset"], "train", spec.dataset.train);
    for (const WeightedDataset& weighted : spec.dataset.mixture) {
      out["dataset"]["mixture"].push_back({{"dataset", weighted.dataset}, {"weight", weighted.weight}});
    }
    PutFilled(out["dataset"], "validation", spec.dataset.validation);
    PutFilled(out["dataset"], "test", spec.dataset.test);
  }
  PutFilled(out, "output_model", spec.output_model);
  PutFilled(out, "labels", spec.labels);
  return out;
}

}  // namespace luthier
