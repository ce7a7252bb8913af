// YAML, the config file, and which server a command goes to.
#include "client/cli/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/exit_code.h"
#include "client/cli/yaml.h"
#include "lib/text/json_file.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(YamlTest, ReadsTheCoreSchemaAndKeepsTextThatLooksLikeNothingElse) {
  const auto document =
      ParseYaml("a: 1\nb: 2.5e-4\nc: true\nd: no\ne: '7'\nf: 1.2.3\ng: ~\nh: [x, 2]\ni: 1e-4\nj: 0x10\nk: -3\n", "f");
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ(document->value, json({{"a", 1},
                                   {"b", 2.5e-4},
                                   {"c", true},
                                   {"d", "no"},
                                   {"e", "7"},
                                   {"f", "1.2.3"},
                                   {"g", nullptr},
                                   {"h", {"x", 2}},
                                   {"i", 1e-4},
                                   {"j", "0x10"},
                                   {"k", -3}}));
  EXPECT_EQ(document->lines.at("e"), 5);
}

TEST(YamlTest, NamesTheLineOfASyntaxErrorAndOfAFieldGivenTwice) {
  EXPECT_THAT(std::string(ParseYaml("a: 1\nb: [1\n", "job.yaml").status().message()), HasSubstr("job.yaml:"));
  EXPECT_THAT(std::string(ParseYaml("a: 1\nlora: {rank: 1, rank: 2}\n", "job.yaml").status().message()),
              HasSubstr("job.yaml:2: lora.rank: is given twice"));
}

TEST(YamlTest, NothingOfASecondDocumentIsLeftOutUnseen) {
  EXPECT_EQ(ParseYaml("a: 1\n---\nb: 2\n", "f").status(),
            absl::InvalidArgumentError("f:3: is a second document; put it into a file of its own"));
  EXPECT_EQ(ParseYaml("---\na: 1\n---\n", "f")->value, json({{"a", 1}}));
}

TEST(YamlTest, RefusesAliasesOfAliasesBeforeTheyFillTheMemory) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 12; ++i) {
    const std::string before = absl::StrCat("*a", i - 1);
    absl::StrAppend(&bomb, "a", i, ": &a", i, " [", before);
    for (int j = 0; j < 9; ++j) absl::StrAppend(&bomb, ", ", before);
    absl::StrAppend(&bomb, "]\n");
  }
  EXPECT_EQ(ParseYaml(bomb, "f").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(YamlTest, WritesWhatItReadsBack) {
  const json value = {{"name", "jobs/a"},       {"text", "yes: \"no\"\nsecond"},
                      {"empty", json::array()}, {"none", json::object()},
                      {"number", 0.5},          {"digits", "007"},
                      {"word", "true"},         {"list", {{{"a", 1}, {"b", {1, 2}}}, "x", json::array({1})}}};
  const auto again = ParseYaml(ToYaml(value), "f");
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << ToYaml(value);
  EXPECT_EQ(again->value, value) << ToYaml(value);
}

TEST(YamlTest, WritesWhatYaml11ReadsTheSameWay) {
  const std::string text = ToYaml({{"no", "yes"}, {"switch", "Off"}, {"word", "noon"}, {"rate", 1e-05}, {"half", 0.5}});
  EXPECT_EQ(text, "half: 0.5\n\"no\": \"yes\"\nrate: 1.0e-05\nswitch: \"Off\"\nword: noon\n");
}

TEST(ConfigTest, AFolderIsNoConfigFile) {
  TempFolder folder;
  EXPECT_EQ(ReadConfig(folder.path()).status().message(), absl::StrCat("cannot read ", folder.path()));
}

TEST(ConfigTest, ChangesAtTheSameTimeAreAllKept) {
  TempFolder folder;
  const std::string path = folder.path() + "/luthier/config.yaml";
  std::vector<std::thread> commands;
  for (int i = 0; i < 8; ++i) {
    commands.emplace_back([&path, i] {
      const absl::Status changed = ChangeConfig(path, [i](Config& config) {
        config.servers[absl::StrCat("c", i)].address = absl::StrCat("gpu", i, ":7070");
        return absl::OkStatus();
      });
      EXPECT_TRUE(changed.ok()) << changed;
    });
  }
  for (std::thread& command : commands) command.join();
  const absl::StatusOr<Config> config = ReadConfig(path);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->servers.size(), 8u);
  EXPECT_FALSE(ChangeConfig(path, [](Config& changed) {
                 changed.servers.clear();
                 return absl::CancelledError("no");
               }).ok());
  EXPECT_EQ(ReadConfig(path)->servers.size(), 8u);
}

Config TwoContexts() {
  Config config;
  config.context = "lab";
  config.servers["lab"] = {.address = "gpu1:7070", .token_file = "/home/me/lab.token", .tls_ca = "/home/me/ca.pem"};
  config.servers["home"].address = "10.0.0.2:7070";
  return config;
}

TEST(ConfigTest, FlagsBeatTheEnvironmentWhichBeatsTheFile) {
  const Config config = TwoContexts();
  const ServerSources all = {
      .server_flag = "a:1", .context_flag = "home", .server_environment = "c:3", .context_environment = "lab"};
  ServerSources sources = all;
  EXPECT_EQ(ChooseServer(sources, config)->address, "a:1");
  sources.server_flag.clear();
  EXPECT_EQ(ChooseServer(sources, config)->address, "10.0.0.2:7070");
  sources.context_flag.clear();
  EXPECT_EQ(ChooseServer(sources, config)->address, "c:3");
  sources.server_environment.clear();
  EXPECT_EQ(ChooseServer(sources, config)->address, "gpu1:7070");
  EXPECT_EQ(ChooseServer({}, config)->address, "gpu1:7070");
  EXPECT_EQ(ChooseServer({}, Config())->address, kDefaultServer);
}

