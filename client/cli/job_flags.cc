#include "client/cli/job_flags.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "client/cli/duration_flag.h"
#include "lib/base/status_macros.h"

namespace luthier {
namespace {

// `lora` of `lora.rank`, as the heading of a group in the help.
std::string Group(const std::string& field) {
  const size_t dot = field.find('.');
  return dot == std::string::npos ? "The job" : absl::StrCat("The job: ", field.substr(0, dot));
}

std::string FlagOf(const std::string& field) { return absl::StrCat("--", absl::StrReplaceAll(field, {{"_", "-"}})); }

}  // namespace

const std::vector<JobFlag>& JobFlagList() {
  static const auto* flags = new std::vector<JobFlag>{
      {"base_model", "NAME", "Registered base model (luthier model list)"},
      {"dataset", "NAME", "Dataset with a train part and, if it has them, validation and test parts"},
      {"dataset.train", "NAME[/PART]", "Rows to train on, instead of --dataset"},
      {"dataset.mixture", "LIST", "Several datasets to train on, instead: [{dataset: a, weight: 2}, {dataset: b}]"},
      {"dataset.validation", "NAME[/PART]", "Rows to validate on during training"},
      {"dataset.test", "NAME[/PART]", "Rows held out for base against tuned model"},
      {"task", "TASK", "classification, ner, extraction, qa, tool_calling, chat (default) or text"},
      {"tuning", "KIND",
       "lora (default) or full; the file's lora block, or its training.freeze, gives way to the other kind"},
      {"chat_template", "FILE", "Jinja template in place of the base model's"},
      {"template_date", "YYYY-MM-DD", "What the template's strftime_now says; default: the day of submission"},
      {"lora.rank", "N", "1 to 256; default: auto"},
      {"lora.alpha", "X", "Numerator of the scale alpha / rank; default: auto"},
      {"lora.target_modules", "LIST", "all-linear (default) or names: [q_proj, v_proj, lm_head, embed_tokens]"},
      {"lora.dropout", "P", "0 (default) up to, not including, 1"},
      {"lora.rslora", "BOOL", "Scale by alpha / sqrt(rank); default: false"},
      {"lora.dora", "BOOL", "Train the lengths of the weights' rows too; default: false"},
      {"lora.plus_ratio", "X", "LoRA+: learning rate of B over that of A"},
      {"lora.target_pattern", "REGEX", "Whole names of the targeted layers, instead of --lora.target-modules"},
      {"lora.target_parameters", "LIST",
       "Experts' weights that get adapters: [mlp.experts.gate_up_proj, mlp.experts.down_proj]"},
      {"lora.exclude_modules", "LIST", "Targeted layers that get no adapter"},
      {"lora.exclude_pattern", "REGEX", "Whole names of such layers, instead of --lora.exclude-modules"},
      {"lora.layers", "LIST", "Numbers of the layers that get adapters: [0, 1]; all by default"},
      {"lora.rank_pattern", "MAP", "Other ranks by name: {q_proj: 4}"},
      {"lora.alpha_pattern", "MAP", "Other alphas by name"},
      {"lora.modules_to_save", "LIST", "Modules trained whole beside the adapters: [embed_tokens]"},
      {"lora.start_from", "VERSION", "Go on from the adapter of a model version: MODEL, MODEL@3, MODEL@production"},
      {"training.epochs", "X", "Passes over the training rows; default: auto"},
      {"training.max_steps", "N", "Ends the run before the epochs if smaller; default: none"},
      {"training.learning_rate", "X", "Peak learning rate; default: auto"},
      {"training.schedule", "NAME", "linear (default), cosine or constant"},
      {"training.warmup_ratio", "P", "Part of the steps spent warming up; default: 0.03"},
      {"training.weight_decay", "X", "Decoupled, AdamW; default: 0"},
      {"training.beta1", "P", "AdamW; default: 0.9"},
      {"training.beta2", "P", "AdamW; default: 0.95"},
      {"training.clip_norm", "X", "Largest global norm of the gradients; default: 1"},
      {"training.batch_tokens", "N", "Tokens an optimizer step; default: auto"},
      {"training.micro_batch_tokens", "N",
       "Tokens a forward pass at most: bounds memory, never results; default: auto"},
      {"training.max_length", "N", "Tokens of a row at most; default: auto"},
      {"training.seed", "N", "Of weights, order and dropout; default: 0"},
      {"training.precision", "NAME", "fp32 or bf16; default: auto"},
      {"training.order", "NAME", "shuffled (default), grouped (by length) or file"},
      {"training.loss_on", "NAME", "assistant, completion or all; default: auto"},
      {"training.too_long", "NAME", "Rows longer than max_length: refuse (default), truncate, keep_answer or drop"},
      {"training.activation_checkpointing", "BOOL",
       "Keep only the inputs of layers: less memory, more time; default: auto"},
      {"training.optimizer_in_backward", "BOOL",
       "Move each weight as soon as its gradient is there: less memory, no clipping; default: false"},
      {"training.freeze", "LIST", "Full training: weights that stay: [model.embed_tokens]"},
      {"evaluation.every", "N", "Steps between two evaluations; default: auto"},
      {"evaluation.metric", "NAME", "exact_match, json_equality, field_f1 or loss; default: auto"},
      {"evaluation.max_rows", "N", "Rows generated for scoring at most; default: 200"},
      {"evaluation.max_new_tokens", "N", "Tokens generated a row at most; default: auto"},
      {"evaluation.patience", "N", "Evaluations without a gain that end the run; default: none"},
      {"checkpoint.every", "N", "Steps between two checkpoints; default: auto"},
      {"checkpoint.keep", "N", "Checkpoints kept on the node; default: 2"},
      {"checkpoint.publish", "NAME", "Weights that become the result: best (on validation) or last; default: auto"},
      {"resources.nodes", "N", "Nodes that train together, 1 to 64, which it gets at once or not at all; default: 1"},
      {"resources.devices", "N", "GPUs of each node, or 1 on a CPU node; default: 1"},
      {"resources.node_selector", "MAP", "Labels that each node must have: {gpu: h100}"},
      {"resources.threads", "N", "CPU threads of the trainer; default: auto"},
  };
  return *flags;
}

std::string WithHyphens(std::string argument) {
  const std::string name = argument.substr(0, argument.find('='));
  for (const JobFlag& flag : JobFlagList()) {
    if (name == absl::StrCat("--", flag.field)) return FlagOf(flag.field) + argument.substr(name.size());
  }
  return argument;
}

void AddJobFlags(CLI::App& command, JobFlagValues& values) {
  for (const JobFlag& flag : JobFlagList()) {
    const std::string field = flag.field;
    command
        .add_option_function<std::string>(
            FlagOf(field), [&values, field](const std::string& value) { values.fields.emplace_back(field, value); },
            flag.help)
        ->type_name(flag.value)
        ->group(Group(field));
  }
  command.add_option("--label", values.labels, "Label of your own; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->group("The job");
}

absl::StatusOr<std::vector<std::string>> ApplyJobFlags(const JobFlagValues& values, JobFile& file) {
  std::vector<std::string> gave_way;
  for (const auto& [field, value] : values.fields) {
    if (field != "tuning") continue;
    const std::string other = LeaveOutOtherTuning(file, value);
    if (other.empty()) continue;
    gave_way.push_back(
        absl::StrCat(other, " of ", file.name, " is left out, since it does not go with --tuning ", value));
  }
  for (const auto& [field, value] : values.fields) LUTHIER_RETURN_IF_ERROR(SetField(file, field, value));
  for (const std::string& label : values.labels) LUTHIER_RETURN_IF_ERROR(SetLabel(file, label));
  return gave_way;
}

absl::StatusOr<ChangedSpec> SpecWithFlags(const std::string& name, const JobSpec& before, const JobFlagValues& flags) {
  JobFile file{.name = name, .fields = ToJson(before)};
  file.fields.erase("chat_template");
  ChangedSpec changed;
  LUTHIER_ASSIGN_OR_RETURN(changed.gave_way, ApplyJobFlags(flags, file));
  LUTHIER_ASSIGN_OR_RETURN(changed.spec, ParseJobFile(file));
  if (!file.fields.contains("chat_template")) changed.spec.recipe.chat_template = before.recipe.chat_template;
  return changed;
}

absl::StatusOr<JobFile> ReadJobWithFlags(CommandContext& context, const std::string& path, const JobFlagValues& flags) {
  JobFile file;
  if (!path.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(file, ReadJobFile(path));
  }
  LUTHIER_ASSIGN_OR_RETURN(const std::vector<std::string> gave_way, ApplyJobFlags(flags, file));
  for (const std::string& words : gave_way) context.Say(words);
  return file;
}

void AddSettingFlags(CLI::App& command, SettingFlags& flags) {
  command
      .add_option("--class", flags.service_class,
                  "How urgent: interactive, standard (default) or background; has less urgent ones stop with a "
                  "checkpoint if there is no room")
      ->check(CLI::IsMember({"interactive", "standard", "background"}))
      ->type_name("CLASS");
  command
      .add_option("--priority", flags.priority,
                  "Among the jobs of its tenant and class, -100 to 100 (default: 0); a point is worth an hour of "
                  "waiting")
      ->check(CLI::Range(-100, 100))
      ->type_name("N");
  command
      .add_option(
          "--retention", flags.retention,
          "How long its logs and progress are kept after it is over, such as 30d; default: as the server is set")
      ->type_name("DURATION");
  command
      .add_option("--deadline", flags.deadline,
                  "Cancel it unless it is done by then: a duration from now (6h) or a time (2026-12-01T18:00:00Z)")
      ->type_name("WHEN");
}

absl::Status SetDeadline(const std::string& text, absl::Time now, v1::FineTuningJob& job) {
  absl::Time time;
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, text, &time, &error)) {
    const absl::StatusOr<absl::Duration> wait = ParseDurationFlag("--deadline", text);
    if (!wait.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--deadline: '", text, "' is neither a duration such as 6h nor a time such as 2026-12-01T18:00:00Z"));
    }
    time = now + *wait;
  }
  job.mutable_deadline()->set_seconds(absl::ToUnixSeconds(time));
  return absl::OkStatus();
}

absl::Status SetRetention(const std::string& text, v1::FineTuningJob& job) {
  LUTHIER_ASSIGN_OR_RETURN(const absl::Duration retention, ParseDurationFlag("--retention", text));
  const absl::Duration most = absl::Seconds(315576000000);  // of a message; for whoever writes `inf`
  job.mutable_retention()->set_seconds(absl::ToInt64Seconds(std::min(retention, most)));
  return absl::OkStatus();
}

absl::Status ApplySettingFlags(const SettingFlags& flags, v1::FineTuningJob& job) {
  v1::ServiceClass service_class = v1::SERVICE_CLASS_UNSPECIFIED;
  v1::ServiceClass_Parse("SERVICE_CLASS_" + absl::AsciiStrToUpper(flags.service_class), &service_class);
  job.set_service_class(service_class);
  job.set_priority(flags.priority.value_or(0));
  if (!flags.deadline.empty()) LUTHIER_RETURN_IF_ERROR(SetDeadline(flags.deadline, absl::Now(), job));
  return flags.retention.empty() ? absl::OkStatus() : SetRetention(flags.retention, job);
}

}  // namespace luthier
