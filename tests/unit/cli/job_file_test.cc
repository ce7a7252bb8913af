// Job files and flags to a job.
#include "client/cli/job_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cli/job_flags.h"
#include "client/cli/label_flag.h"
#include "lib/base/descriptor.h"
#include "lib/plan/resolve.h"
#include "lib/wire/job_spec_wire.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// The job file of the issue that asked for it.
constexpr char kWholeFile[] = R"(base_model: luthier-tiny
dataset: intents                # has train and validation parts
task: classification
tuning: lora
lora: {rank: auto, alpha: auto, target_modules: all-linear, dropout: 0}
training: {epochs: auto, learning_rate: auto, batch_tokens: auto, max_length: auto, seed: 1, precision: auto}
evaluation: {every: auto, metric: exact_match}
checkpoint: {every: auto, keep: 2}
resources: {devices: 1}
labels: {team: support}
)";

class JobFileTest : public testing::Test {
 protected:
  absl::StatusOr<JobFile> Read(const std::string& text) {
    const std::string path = folder_.path() + "/job.yaml";
    WriteText(path, text);
    return ReadJobFile(path);
  }
  std::string Message(const std::string& text) {
    const auto file = Read(text);
    return std::string(file.ok() ? ParseJobFile(*file).status().message() : file.status().message());
  }
  TempFolder folder_;
};

TEST_F(JobFileTest, ReadsTheWholeFileOfTheManual) {
  const auto spec = ParseJobFile(*Read(kWholeFile));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->base_model, "luthier-tiny");
  EXPECT_EQ(spec->recipe.task, "classification");
  EXPECT_EQ(spec->recipe.lora.rank, std::nullopt);
  EXPECT_EQ(spec->recipe.training.seed, 1);
  EXPECT_EQ(spec->recipe.checkpoint.keep, 2);
  EXPECT_EQ(spec->labels.at("team"), "support");
}

