// What a user asks for: the job file, as plain structs. An absent value is `auto`: lib/plan/resolve.h chooses it.
// The fields, their names and their blocks are those of the job file (docs/trainer-protocol.md, proto FineTuningSpec).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/plan/block_reader.h"
#include "nlohmann/json.hpp"

namespace luthier {

inline constexpr int64_t kMaxLoraRank = 256;
inline constexpr int64_t kMaxTokens = int64_t{1} << 24;  // of a row, of a step, of an answer

// LoRA hyperparameters (arXiv:2106.09685).
struct LoraSpec {
  std::optional<int64_t> rank;  // 1 to kMaxLoraRank
  std::optional<double> alpha;  // numerator of the scale alpha / rank, above 0
  // Which linear layers get an adapter: names (or ends of names), or one regular expression for whole names; neither:
  // all except the head, or none where target_parameters are given. The embedding counts as one where it is named. Then
  // without those that are excluded.
  std::vector<std::string> target_modules;
  std::string target_pattern;
  std::vector<std::string> target_parameters;  // names, or ends of names, of experts' weights that get adapters
  std::vector<std::string> exclude_modules;
  std::string exclude_pattern;
  std::vector<int64_t> layers;  // numbers of the layers whose modules get adapters; empty: all
  // Other ranks and alphas for layers whose names end so (regular expressions).
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  std::optional<double> dropout;  // [0, 1)
  std::optional<bool> rslora;     // scale alpha / sqrt(rank), arXiv:2312.03732
  std::optional<bool> dora;       // lengths of the weights' rows are trained too, arXiv:2402.09353
  // LoRA+: learning rate of B over that of A, arXiv:2402.12354; 1 or more. As with PEFT, an adapter on the embedding
  // then learns at 1e-6.
  std::optional<double> plus_ratio;
  std::vector<std::string> modules_to_save;  // modules that are trained whole beside the adapters
  std::string start_from;  // model version whose adapter training goes on from; empty: a fresh adapter
};

// The training run.
struct TrainingSpec {
  std::optional<double> epochs;               // passes over the training rows, above 0
  std::optional<int64_t> max_steps;           // ends the run before `epochs` if smaller; never chosen
  std::optional<double> learning_rate;        // peak, above 0
  std::optional<std::string> schedule;        // linear, cosine, constant
  std::optional<double> warmup_ratio;         // part of all steps, [0, 1)
  std::optional<double> weight_decay;         // decoupled, AdamW
  std::optional<double> beta1;                // AdamW, [0, 1)
  std::optional<double> beta2;                // AdamW, [0, 1)
  std::optional<double> clip_norm;            // global norm of the gradients, above 0
  std::optional<int64_t> batch_tokens;        // tokens an optimizer step
  std::optional<int64_t> micro_batch_tokens;  // tokens a forward pass at most; bounds memory, never results
  std::optional<int64_t> max_length;          // tokens; longer rows are treated as `too_long` says
  std::optional<int64_t> seed;                // 0 or more
  std::optional<std::string> precision;       // fp32, bf16
  std::optional<std::string> order;           // shuffled, grouped, file
  std::optional<std::string> loss_on;         // assistant, completion, all
  std::optional<std::string> too_long;        // refuse, truncate, keep_answer, drop
  // Keep only the inputs of layers, and compute the rest again: less memory, more time.
  std::optional<bool> activation_checkpointing;
  // Move each weight as soon as its gradient is there: less memory, no clipping.
  std::optional<bool> optimizer_in_backward;
  // Full training: weights that stay, as names or beginnings of names (regular expressions).
  std::vector<std::string> freeze;
};

// When and how the model is evaluated.
struct EvaluationSpec {
  std::optional<int64_t> every;           // optimizer steps
  std::optional<std::string> metric;      // exact_match, json_equality, field_f1, loss
  std::optional<int64_t> max_rows;        // rows generated for scoring at most
  std::optional<int64_t> max_new_tokens;  // tokens generated a row at most
  std::optional<int64_t> patience;        // evaluations in a row without a gain that end the run; never chosen
};

// When checkpoints are written and how many stay.
struct CheckpointSpec {
  std::optional<int64_t> every;        // optimizer steps
  std::optional<int64_t> keep;         // newest first, 1 or more
  std::optional<std::string> publish;  // which weights become the result: best (on the validation part), last
};

// What the job needs of its nodes.
struct ResourceSpec {
  std::optional<int64_t> nodes;    // 1 to 64; all of them or none
  std::optional<int64_t> devices;  // of each node
  std::optional<int64_t> threads;
  std::map<std::string, std::string> node_selector;  // labels that each node must have
};

// How to train: everything in a job file that does not say which model, which data or whose job.
struct Recipe {
  std::string task = "chat";    // classification, ner, extraction, qa, tool_calling, chat, text
  std::string tuning = "lora";  // lora, full
  std::string chat_template;    // Jinja, in place of the base model's; in files also the path of one
  std::string template_date;    // YYYY-MM-DD that the template's strftime_now says
  LoraSpec lora;                // empty for full training
  TrainingSpec training;
  EvaluationSpec evaluation;
  CheckpointSpec checkpoint;
  ResourceSpec resources;
};

// One dataset of several that are trained on together. Its rows come up `weight` times an epoch on average.
struct WeightedDataset {
  std::string dataset;  // or `dataset/part`
  double weight = 1;
};

// One dataset with parts (`name`), or one dataset (or `dataset/part`) for each part, of which `train` may be a mixture.
struct DatasetSelection {
  std::string name;
  std::string train;
  std::vector<WeightedDataset> mixture;
  std::string validation;
  std::string test;
};

// A job file.
struct JobSpec {
  std::string base_model;
  DatasetSelection dataset;
  Recipe recipe;
  std::string output_model;                   // name under which the result is published; empty: the job's id
  std::map<std::string, std::string> labels;  // at most 16; keys up to 64, values up to 256 characters
};

// Reads a job file that was YAML or JSON. Errors: INVALID_ARGUMENT with one line for every violation, each with the
// field's path, the value and the remedy: "lora.rank: 0 is out of range; give a whole number from 1 to 256, or auto".
absl::StatusOr<JobSpec> ParseJobSpec(const nlohmann::json& json);

// A weight of rows in a mixture.
inline constexpr NumberRange kMixtureWeight = {0, 1000, false, true, "a number above 0 and at most 1000"};

// What is wrong with labels; empty if nothing.
std::vector<std::string> LabelViolations(const std::map<std::string, std::string>& labels);

// The job file again; absent values stay absent. ParseJobSpec(ToJson(s)) equals s.
nlohmann::json ToJson(const JobSpec& spec);

// Takes out of a job file what goes with the other kind of tuning only, and is refused beside this one: its `lora` for
// `full`, its `training.freeze` for `lora`. Returns the path of the field; empty if the file has none.
std::string LeaveOutOtherTuning(nlohmann::json& file, const std::string& tuning);

// The blocks of a recipe as fields of one object.
nlohmann::json ToJson(const Recipe& recipe);

// Reads `task`, `tuning` and the blocks out of `json` and appends every violation; other fields of `json` are not
// looked at.
Recipe ParseRecipe(const nlohmann::json& json, std::vector<std::string>& violations);

// Names of the fields that ParseRecipe reads.
std::vector<std::string> RecipeFields();

}  // namespace luthier
