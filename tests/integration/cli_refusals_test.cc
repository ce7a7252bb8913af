// What is refused, and what is not there: the message names what is wrong and what to do, the exit code says which kind
// of fault it is, and nothing is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/text/json_file.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

TEST_F(CliTest, RefusesRowsThatAreWrongAndKeepsNothing) {
  const std::string path = folder_.path() + "/rows/train.jsonl";
  WriteText(path, ChatLine("a", "b") + "{oops\n");
  const CapturedResult malformed = Cli({"dataset", "upload", "words", "rows"});
  EXPECT_EQ(malformed.exit_code, 3);
  EXPECT_THAT(malformed.err, HasSubstr("rows/train.jsonl:2: "));
  WriteText(path, "");
  const CapturedResult empty = Cli({"dataset", "upload", "words", "rows"});
  EXPECT_EQ(empty.exit_code, 3);
  EXPECT_THAT(empty.err, HasSubstr("the file holds no rows"));
  EXPECT_EQ(Ok({"dataset", "list", "-o", "name"}), "");
}

TEST_F(CliTest, RefusesAJobWhoseRowsDoNotFitTheModelOrTrainNothing) {
  Ok({"model", "import", "tiny", "base"});
  WriteText(folder_.path() + "/long.jsonl", ChatLine("a", "b") + ChatLine("a", std::string(300, 'x')));
  std::string masked;
  for (int i = 0; i < 30; ++i)
    masked += R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]})"
              "\n";
  WriteText(folder_.path() + "/masked.jsonl", masked);
  Ok({"dataset", "upload", "long", "long.jsonl"});
  Ok({"dataset", "upload", "masked", "masked.jsonl"});
  const CapturedResult too_long = Cli({"job", "submit", "--base-model", "tiny", "--dataset", "long"});
  EXPECT_EQ(too_long.exit_code, 3);
  EXPECT_THAT(too_long.err, AllOf(HasSubstr("train:2: "), HasSubstr("256")));
  const CapturedResult nothing = Cli({"job", "submit", "--base-model", "tiny", "--dataset", "masked"});
  EXPECT_EQ(nothing.exit_code, 3);
  EXPECT_THAT(nothing.err, AllOf(HasSubstr("train:1: "), HasSubstr("train:20: "), HasSubstr("and 10 more")))
      << "a long list arrives whole";
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), "");
}

TEST_F(CliTest, DoesNotTrainOnRowsThatWereUploadedAsHeldOut) {
  Ok({"model", "import", "tiny", "base"});
  WriteText(folder_.path() + "/held.jsonl", ChatLine("a", "b"));
  Ok({"dataset", "upload", "held", "--test", "held.jsonl"});
  const CapturedResult refused = Cli({"job", "submit", "--base-model", "tiny", "--dataset", "held"});
  EXPECT_EQ(refused.exit_code, 3);
  EXPECT_THAT(refused.err, HasSubstr("datasets/held has no part 'train'; give one that it has: test"));
  const CapturedResult block =
      Cli({"job", "submit", "--base-model", "tiny", "--dataset", "held", "--dataset.test", "held"});
  EXPECT_EQ(block.exit_code, 3);
  EXPECT_THAT(block.err, HasSubstr("dataset.train: is missing; give the dataset to train on: a block stands in place"));
}

TEST_F(CliTest, RefusesUnknownFieldsAndValuesOutOfRangeWithTheirLines) {
  WriteText(
      folder_.path() + "/job.yaml",
      "base_model: tiny\ndataset: words\nlora:\n  rank: 0\n  rnk: 8\ntraining: {learning_rate: 5, epochs: .nan}\n");
  const CapturedResult result = Cli({"job", "submit", "-f", "job.yaml"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("job.yaml:4: lora.rank: 0 is out of range"),
                                HasSubstr("job.yaml:5: lora.rnk: unknown field; did you mean 'rank'?"),
                                HasSubstr("job.yaml:6: training.learning_rate: 5 is out of range"),
                                HasSubstr("job.yaml:6: training.epochs")));
}