TEST_F(JobFileTest, ReadsTheSameAsJson) {
  const auto spec = ParseJobFile(*Read(R"({"base_model": "b", "dataset": {"train": "d"}, "lora": {"rank": 8}})"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.lora.rank, 8);
  EXPECT_EQ(spec->dataset.train, "d");
}

TEST_F(JobFileTest, NamesLineFieldAndWhatWasMeantOfUnknownFields) {
  EXPECT_THAT(Message("base_model: b\ndataset: d\nlora:\n  rnk: 8\ntrainin: {epochs: 1}\n"),
              AllOf(HasSubstr("job.yaml:4: lora.rnk: unknown field; did you mean 'rank'?"),
                    HasSubstr("job.yaml:5: trainin: unknown field; did you mean 'training'?")));
}

TEST_F(JobFileTest, NamesLineFieldValueAndRemedyOfEveryValueOutOfRange) {
  EXPECT_THAT(Message("base_model: b\ndataset: d\nlora: {rank: 0}\ntraining:\n  learning_rate: 3\n  epochs: -1\n"),
              AllOf(HasSubstr("job.yaml:3: lora.rank: 0 is out of range; give a whole number from 1 to 256"),
                    HasSubstr("job.yaml:5: training.learning_rate: 3 is out of range"),
                    HasSubstr("job.yaml:6: training.epochs: -1 is out of range")));
}

TEST_F(JobFileTest, SaysWhatAFileThatIsNoJobFileShouldHold) {
  EXPECT_THAT(Message("just text"), HasSubstr("base_model: NAME"));
  EXPECT_THAT(Message(""), HasSubstr("base_model: NAME"));
  EXPECT_THAT(Message("a: [1\n"), HasSubstr("job.yaml:"));
  EXPECT_THAT(Message(R"({"base_model": )" + std::string(200'000, '[') + std::string(200'000, ']') + "}"),
              HasSubstr("job.yaml: is nested too deeply"));
  EXPECT_THAT(std::string(ReadJobFile(folder_.path() + "/none.yaml").status().message()), HasSubstr("none.yaml"));
}

// `-f /dev/zero` has no end: whoever reads on ends without memory.
TEST_F(JobFileTest, OneThatIsTooLargeIsNotReadToItsEnd) {
  const std::string endless(3 << 20, 'x');
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  Descriptor read_end(ends[0]), write_end(ends[1]);
  const auto before_pipe = signal(SIGPIPE, SIG_IGN);
  ssize_t taken = 0;
  std::thread writer([&] { taken = write(write_end.get(), endless.data(), endless.size()); });
  const std::string pipe = absl::StrCat("/dev/fd/", read_end.get());
  EXPECT_THAT(std::string(ReadJobFile(pipe).status().message()), HasSubstr(pipe + ": is larger than 1048576 bytes"));
  read_end.Close();
  writer.join();
  signal(SIGPIPE, before_pipe);
  EXPECT_LT(taken, 2 << 20);

  std::istringstream input(endless);
  std::streambuf* const before = std::cin.rdbuf(input.rdbuf());
  const absl::Status refused = ReadJobFile("-").status();
  std::cin.rdbuf(before);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("standard input: is larger than 1048576 bytes"));
  EXPECT_GT(input.rdbuf()->in_avail(), 1 << 20) << "the rest is left";
}

TEST_F(JobFileTest, FlagsWinOverTheFileAndUseTheSameWords) {
  JobFile file = *Read(kWholeFile);
  const JobFlagValues flags = {.fields = {{"lora.rank", "32"},
                                          {"lora.target_modules", "[q_proj, v_proj]"},
                                          {"training.learning_rate", "2e-4"},
                                          {"training.seed", "auto"},
                                          {"dataset.train", "other"}},
                               .labels = {"team=sales", "run=a=b"}};
  ASSERT_TRUE(ApplyJobFlags(flags, file).ok());
  const auto spec = ParseJobFile(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.lora.rank, 32);
  EXPECT_EQ(spec->recipe.lora.target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(spec->recipe.training.learning_rate, 2e-4);
  EXPECT_EQ(spec->recipe.training.seed, std::nullopt);
  EXPECT_EQ(spec->dataset.train, "other");
  EXPECT_EQ(spec->labels, (std::map<std::string, std::string>{{"team", "sales"}, {"run", "a=b"}}));
}

TEST_F(JobFileTest, WhatTheFileSaysOfTheOtherKindOfTuningGivesWayToTheFlag) {
  JobFile file = *Read(kWholeFile);
  auto gave_way = ApplyJobFlags({.fields = {{"tuning", "full"}}}, file);
  ASSERT_TRUE(gave_way.ok()) << gave_way.status();
  EXPECT_THAT(*gave_way, ElementsAre(HasSubstr("job.yaml is left out, since it does not go with --tuning full")));
  auto spec = ParseJobFile(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.tuning, "full");

  file = *Read("base_model: b\ndataset: d\ntuning: full\ntraining: {freeze: [lm_head], seed: 3}\n");
  gave_way = ApplyJobFlags({.fields = {{"tuning", "lora"}}}, file);
  ASSERT_TRUE(gave_way.ok()) << gave_way.status();
  EXPECT_THAT(*gave_way, ElementsAre(HasSubstr("training.freeze of ")));
  spec = ParseJobFile(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe.training.seed, 3);

  EXPECT_THAT(*ApplyJobFlags({.fields = {{"tuning", "lora"}}}, file), IsEmpty())
      << "there is nothing more to leave out";
}

TEST_F(JobFileTest, FlagsThatContradictOneAnotherAreRefusedWhateverTheFileSays) {
  JobFile file = *Read(kWholeFile);
  ASSERT_TRUE(ApplyJobFlags({.fields = {{"lora.rank", "8"}, {"tuning", "full"}}}, file).ok());
  EXPECT_EQ(ParseJobFile(file).status().message(),
            "lora: has values, but tuning is full; remove the block, or give tuning: lora");
}

TEST_F(JobFileTest, AFlagThatIsOutOfRangeIsNamedWithoutALineOfTheFile) {
  JobFile file = *Read("base_model: b\ndataset: d\nlora: {rank: 8}\n");
  ASSERT_TRUE(SetField(file, "lora.rank", "0").ok());
  EXPECT_THAT(std::string(ParseJobFile(file).status().message()),
              AllOf(HasSubstr("lora.rank: 0"), Not(HasSubstr("job.yaml:"))));
}

// A template is a file beside the job file, or text in it; the server gets its text.
TEST_F(JobFileTest, ATemplateComesAsTextOrFromItsFile) {
  const std::string path = folder_.path() + "/own.jinja";
  WriteText(path, "{{ messages[0].content }}\n");
  JobFile file;
  file.fields = {{"base_model", "b"}, {"dataset", "d"}};
  ASSERT_TRUE(SetField(file, "chat_template", path).ok());
  EXPECT_EQ(ParseJobFile(file)->recipe.chat_template, "{{ messages[0].content }}\n");
  file.fields["chat_template"] = "{{ 'text' }}";
  EXPECT_EQ(ParseJobFile(file)->recipe.chat_template, "{{ 'text' }}");
  file.fields["chat_template"] = folder_.path() + "/none.jinja";
  EXPECT_THAT(std::string(ParseJobFile(file).status().message()), HasSubstr("chat_template: cannot open"));
  file.fields["chat_template"] = "{" + std::string(300'000, ' ');
  EXPECT_THAT(std::string(ParseJobFile(file).status().message()), HasSubstr("chat_template: has 300001 bytes"));
}

TEST_F(JobFileTest, AClonesTemplateIsThatOfTheOtherJobAndNeverReadHereUnlessAFlagNamesIt) {
  const std::string path = folder_.path() + "/secret.jinja";
  WriteText(path, "{{ messages }}");
  JobSpec before = *ParseJobFile(*Read(kWholeFile));
  before.recipe.chat_template = path;
  const auto changed = SpecWithFlags("jobs/a", before, {.fields = {{"lora.rank", "4"}}});
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->spec.recipe.chat_template, path);
  EXPECT_EQ(changed->spec.recipe.lora.rank, 4);
  const auto given = SpecWithFlags("jobs/a", before, {.fields = {{"chat_template", path}}});
  ASSERT_TRUE(given.ok()) << given.status();
  EXPECT_EQ(given->spec.recipe.chat_template, "{{ messages }}");
}

TEST_F(JobFileTest, ALabelWithoutAKeyIsRefused) {
  JobFile file;
  v1::FineTuningJob job;
  for (const char* wrong : {"team", "=x", ""}) {
    EXPECT_EQ(SetLabel(file, wrong).code(), absl::StatusCode::kInvalidArgument) << wrong;
    EXPECT_EQ(SetLabels({"zone=a", wrong}, job).code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
  ASSERT_TRUE(SetLabels({"team=", "formula=a=b"}, job).ok());
  EXPECT_EQ(job.labels().at("team"), "");
  EXPECT_EQ(job.labels().at("formula"), "a=b");
}

// Fields of a job file, with those of its blocks.
void AddFields(const nlohmann::json& job, std::set<std::string>& out) {
  for (const auto& [name, value] : job.items()) {
    if (!value.is_object()) {
      out.insert(name);
      continue;
    }
    for (const auto& [field, ignored] : value.items()) out.insert(name + "." + field);
  }
}

using FieldValues = std::vector<std::pair<std::string, std::string>>;

absl::StatusOr<JobSpec> SpecOf(const FieldValues& values) {
  JobFile file;
  for (const auto& [field, value] : values) {
    if (absl::Status status = SetField(file, field, value); !status.ok()) return status;
  }
  return ParseJobFile(file);
}

// What the help calls the default is what a job without the field gets.
TEST(JobFlagsTest, HelpSaysTheDefaultOfEveryFieldThatIsSettled) {
  ModelFacts model;
  model.config.model_type = "llama";
  model.config.vocab_size = 4096;
  model.config.hidden_size = 256;
  model.config.num_layers = 4;
  model.config.num_heads = 4;
  model.config.num_kv_heads = 2;
  model.config.head_dim = 64;
  model.config.intermediate_size = 704;
  model.config.max_position_embeddings = 1024;
  model.config.tie_word_embeddings = true;
  model.parameters = 3'000'000;
  const DatasetFacts rows{100, 5000, 1000, 90, "messages"};
  const DeviceFacts cpu{DeviceFacts::Kind::kCpu, int64_t{8} << 30, 2, false};
  const auto resolved = Resolve(Recipe{}, model, rows, cpu);
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  std::map<std::string, std::string> help;
  for (const JobFlag& flag : JobFlagList()) help[flag.field] = flag.help;
  for (const ResolvedValue& value : resolved->values) {
    const bool chosen = value.reason.rfind("default", 0) != 0 || value.field == "training.activation_checkpointing";
    const auto is_named = testing::AnyOf(HasSubstr(value.value + " (default)"), HasSubstr("default: " + value.value));
    EXPECT_THAT(help[value.field], testing::AnyOf(is_named, HasSubstr(chosen ? "default: auto" : "never")))
        << value.field;
  }
}

// A field of the job file without a flag, or a flag without a field, breaks this.
TEST(JobFlagsTest, EveryFieldOfAJobFileHasAFlag) {
  std::set<std::string> flags;
  for (const JobFlag& flag : JobFlagList()) flags.insert(flag.field);
  FieldValues values = {{"base_model", "b"},
                        {"chat_template", "'{{ messages }}'"},
                        {"template_date", "2026-11-25"},
                        {"task", "qa"},
                        {"tuning", "lora"},
                        {"lora.rank", "8"},
                        {"lora.alpha", "16"},
                        {"lora.target_modules", "[q_proj]"},
                        {"lora.dropout", "0.1"},
                        {"lora.rslora", "true"},
                        {"lora.dora", "true"},
                        {"lora.target_parameters", "[mlp.experts.down_proj]"},
                        {"lora.exclude_modules", "[layers.0.self_attn.q_proj]"},
                        {"lora.layers", "[0, 1]"},
                        {"lora.rank_pattern", "{q_proj: 4}"},
                        {"lora.alpha_pattern", "{q_proj: 4}"},
                        {"lora.modules_to_save", "[lm_head]"},
                        {"resources.node_selector", "{gpu: h100}"},
                        {"dataset.train", "t"},
                        {"dataset.validation", "v"},
                        {"dataset.test", "x"},
                        {"training.schedule", "linear"},
                        {"training.precision", "fp32"},
                        {"training.order", "file"},
                        {"training.loss_on", "all"},
                        {"training.too_long", "truncate"},
                        {"training.activation_checkpointing", "true"},
                        {"evaluation.metric", "loss"},
                        {"checkpoint.publish", "last"}};
  const std::set<std::string> alone = {
      "dataset",         "dataset.mixture", "lora.target_pattern",           "lora.exclude_pattern",
      "lora.start_from", "training.freeze", "training.optimizer_in_backward"};
  // exclude others
  for (const std::string& flag : flags) {  // the rest are numbers; 0.5 and 1 are valid for all of them
    const bool is_set =
        std::any_of(values.begin(), values.end(), [&](const auto& value) { return value.first == flag; });
    if (is_set || alone.contains(flag)) continue;
    const bool fraction = flag == "training.warmup_ratio" || flag == "training.beta1" || flag == "training.beta2";
    const bool whole = flag == "training.max_length";
    values.emplace_back(flag, fraction ? "0.5" : whole ? "2" : "1");
  }
  const auto spec = SpecOf(values);
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::set<std::string> fields;
  AddFields(ToJson(*spec), fields);
  for (const FieldValues& more :
       {FieldValues{{"base_model", "b"},
                    {"dataset", "d"},
                    {"lora.target_pattern", ".*q_proj"},
                    {"lora.exclude_pattern", ".*0.*"}},
        FieldValues{{"base_model", "b"}, {"dataset", "d"}, {"lora.start_from", "m@2"}, {"lora.dropout", "0.1"}},
        FieldValues{{"base_model", "b"}, {"dataset.mixture", "[{dataset: a, weight: 2}, {dataset: c}]"}},
        FieldValues{{"base_model", "b"},
                    {"dataset", "d"},
                    {"tuning", "full"},
                    {"training.freeze", "[lm_head]"},
                    {"training.optimizer_in_backward", "true"}}}) {
    const auto other = SpecOf(more);
    ASSERT_TRUE(other.ok()) << other.status();
    AddFields(ToJson(*other), fields);
  }
  EXPECT_EQ(flags, fields);
  // And every field of the message has a flag: nothing can be asked for in the API only.
  const auto job = JobToProto(*spec);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->spec().training().GetDescriptor()->field_count(),
            std::count_if(flags.begin(), flags.end(),
                          [](const std::string& flag) { return flag.rfind("training.", 0) == 0; }));
  EXPECT_EQ(
      job->spec().lora().GetDescriptor()->field_count(),
      std::count_if(flags.begin(), flags.end(), [](const std::string& flag) { return flag.rfind("lora.", 0) == 0; }));
}

}  // namespace
}  // namespace luthier
