// What is refused, and what is not there: the message names what is wrong and what to do, the exit code says which kind
// of fault it is, and nothing is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <filesystem>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/descriptor.h"
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

// A refusal has no second try; what got no answer may have been done.
TEST_F(CliTest, SaysHowToRepeatWhatMayHaveBeenDoneAndNothingOfThatWhenItWasNot) {
  AddInputs();
  const std::string id = "0195f1a2-0000-7000-8000-000000000000";
  const std::vector<std::string> submit = {"job", "submit", "-f", "job.yaml", "--request-id", id};
  const CapturedResult refused = Cli({"job", "submit", "-f", "job.yaml", "--dataset", "none", "--request-id", id});
  EXPECT_EQ(refused.exit_code, 5) << refused.err;
  EXPECT_THAT(refused.err, Not(HasSubstr(id)));
  server_->Kill();
  const CapturedResult unanswered = Cli(submit);
  EXPECT_EQ(unanswered.exit_code, 6) << unanswered.err;
  EXPECT_THAT(unanswered.err, HasSubstr("the same command with --request-id " + id));
  server_->Start();
  EXPECT_THAT(Cli(submit).err, Not(HasSubstr(id)));
}

// Six hours from now are another time when the command is repeated, and another request.
TEST_F(CliTest, AnUnansweredSubmitWithADeadlineIsRepeatedWithItsTime) {
  AddInputs();
  server_->Kill();
  const CapturedResult unanswered = Cli({"job", "submit", "-f", "job.yaml", "--deadline", "6h"});
  std::smatch found;
  const std::regex hint("with --request-id (\\S+) and --deadline (\\S+) makes sure");
  ASSERT_TRUE(std::regex_search(unanswered.err, found, hint)) << unanswered.err;
  server_->Start();
  const std::vector<std::string> again = {"job",          "submit", "-f",         "job.yaml",
                                          "--request-id", found[1], "--deadline", found[2]};
  EXPECT_EQ(Ok(again), Ok(again));
}

TEST_F(CliTest, CtrlCBeforeAnAnswerSaysHowToRepeat) {
  // Its connections are made and nobody answers on them.
  const Descriptor listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const name = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener.get(), name, size), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  ASSERT_EQ(getsockname(listener.get(), name, &size), 0);

  bool interrupted = false;
  CaptureOptions options;
  options.folder = folder_.path();
  options.environment = {{"LUTHIER_SERVER", absl::StrCat("127.0.0.1:", ntohs(address.sin_port))},
                         {"XDG_CONFIG_HOME", folder_.path() + "/config"}};
  options.on_output = [&](const CapturedResult&, pid_t pid) {
    if (interrupted) return;
    pollfd called = {listener.get(), POLLIN, 0};
    EXPECT_EQ(poll(&called, 1, /*timeout=*/60'000), 1);
    interrupted = kill(pid, SIGINT) == 0;
  };
  const std::string id = "0195f1a2-0000-7000-8000-000000000001";
  const CapturedResult submit = RunCaptured(
      {"/bin/sh", "-c", "echo begins; exec " LUTHIER_BIN "/luthier job submit -f job.yaml --request-id " + id},
      options);
  EXPECT_EQ(submit.exit_code, 2) << submit.err;
  EXPECT_THAT(submit.err, HasSubstr("the same command with --request-id " + id));
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

TEST_F(CliTest, SaysWhereABaseModelIsGivenForATunedOne) {
  AddInputs();
  for (const std::vector<std::string>& command : {std::vector<std::string>{"model", "download", "tiny"},
                                                  {"model", "promote", "tiny", "--as", "production"},
                                                  {"model", "export", "tiny", "--format", "gguf"},
                                                  {"generate", "--model", "tiny", "--prompt", "x"}}) {
    const CapturedResult result = Cli(command);
    EXPECT_EQ(result.exit_code, 5) << testing::PrintToString(command);
    EXPECT_THAT(result.err, HasSubstr("'tiny' is a base model; "));
  }
}

// The job would be over before it is known that its result has no place.
TEST_F(CliTest, AnExportIntoAFolderThatExistsIsRefusedBeforeItsJobIsMade) {
  const std::vector<std::string> into_rows = {"model", "export", "none", "--format", "gguf", "--to", "rows"};
  const CapturedResult refused = Cli(into_rows);
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("--to: rows exists"), HasSubstr("luthier model download")));
  std::vector<std::string> repeated = into_rows;
  repeated.insert(repeated.end(), {"--request-id", "0195f1a2-0000-7000-8000-000000000002"});
  EXPECT_EQ(Cli(repeated).exit_code, 5) << "the folder may be its own: asked for the model, which there is none of";
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