TEST_F(CliTest, RefusesBaseModelsThatAreMissingUnsupportedOrBroken) {
  const auto refused = [&](const std::string& folder, const std::string& why) {
    const CapturedResult result = Cli({"model", "import", "m", folder});
    EXPECT_EQ(result.exit_code, 3) << folder;
    EXPECT_THAT(result.err, HasSubstr(why)) << folder;
  };
  refused("nowhere", "nowhere");
  refused(std::string(300, 'x'), "File name too long");  // as a folder that the server's user must not see
  WriteTinyModel(folder_.path() + "/missing", /*shape_fault=*/false, /*missing=*/true);
  refused("missing", "model.layers.1.mlp.up_proj.weight");
  WriteTinyModel(folder_.path() + "/misshapen", /*shape_fault=*/true);
  refused("misshapen", "model.layers.0.self_attn.k_proj.weight");
  WriteTinyModel(folder_.path() + "/strange");
  json config = json::parse(*ReadTextFile(folder_.path() + "/strange/config.json"));
  config["model_type"] = "mystery";
  config["architectures"] = {"MysteryForCausalLM"};
  WriteText(folder_.path() + "/strange/config.json", config.dump());
  refused("strange", "ystery");
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "");
}

TEST_F(CliTest, GenerateSaysHowTheTrainerEnded) {
  const std::string trainer = folder_.path() + "/trainer";
  const auto exit_code = [&](const std::string& script) {
    WriteText(trainer, absl::StrCat("#!/bin/sh\n", script, "\n"));
    std::filesystem::permissions(trainer, std::filesystem::perms::owner_all);
    CaptureOptions options;
    options.environment = {{"LUTHIER_TRAINER", trainer}};
    return Cli({"generate", "--base", "base", "--prompt", "x"}, options).exit_code;
  };
  EXPECT_EQ(exit_code("exit 0"), 0);
  EXPECT_EQ(exit_code("exit 1"), 1);
  EXPECT_EQ(exit_code("exit 2"), 3) << "it was used wrongly";
  EXPECT_EQ(exit_code("exec env --default-signal=INT /bin/sh -c 'kill -INT $$'"), 2);
  EXPECT_EQ(exit_code("kill -SEGV $$"), 1);
}

TEST_F(CliTest, AValueOfASweepIsNotBlamedOnALineOfTheFile) {
  AddInputs();
  WriteText(folder_.path() + "/job.yaml", "base_model: tiny\ndataset: words\nlora: {rank: 8}\n");
  const CapturedResult of_grid = Cli({"sweep", "create", "-f", "job.yaml", "--grid", "lora.rank=4,0"});
  EXPECT_EQ(of_grid.exit_code, 3);
  EXPECT_THAT(of_grid.err, AllOf(HasSubstr("error: lora.rank: 0 is out of range"), Not(HasSubstr("job.yaml:"))));
  const CapturedResult of_points = Cli({"sweep", "create", "-f", "job.yaml", "--point", "lora.rank: 0"});
  EXPECT_THAT(of_points.err, Not(HasSubstr("job.yaml:")));
}

TEST_F(CliTest, NamesWhatDoesNotExist) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"job", "get", "none"},
                                                  {"job", "watch", "none"},
                                                  {"job", "logs", "none"},
                                                  {"job", "cancel", "none"},
                                                  {"job", "compare", "none"},
                                                  {"model", "download", "none"},
                                                  {"generate", "--model", "none", "--prompt", "x"},
                                                  {"generate", "--base", "none", "--prompt", "x"},
                                                  {"job", "submit", "--base-model", "none", "--dataset", "none"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 5) << testing::PrintToString(command) << result.err;
    EXPECT_THAT(result.err, HasSubstr("none")) << testing::PrintToString(command);
    EXPECT_THAT(result.err,
                HasSubstr(command[0] == "job" && command[1] != "submit" ? "luthier job list" : "luthier model list"));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST_F(CliTest, ANewNameIsTakenAsItIsOrRefused) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"model", "import", "meta/tiny", "base"},
                                                  {"dataset", "upload", "meta/words", "rows"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 3) << testing::PrintToString(command);
    EXPECT_THAT(result.err, HasSubstr(command[2])) << "a name without its first half would be another one";
  }
  EXPECT_EQ(Ok({"model", "import", "baseModels/tiny", "base"}), "baseModels/tiny\n");
  EXPECT_EQ(Ok({"dataset", "upload", "datasets/words", "rows"}), "datasets/words\n");
}

TEST_F(CliTest, SaysHowToStartAServerThatIsNotRunning) {
  server_->Kill();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"job", "list"}, {"job", "watch", "j"}, {"dataset", "upload", "words", "rows"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 6) << testing::PrintToString(command);
    EXPECT_THAT(result.err, AllOf(HasSubstr(server_->address()), HasSubstr("luthierd --with-local-worker")));
  }
}

}  // namespace
}  // namespace luthier