// Else the token for one server would go to another.
TEST(ConfigTest, AServerThatAFlagNamesHasNoFilesOfAContext) {
  const Config config = TwoContexts();
  EXPECT_EQ(ChooseServer({}, config)->token_file, "/home/me/lab.token");
  EXPECT_EQ(ChooseServer({}, config)->tls_ca, "/home/me/ca.pem");
  EXPECT_EQ(ChooseServer({.server_flag = "gpu1:7070"}, config)->token_file, "");
  EXPECT_EQ(ChooseServer({.context_flag = "home"}, config)->token_file, "");
}

TEST(ConfigTest, NamesTheContextThatWasProbablyMeant) {
  const absl::Status status = ChooseServer({.context_flag = "hom"}, TwoContexts()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("--context"), HasSubstr("did you mean 'home'?")));
}

TEST(ConfigTest, IsReadBackAsItWasWritten) {
  const TempFolder folder;
  const std::string path = folder.path() + "/new/config.yaml";
  ASSERT_TRUE(WriteConfig(TwoContexts(), path).ok());
  const auto again = ReadConfig(path);
  ASSERT_TRUE(again.ok()) << again.status() << *ReadTextFile(path);
  EXPECT_EQ(again->context, "lab");
  EXPECT_EQ(again->servers, TwoContexts().servers);
}

// Nobody makes a folder in /proc, whoever runs the tests.
TEST(ConfigTest, AFolderThatCannotBeMadeIsNoRefusalOfAServer) {
  const absl::Status status = ChangeConfig("/proc/luthier/config.yaml", [](Config&) { return absl::OkStatus(); });
  EXPECT_EQ(ExitCodeOf(status), ExitCode::kFailure) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("/proc/luthier"));
}

TEST(ConfigTest, FilesOfAContextLieBesideTheConfigFile) {
  const TempFolder folder;
  const std::string path = folder.path() + "/config.yaml";
  std::ofstream(path) << "contexts: {lab: {server: 'gpu1:7070', token_file: lab.token, tls_ca: /etc/ca.pem}}\n";
  const ServerConfig lab = ReadConfig(path)->servers.at("lab");
  EXPECT_EQ(lab.token_file, folder.path() + "/lab.token");
  EXPECT_EQ(lab.tls_ca, "/etc/ca.pem");
}

TEST(ConfigTest, AMissingFileIsAnEmptyConfig) {
  const TempFolder folder;
  EXPECT_TRUE(ReadConfig(folder.path() + "/none.yaml")->servers.empty());
}

TEST(ConfigTest, NamesUnknownFieldsWithWhatWasMeant) {
  EXPECT_THAT(std::string(ParseConfig("contxt: lab\n", "c.yaml").status().message()),
              AllOf(HasSubstr("c.yaml: contxt"), HasSubstr("did you mean 'context'?")));
  EXPECT_THAT(std::string(ParseConfig("output: xml\n", "c.yaml").status().message()), HasSubstr("output"));
  EXPECT_THAT(std::string(ParseConfig("contexts: {lab: {}}\n", "c.yaml").status().message()),
              HasSubstr("contexts.lab.server"));
}

TEST(ConfigTest, TheNearestFileOfAProjectChoosesAmongOnesOwnContextsAndMakesNone) {
  const TempFolder folder;
  const std::string deep = folder.path() + "/project/data/rows";
  std::filesystem::create_directories(deep);
  EXPECT_EQ(ReadProjectConfig(deep)->context, "");
  std::ofstream(folder.path() + "/.luthier.yaml") << "context: lab\n";
  std::ofstream(folder.path() + "/project/.luthier.yaml") << "context: home\noutput: json\n";
  const auto project = ReadProjectConfig(deep);
  ASSERT_TRUE(project.ok()) << project.status();
  EXPECT_EQ(project->context, "home");
  EXPECT_EQ(project->output, "json");
  EXPECT_EQ(ReadProjectConfig(folder.path())->context, "lab");
  EXPECT_EQ(ChooseServer({.context_of_project = "home"}, TwoContexts())->address, "10.0.0.2:7070");
  EXPECT_EQ(ChooseServer({.context_environment = "lab", .context_of_project = "home"}, TwoContexts())->address,
            "gpu1:7070");
  EXPECT_THAT(std::string(ChooseServer({.context_of_project = "evil"}, TwoContexts()).status().message()),
              HasSubstr(".luthier.yaml: there is no context 'evil'"));
  std::ofstream(folder.path() + "/project/.luthier.yaml") << "contexts: {evil: {server: 'evil:7070'}}\n";
  EXPECT_THAT(std::string(ReadProjectConfig(deep).status().message()),
              AllOf(HasSubstr("/project/.luthier.yaml: contexts"), HasSubstr("your own config file")));
  std::ofstream(folder.path() + "/project/.luthier.yaml") << "server: 'evil:7070'\ncontxt: lab\n";
  EXPECT_THAT(std::string(ReadProjectConfig(deep).status().message()),
              AllOf(HasSubstr("/project/.luthier.yaml: server: servers stand in your own config file"),
                    HasSubstr("did you mean 'context'?")));
}

}  // namespace
}  // namespace luthier
