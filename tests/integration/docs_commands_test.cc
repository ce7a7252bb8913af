// Every command that README.md and docs/cli.md show for a running server, as it stands there, with real server, agent
// and trainer and a model that knows nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>

#include "lib/text/json_file.h"
#include "tests/support/captured_program.h"
#include "tests/support/service.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// The ```sh blocks of a page that hold commands of the CLI.
std::vector<std::string> CommandBlocks(const std::string& page) {
  static const std::regex block("```sh\n([^`]*)```");
  std::vector<std::string> blocks;
  for (std::sregex_iterator found(page.begin(), page.end(), block), end; found != end; ++found) {
    const std::string commands = (*found)[1];
    if (commands.find("luthier ") != std::string::npos) blocks.push_back(commands);
  }
  return blocks;
}

// What follows the line that starts the server: it runs already, on a port of this test's own.
std::string AfterTheServerStarts(const std::string& commands) {
  const size_t start = commands.find("luthierd --with-local-worker &");
  EXPECT_NE(start, std::string::npos) << commands;
  return commands.substr(commands.find('\n', start) + 1);
}

class DocsCommandsTest : public testing::Test {
 protected:
  void SetUp() override {
    service_.StartServer({"--with-local-worker"});
    service_.AddInputs();
    // What the page calls the shipped examples.
    fs::create_directories(folder_.path() + "/examples/base");
    fs::copy(folder_.path() + "/made/model", folder_.path() + "/examples/base/luthier-tiny");
    const std::string task = folder_.path() + "/examples/tasks/classification";
    fs::create_directories(task);
    for (const char* part : {"train", "validation", "test"})
      fs::copy(folder_.path() + "/train.jsonl", absl::StrCat(task, "/", part, ".jsonl"));
    WriteText(task + "/job.yaml", *ReadTextFile("examples/tasks/classification/job.yaml"));
    WriteText(folder_.path() + "/examples/job.yaml", *ReadTextFile("examples/job.yaml"));
    WriteText(folder_.path() + "/job.yaml",
              "base_model: luthier-tiny\ndataset: classification\ntask: classification\n");
  }
  CapturedResult Shell(const std::string& script) {
    CaptureOptions options;
    options.folder = folder_.path();
    options.environment = {{"PATH", absl::StrCat(LUTHIER_BIN_FOLDER, ":", std::getenv("PATH"))},
                           {"LUTHIER_SERVER", service_.Address()},
                           {"LUTHIER_CACHE_DIR", folder_.path() + "/cache"},
                           {"XDG_CONFIG_HOME", folder_.path() + "/config"}};
    return RunCaptured({"/bin/bash", "-e", "-c", script}, options);
  }

  TempFolder folder_;
  Service service_{LUTHIER_BIN_FOLDER, folder_.path()};
};

TEST_F(DocsCommandsTest, EveryCommandOfTheReadmeWorks) {
  const std::vector<std::string> blocks = CommandBlocks(*ReadTextFile("README.md"));
  ASSERT_THAT(blocks, SizeIs(1));
  const CapturedResult result = Shell(AfterTheServerStarts(blocks[0]));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, AllOf(HasSubstr("the rows are in order"), HasSubstr("SUCCEEDED")));
  EXPECT_THAT(result.out, AllOf(HasSubstr("trained parameters"), HasSubstr("Held-out rows, before and after")));
  EXPECT_TRUE(fs::exists(folder_.path() + "/intents-adapter/adapter_model.safetensors"));
}

TEST_F(DocsCommandsTest, EveryCommandOfTheCliPageWorks) {
  const std::vector<std::string> blocks = CommandBlocks(*ReadTextFile("docs/cli.md"));
  ASSERT_THAT(blocks, SizeIs(2));
  const CapturedResult first = Shell(AfterTheServerStarts(blocks[0]));
  EXPECT_EQ(first.exit_code, 0) << first.err;
  EXPECT_THAT(first.err, AllOf(HasSubstr("the rows are in order"), HasSubstr("SUCCEEDED"), HasSubstr("verified")));
  EXPECT_THAT(first.out, AllOf(HasSubstr("baseModels/luthier-tiny"), HasSubstr("datasets/classification"),
                               HasSubstr("jobs/intents"), HasSubstr("trained parameters"),
                               HasSubstr("Held-out rows, before and after")));
  EXPECT_TRUE(fs::exists(folder_.path() + "/intents/adapter_model.safetensors"));

  const CapturedResult both = Shell(
      "luthier job submit -f job.yaml --id intents-lora --wait; luthier job submit -f job.yaml --tuning full --id "
      "intents-full --wait");
  ASSERT_EQ(both.exit_code, 0) << both.err;
  const CapturedResult second = Shell(blocks[1]);
  EXPECT_EQ(second.exit_code, 0) << second.err;
  EXPECT_THAT(second.out, AllOf(HasSubstr("\"type\":\"progress\""), HasSubstr("LoRA intents-lora"),
                                HasSubstr("full intents-full")));

  const CapturedResult full = Shell("luthier generate --model intents-full --prompt hello --max-new-tokens 4 -o json");
  EXPECT_EQ(full.exit_code, 0) << full.err;
  EXPECT_THAT(full.out, HasSubstr("\"answer\""));
  const CapturedResult local = Shell(
      "printf 'a\\nb\\n' | luthier generate --base examples/base/luthier-tiny --adapter intents --max-new-tokens 4 "
      "--server 127.0.0.1:1");
  EXPECT_EQ(local.exit_code, 0) << local.err << "local folders need no server";
}

}  // namespace
}  // namespace luthier
