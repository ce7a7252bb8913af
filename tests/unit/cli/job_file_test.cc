// Job files and flags to a job.
#include "client/cli/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "client/cli/job_flags.h"
#include "lib/wire/job_spec_wire.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
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
  EXPECT_THAT(std::string(ReadJobFile(folder_.path() + "/none.yaml").status().message()), HasSubstr("none.yaml"));
}

TEST_F(JobFileTest, FlagsWinOverTheFileAndUseTheSameWords) {
  JobFile file = *Read(kWholeFile);
  const JobFlagValues flags = {.fields = {{"lora.rank", "32"}, {"lora.target_modules", "[q_proj, v_proj]"}, {"training.learning_rate", "2e-4"},
                                          {"training.seed", "auto"}, {"dataset.train", "other"}},
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

TEST_F(JobFileTest, AFlagThatIsOutOfRangeIsNamedWithoutALineOfTheFile) {
  JobFile file = *Read("base_model: b\ndataset: d\nlora: {rank: 8}\n");
  ASSERT_TRUE(SetField(file, "lora.rank", "0").ok());
  EXPECT_THAT(std::string(ParseJobFile(file).status().message()), AllOf(HasSubstr("lora.rank: 0"), Not(HasSubstr("job.yaml:"))));
}

TEST_F(JobFileTest, ALabelWithoutAKeyIsRefused) {
  JobFile file;
  EXPECT_EQ(SetLabel(file, "team").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SetLabel(file, "=x").code(), absl::StatusCode::kInvalidArgument);
}

// Paths of the leaves of a value.
void Leaves(const nlohmann::json& value, const std::string& path, std::set<std::string>& out) {
  if (!value.is_object()) {
    out.insert(path);
    return;
  }
  for (const auto& [key, element] : value.items()) Leaves(element, path.empty() ? key : path + "." + key, out);
}

// A field of the job file without a flag, or a flag without a field, breaks this.
TEST(JobFlagsTest, EveryFieldOfAJobFileHasAFlag) {
  JobFile file;
  std::set<std::string> flags;
  for (const JobFlag& flag : JobFlagList()) flags.insert(flag.field);
  for (const auto& [field, value] : std::vector<std::pair<std::string, std::string>>{
           {"base_model", "b"}, {"task", "qa"}, {"tuning", "lora"}, {"lora.rank", "8"}, {"lora.alpha", "16"},
           {"lora.target_modules", "[q_proj]"}, {"lora.dropout", "0.1"}, {"lora.rslora", "true"}, {"dataset.train", "t"},
           {"dataset.validation", "v"}, {"dataset.test", "x"}, {"training.schedule", "linear"}, {"training.precision", "fp32"},
           {"training.order", "file"}, {"training.loss_on", "all"}, {"training.too_long", "truncate"}, {"evaluation.metric", "loss"}}) {
    ASSERT_TRUE(SetField(file, field, value).ok());
  }
  for (const std::string& flag : flags) {  // the rest are numbers; 0.5 and 1 are valid for all of them
    const size_t dot = flag.find('.');
    const bool is_set = dot == std::string::npos ? file.fields.contains(flag)
                                                 : file.fields.value(flag.substr(0, dot), nlohmann::json::object()).contains(flag.substr(dot + 1));
    if (is_set || flag == "dataset") continue;
    const bool fraction = flag == "training.warmup_ratio" || flag == "training.beta1" || flag == "training.beta2";
    const bool whole = flag == "training.max_length";
    ASSERT_TRUE(SetField(file, flag, fraction ? "0.5" : whole ? "2" : "1").ok());
  }
  const auto spec = ParseJobFile(file);
  ASSERT_TRUE(spec.ok()) << spec.status();
  std::set<std::string> fields;
  Leaves(ToJson(*spec), "", fields);
  fields.insert("dataset");  // the short form of dataset.*
  EXPECT_EQ(flags, fields);
  // And every field of the message has a flag: nothing can be asked for in the API only.
  const auto job = JobToProto(*spec);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->spec().training().GetDescriptor()->field_count(),
            std::count_if(flags.begin(), flags.end(), [](const std::string& flag) { return flag.rfind("training.", 0) == 0; }));
  EXPECT_EQ(job->spec().lora().GetDescriptor()->field_count(),
            std::count_if(flags.begin(), flags.end(), [](const std::string& flag) { return flag.rfind("lora.", 0) == 0; }));
}

}  // namespace
}  // namespace luthier
