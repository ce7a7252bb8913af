// The program without a server: wrong command lines, help, completion, offline checks.
#include "client/cli/app.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "client/cli/command_tree.h"
#include "client/cli/completion.h"
#include "client/cli/dataset_files.h"
#include "client/cli/model_names.h"
#include "client/cli/terminal.h"
#include "lib/base/did_you_mean.h"
#include "lib/channel/channel.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;

struct Result {
  int exit_code;
  std::string out;
  std::string err;
};

Interrupts& SharedInterrupts() {
  static auto* interrupts = new Interrupts();  // its thread never ends
  return *interrupts;
}

// The program's commands, as RunApp() has them.
struct AllCommands {
  AllCommands() { AddCommands(app, context); }

  std::ostringstream out, err;
  CommandContext context{out, Terminal{}, err, Terminal{}, SharedInterrupts()};
  CLI::App app{"", "luthier"};
};

// `visit` is called for a command and all below it.
void ForEachCommand(const CLI::App& command, const std::function<void(const CLI::App&)>& visit) {
  visit(command);
  for (const CLI::App* subcommand : Subcommands(command)) ForEachCommand(*subcommand, visit);
}

class AppTest : public testing::Test {
 protected:
  AppTest() { WriteText(folder_.path() + "/config.yaml", "{}\n"); }
  Result Run(std::vector<std::string> arguments) {
    std::ostringstream out, err;
    CommandContext context(out, Terminal{}, err, Terminal{}, SharedInterrupts());
    arguments.insert(arguments.end(), {"--config", folder_.path() + "/config.yaml"});
    const int exit_code = RunApp(arguments, context);
    return {exit_code, out.str(), err.str()};
  }
  // The same with a person at a terminal who answers.
  Result RunAtTerminal(std::vector<std::string> arguments, const std::string& answer) {
    std::ostringstream out, err;
    std::istringstream in(answer);
    const Terminal terminal{.interactive = true, .width = 80, .height = 24};
    CommandContext context(out, terminal, err, terminal, SharedInterrupts());
    context.AnswersComeFrom(in);
    arguments.insert(arguments.end(), {"--config", folder_.path() + "/config.yaml"});
    const int exit_code = RunApp(arguments, context);
    return {exit_code, out.str(), err.str()};
  }
  std::vector<std::string> CompletionsOf(std::vector<std::string> words) {
    AllCommands all;
    EXPECT_TRUE(all.context.Load().ok());
    return Complete(all.app, all.context, words);
  }
  TempFolder folder_;
};

TEST_F(AppTest, SuggestsTheCommandThatWasMeant) {
  const Result noun = Run({"jbo", "list"});
  EXPECT_EQ(noun.exit_code, 3);
  EXPECT_THAT(noun.err,
              AllOf(HasSubstr("unknown command 'jbo'"), HasSubstr("did you mean 'job'?"), HasSubstr("luthier --help")));
  const Result verb = Run({"job", "sumbit"});
  EXPECT_EQ(verb.exit_code, 3);
  EXPECT_THAT(verb.err, AllOf(HasSubstr("unknown command 'sumbit'"), HasSubstr("did you mean 'submit'?"),
                              HasSubstr("luthier job --help")));
}

TEST_F(AppTest, SuggestsTheCommandForTheWordsOfOtherPrograms) {
  EXPECT_THAT(Run({"submit", "-f", "job.yaml"}).err, HasSubstr("unknown command 'submit'; did you mean 'job submit'?"));
  EXPECT_THAT(Run({"job", "status", "j"}).err, HasSubstr("unknown command 'status'; did you mean 'get'?"));
  EXPECT_THAT(Run({"ls"}).err, HasSubstr("did you mean 'job list' or 'sweep list' or 'dataset list'?"));
  EXPECT_THAT(Run({"admin", "create"}).err, HasSubstr("did you mean 'token create'?"));
  EXPECT_THAT(Run({"job", "submit", "job.yaml"}).err,
              HasSubstr("unexpected argument 'job.yaml'; a job file is given with -f"));
  EXPECT_THAT(Run({"job", "watch", "j", "k"}).err, HasSubstr("unexpected argument 'k'\n"));
}

TEST_F(AppTest, AnEmptyValueIsNotTakenForNone) {
  for (const std::vector<std::string>& given : {std::vector<std::string>{"job", "submit", "-f", "job.yaml", "--id", ""},
                                                {"job", "submit", "-f", "job.yaml", "--id=", "--hold"},
                                                {"generate", "--model", "m", "--prompt", ""},
                                                {"--server", "", "job", "list"}}) {
    const Result result = Run(given);
    EXPECT_EQ(result.exit_code, 3) << testing::PrintToString(given);
    EXPECT_THAT(result.err, HasSubstr("is empty; give a value, or leave the flag out"))
        << testing::PrintToString(given);
  }
  EXPECT_THAT(Run({"job", "submit", "--id", ""}).err,
              AllOf(HasSubstr("--id: "), HasSubstr("luthier job submit --help")));
}

TEST_F(AppTest, HelpOfACommandThatDoesNotExistSaysSo) {
  for (const std::vector<std::string>& asked : {std::vector<std::string>{"base-model", "--help"},
                                                {"base-model", "-h"},
                                                {"--help", "base-model"},
                                                {"help", "base-model"}}) {
    const Result noun = Run(asked);
    EXPECT_EQ(noun.exit_code, 3) << testing::PrintToString(asked);
    EXPECT_THAT(noun.out, IsEmpty());
    EXPECT_THAT(noun.err, AllOf(HasSubstr("unknown command 'base-model'; did you mean 'model'?"),
                                HasSubstr("see: luthier --help")));
  }
  const Result verb = Run({"dataset", "create", "--help"});
  EXPECT_EQ(verb.exit_code, 3);
  EXPECT_THAT(verb.out, IsEmpty());
  EXPECT_THAT(verb.err, AllOf(HasSubstr("unknown command 'create'; did you mean 'upload'?"),
                              HasSubstr("see: luthier dataset --help")));
  EXPECT_EQ(Run({"job", "sumbit", "-f", "job.yaml", "--help"}).exit_code, 3);
}

TEST_F(AppTest, HelpIsShownWhateverElseIsWrong) {
  for (const std::vector<std::string>& asked : {std::vector<std::string>{"job", "submit", "job.yaml", "--help"},
                                                {"job", "get", "--help"},
                                                {"job", "--wdie", "--help"},
                                                {"job", "submit", "--lora.rnk", "8", "--help"}}) {
    const Result help = Run(asked);
    EXPECT_EQ(help.exit_code, 0) << testing::PrintToString(asked);
    EXPECT_THAT(help.out, HasSubstr("Usage: luthier job"));
    EXPECT_THAT(help.err, IsEmpty());
  }
}

TEST_F(AppTest, SuggestsTheFlagThatWasMeant) {
  const Result result = Run({"job", "submit", "--lora.rnk", "8"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("unknown flag --lora.rnk"), HasSubstr("did you mean '--lora.rank'?")));
  EXPECT_THAT(Run({"job", "submit", "--learning_rate", "1e-4"}).err,
              HasSubstr("unknown flag --learning_rate; did you mean '--training.learning-rate'?"));
  EXPECT_THAT(Run({"job", "submit", "--every=5"}).err,
              HasSubstr("did you mean '--evaluation.every' or '--checkpoint.every'?"));
  EXPECT_THAT(Run({"tenant", "set", "a", "--max-queued", "1"}).err, HasSubstr("did you mean '--max-queued-jobs'?"));
}

TEST_F(AppTest, AFlagBeforeItsCommandIsToldItsPlace) {
  const Result result = Run({"--limit", "3", "job", "list"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("error: --limit is a flag of `luthier job list`; write it after that\n"));
}

TEST_F(AppTest, ShortNamesThatShareNothingAreNotSuggested) {
  EXPECT_EQ(DidYouMean("zz", {"a", "lab"}), "");
  EXPECT_EQ(DidYouMean("jbo", {"job"}), "job");
}

TEST_F(AppTest, SaysWhatAFlagTakesInOtherWordsThanItsParser) {
  const Result part = Run({"tenant", "set", "a", "--max-devices", "0.5"});
  EXPECT_EQ(part.exit_code, 3);
  EXPECT_THAT(part.err, HasSubstr("error: --max-devices: '0.5' is no whole number that fits; give one, such as 2"));
  EXPECT_THAT(Run({"tenant", "set", "a", "--weight", "heavy"}).err,
              HasSubstr("error: --weight: 'heavy' is no number that fits"));
  EXPECT_THAT(Run({"job", "submit", "-f", "a.yaml", "-f", "b.yaml"}).err,
              HasSubstr("error: --file: is given more than once; give it once"));
  for (const char* value : {"abc", "500"}) {
    EXPECT_THAT(Run({"job", "submit", "--priority", value}).err,
                HasSubstr(absl::StrCat("error: --priority: '", value, "' is no whole number from -100 to 100\n")));
  }
}

TEST_F(AppTest, ASweepWithoutValuesOrWithBothKindsNamesTheFlags) {
  for (const std::vector<std::string>& values :
       {std::vector<std::string>{}, {"--grid", "lora.rank=4", "--point", "lora.rank: 4"}}) {
    std::vector<std::string> command = {"sweep", "create", "-f", "job.yaml"};
    command.insert(command.end(), values.begin(), values.end());
    const Result result = Run(command);
    EXPECT_EQ(result.exit_code, 3);
    EXPECT_THAT(result.err, AllOf(HasSubstr("either --grid FIELD"), HasSubstr("or --point")));
  }
}

// It would seem to bound the job.
TEST_F(AppTest, ATimeoutThatNothingWaitsForIsRefused) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"job", "submit", "-f", "job.yaml"},
                                                  {"job", "clone", "j"},
                                                  {"sweep", "create", "-f", "job.yaml"},
                                                  {"model", "export", "m", "--format", "gguf"}}) {
    std::vector<std::string> timed = command;
    timed.insert(timed.end(), {"--timeout", "1h"});
    const Result result = Run(timed);
    EXPECT_EQ(result.exit_code, 3) << testing::PrintToString(command);
    EXPECT_THAT(result.err, AllOf(HasSubstr("--timeout: "), HasSubstr("--watch"), HasSubstr("--deadline")));
  }
}

TEST_F(AppTest, NamesAMissingArgument) {
  const Result result = Run({"job", "get"});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("JOB is required"), HasSubstr("luthier job get --help")));
}

TEST_F(AppTest, EveryCommandHasHelpAndAnExample) {
  const AllCommands all;
  int commands = 0;
  ForEachCommand(all.app, [&](const CLI::App& command) {
    EXPECT_FALSE(command.get_description().empty() && command.get_parent() != nullptr) << command.get_name();
    if (!Subcommands(command).empty()) return;
    ++commands;
    EXPECT_THAT(command.get_footer(), AllOf(HasSubstr("Examples:\n  "), HasSubstr(command.get_name())))
        << command.get_name();
    for (const CLI::Option* option : command.get_options())
      EXPECT_FALSE(option->get_description().empty()) << option->get_name();
  });
  EXPECT_GE(commands, 28);
}

TEST_F(AppTest, HelpFitsTheTerminalAndIsWholeInAFile) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"job", "submit", "--help"},
                                                  {"job", "list", "--help"},
                                                  {"job"},
                                                  {"sweep", "create", "--help"},
                                                  {"admin", "token", "create", "--help"}}) {
    const std::string help = RunAtTerminal(command, "").out;
    for (const absl::string_view line : absl::StrSplit(help.substr(0, help.find("Examples:")), '\n'))
      EXPECT_LE(DisplayWidth(line), 80) << line;
  }
  EXPECT_THAT(
      Run({"job", "list", "--help"}).out,
      HasSubstr("comparisons of state, base_model, model or tenant (=), create_time or end_time (<, <=, >, >=) or"));
}

TEST_F(AppTest, ANounAloneShowsItsCommands) {
  const Result result = Run({"dataset"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("upload"), HasSubstr("check"), HasSubstr("list"), Not(HasSubstr("Start here"))));
  EXPECT_THAT(Run({"--help"}).out, AllOf(HasSubstr("Start here"), HasSubstr("Exit codes")));
}

TEST_F(AppTest, UnderstandsWhatIsTriedFirst) {
  const Result help = Run({"help", "job", "watch"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_EQ(help.out, Run({"job", "watch", "--help"}).out);
  EXPECT_EQ(Run({"help"}).out, Run({"--help"}).out);
  EXPECT_EQ(Run({"--version"}).out, Run({"version"}).out);
}

TEST_F(AppTest, SaysHowToStartAServerWhenNoneAnswers) {
  const Result result = Run({"job", "list", "--server", "127.0.0.1:1"});
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, AllOf(HasSubstr("no server answers at 127.0.0.1:1"),
                                HasSubstr("luthierd --with-local-worker"), HasSubstr("LUTHIER_SERVER")));
}

TEST_F(AppTest, RefusesAServerThatIsNoHostAndPort) {
  const Result url = Run({"job", "list", "--server", "http://gpu1:7070/v1"});
  EXPECT_EQ(url.exit_code, 3);
  EXPECT_THAT(url.err, HasSubstr("'http://gpu1:7070/v1' is a URL; give HOST:PORT, such as gpu1:7070"));
  const Result portless = Run({"context", "set", "lab", "--server", "gpu1"});
  EXPECT_EQ(portless.exit_code, 3);
  EXPECT_THAT(portless.err, HasSubstr("'gpu1' names no port; give HOST:PORT, such as gpu1:7070"));
  for (const char* address :
       {"127.0.0.1:7070", "[::1]:7070", "gpu1:7070", "dns:///gpu1:7070", "unix:/run/luthierd.sock"})
    EXPECT_TRUE(CheckServerAddress(address).ok()) << address;
  for (const char* address : {"gpu1:", "gpu1:99999", "gpu1:0", "[::1]", "gpu1:http", "gpu1:7070/v1"})
    EXPECT_FALSE(CheckServerAddress(address).ok()) << address;
}

TEST_F(AppTest, OutputThatCannotBeWrittenIsAFailure) {
  for (const char* asked : {"version", "--help", "job"}) {
    std::ostringstream out, err;
    out.setstate(std::ios::badbit);
    CommandContext context(out, Terminal{}, err, Terminal{}, SharedInterrupts());
    EXPECT_EQ(RunApp({asked, "--config", folder_.path() + "/config.yaml"}, context), 1) << asked;
    EXPECT_THAT(err.str(), HasSubstr("the output cannot be written")) << asked;
  }
}

TEST_F(AppTest, AsksAPersonBeforeItDestroysAnything) {
  for (const std::vector<std::string>& command : {std::vector<std::string>{"dataset", "delete", "words"},
                                                  {"sweep", "cancel", "words"},
                                                  {"model", "alias", "delete", "words/production"},
                                                  {"model", "delete", "words/1"},
                                                  {"model", "delete-base", "words"},
                                                  {"admin", "token", "revoke", "words"}}) {
    SCOPED_TRACE(testing::PrintToString(command));
    const auto at_terminal = [&](const std::string& answer, const std::vector<std::string>& more = {}) {
      std::vector<std::string> arguments = command;
      arguments.insert(arguments.end(), more.begin(), more.end());
      arguments.insert(arguments.end(), {"--server", "127.0.0.1:1"});  // where nobody answers: code 6 says it went on
      return RunAtTerminal(arguments, answer);
    };
    for (const char* no : {"", "\n", "n\n", "yess\n"}) {
      const Result asked = at_terminal(no);
      EXPECT_EQ(asked.exit_code, 2) << no;
      EXPECT_THAT(asked.err, AllOf(HasSubstr("words"), HasSubstr("? [y/N] "), HasSubstr("nothing was changed"))) << no;
    }
    const Result told = at_terminal("", {"--yes"});
    EXPECT_EQ(told.exit_code, 6);
    EXPECT_THAT(told.err, Not(HasSubstr("[y/N]")));
  }
  const std::vector<std::string> command = {"dataset", "delete", "words", "--server", "127.0.0.1:1"};
  EXPECT_EQ(RunAtTerminal(command, "YES\n").exit_code, 6);
  EXPECT_EQ(Run(command).exit_code, 6) << "nobody is asked where nobody can answer";
}

TEST_F(AppTest, AJobFileIsCheckedBeforeAServerIsNeeded) {
  const std::string path = folder_.path() + "/job.yaml";
  WriteText(path, "base_model: b\ndataset: d\nlora:\n  rnk: 8\n");
  const Result result = Run({"job", "submit", "-f", path});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, HasSubstr("job.yaml:4: lora.rnk: unknown field; did you mean 'rank'?"));
}

TEST_F(AppTest, ChecksADatasetWithoutAServerAndCountsItsTokens) {
  WriteTinyBase(folder_.path() + "/base");
  WriteText(folder_.path() + "/train.jsonl", ChatLine("hello", "yes") + ChatLine("bye", "no"));
  const Result result =
      Run({"dataset", "check", folder_.path() + "/train.jsonl", "--model", folder_.path() + "/base", "-o", "json"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const auto report = nlohmann::json::parse(result.out)["parts"][0];
  EXPECT_EQ(report["rows"], 2);
  EXPECT_EQ(report["trained_tokens"], 3 + 1 + 2 + 1);  // the answers' bytes, and the token that ends each turn
  const Result table = Run({"dataset", "check", folder_.path() + "/train.jsonl", "--model", folder_.path() + "/base"});
  EXPECT_THAT(table.out, AllOf(HasSubstr("TRAINED"), HasSubstr("17-32"), HasSubstr("2 rows  ████")));
}

TEST_F(AppTest, ADatasetCheckCutsLongRowsInEveryWayThatTrainingDoesAndNamesRepeatedRows) {
  WriteTinyBase(folder_.path() + "/base");
  const std::string path = folder_.path() + "/train.jsonl";
  WriteText(path, ChatLine(std::string(300, 'q'), "yes") + ChatLine("q", "no") + ChatLine("q", "no"));
  const auto check = [&](const std::string& too_long, std::vector<std::string> more) {
    std::vector<std::string> command = {"dataset",    "check", path, "--model", folder_.path() + "/base",
                                        "--too-long", too_long};
    command.insert(command.end(), more.begin(), more.end());
    return Run(command);
  };
  const auto kept = nlohmann::json::parse(check("keep_answer", {"-o", "json"}).out)["parts"][0];
  EXPECT_EQ(kept["truncated"], 1);
  EXPECT_EQ(kept["dropped"], 0);
  const auto dropped = nlohmann::json::parse(check("drop", {"-o", "json"}).out)["parts"][0];
  EXPECT_EQ(dropped["truncated"], 0);
  EXPECT_EQ(dropped["dropped"], 1);
  EXPECT_THAT(check("drop", {}).out, AllOf(HasSubstr("LEFT OUT"), HasSubstr(path + ":3 repeats line 2")));
}

TEST_F(AppTest, NamesFileAndLineOfEveryRowThatIsWrong) {
  const std::string path = folder_.path() + "/train.jsonl";
  WriteText(path, ChatLine("a", "b") + "{oops\n" + R"({"messages": []})" + "\n");
  const Result result = Run({"dataset", "check", path});
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr(path + ":2: "), HasSubstr(path + ":3: ")));
  EXPECT_THAT(result.out, HasSubstr("train")) << "the table is printed all the same";
}

TEST_F(AppTest, AFileWithoutAValidRowIsOfNoKind) {
  WriteText(folder_.path() + "/train.jsonl", "{}\n");
  EXPECT_THAT(Run({"dataset", "check", folder_.path() + "/train.jsonl"}).out, testing::ContainsRegex("train +0 +- "));
}

TEST_F(AppTest, RefusesAnEmptyDatasetRowsThatAreTooLongAndRowsWithoutATrainedToken) {
  WriteTinyBase(folder_.path() + "/base");
  const std::string path = folder_.path() + "/train.jsonl";
  WriteText(path, "");
  EXPECT_THAT(Run({"dataset", "check", path}).err, HasSubstr("the file holds no rows"));
  WriteText(path, ChatLine("a", std::string(300, 'x')));
  const Result too_long = Run({"dataset", "check", path, "--model", folder_.path() + "/base"});
  EXPECT_EQ(too_long.exit_code, 3);
  EXPECT_THAT(too_long.err, AllOf(HasSubstr(path + ":1: "), HasSubstr("256")));
  WriteText(path, R"({"messages": [{"role": "user", "content": "a"}]})"
                  "\n");
  const Result masked = Run({"dataset", "check", path, "--model", folder_.path() + "/base"});
  EXPECT_EQ(masked.exit_code, 3);
  EXPECT_THAT(masked.err, HasSubstr(path + ":1: "));
}

TEST_F(AppTest, KeepsContextsInTheConfigFile) {
  EXPECT_EQ(Run({"context", "set", "lab", "--server", "gpu1:7070"}).exit_code, 0);
  setenv("LUTHIER_TLS_CA", "/none.pem", 1);
  EXPECT_EQ(Run({"context", "set", "home", "--server", "127.0.0.1:1"}).exit_code, 0) << "it does not keep that file";
  unsetenv("LUTHIER_TLS_CA");
  EXPECT_THAT(Run({"context", "list"}).out, AllOf(HasSubstr("*       lab"), HasSubstr("home")));
  EXPECT_EQ(Run({"context", "use", "home"}).exit_code, 0);
  EXPECT_THAT(Run({"job", "list"}).err, HasSubstr("no server answers at 127.0.0.1:1"));
  setenv("LUTHIER_SERVER", "gpu2:7070", 1);
  EXPECT_THAT(Run({"context", "use", "home"}).err,
              HasSubstr("warning: LUTHIER_SERVER is set, so commands go to gpu2:7070; unset it to use contexts"));
  unsetenv("LUTHIER_SERVER");
  EXPECT_EQ(Run({"context", "use", "labb"}).exit_code, 3);
  EXPECT_EQ(Run({"context", "delete", "labb"}).exit_code, 3);
  EXPECT_THAT(Run({"context", "delete", "home"}).err, HasSubstr("no context is in use now"));
  EXPECT_EQ(Run({"context", "list", "-o", "name"}).out, "lab\n");
}

TEST_F(AppTest, AConfigFileThatIsNamedIsThereOrMade) {
  std::filesystem::remove(folder_.path() + "/config.yaml");
  const Result missing = Run({"job", "list", "--server", "127.0.0.1:1"});
  EXPECT_EQ(missing.exit_code, 3);
  EXPECT_THAT(missing.err,
              HasSubstr(absl::StrCat("--config (or LUTHIER_CONFIG): ", folder_.path(), "/config.yaml does not exist")));
  EXPECT_EQ(Run({"version"}).exit_code, 0) << "it needs no server";
  EXPECT_EQ(Run({"context", "set", "lab", "--server", "127.0.0.1:1"}).exit_code, 0);
  EXPECT_THAT(Run({"job", "list"}).err, HasSubstr("no server answers at 127.0.0.1:1"));
}

TEST_F(AppTest, EveryCommandAndFlagIsInTheManPage) {
  const std::string page = Run({"__man"}).out;
  EXPECT_EQ(std::count_if(page.begin(), page.end(), [](unsigned char c) { return c > 126; }), 0) << "see Roff()";
  const AllCommands all;
  int flags = 0;
  ForEachCommand(all.app, [&](const CLI::App& command) {
    EXPECT_THAT(page, HasSubstr(absl::StrReplaceAll(command.get_name(), {{"-", "\\-"}})));
    for (const CLI::Option* option : command.get_options()) {
      for (const std::string& name : option->get_lnames()) {
        EXPECT_THAT(page, HasSubstr(absl::StrReplaceAll("\\fB--" + name + "\\fR", {{"-", "\\-"}})))
            << CommandPath(command);
        ++flags;
      }
    }
  });
  EXPECT_GT(flags, 200);
  EXPECT_THAT(page, AllOf(HasSubstr(".SS \\fBluthier job watch\\fR [\\fIOPTIONS\\fR] \\fIJOB\\fR\n"),
                          HasSubstr(".SH EXIT STATUS\n")));
}

TEST_F(AppTest, CompletesCommandsFlagsAndValues) {
  EXPECT_THAT(CompletionsOf({"jo"}), ElementsAre("job"));
  EXPECT_THAT(CompletionsOf({"job", ""}),
              IsSupersetOf({"submit", "list", "get", "watch", "cancel", "logs", "compare"}));
  EXPECT_THAT(CompletionsOf({"job", "submit", "--lora.r"}), IsSupersetOf({"--lora.rank", "--lora.rslora"}));
  EXPECT_THAT(CompletionsOf({"job", "list", "-o", "j"}), ElementsAre("json"));
  EXPECT_THAT(CompletionsOf({"-o", "json", "no"}), ElementsAre("node"));
  EXPECT_THAT(CompletionsOf({"job", "list", "--state", "pa"}), ElementsAre("pausing", "paused"));
  EXPECT_THAT(CompletionsOf({"job", "submit", "--training.schedule", "co"}), ElementsAre("cosine", "constant"));
  EXPECT_THAT(CompletionsOf({"completion", ""}), ElementsAre("bash", "zsh", "fish"));
  EXPECT_THAT(CompletionsOf({"job", "submit", "-f", ""}), IsEmpty()) << "names of files are the shell's";
}

TEST_F(AppTest, CompletesEveryFlagOfWhichTheHelpListsTheValues) {
  const AllCommands all;
  int flags = 0;
  const std::function<void(const CLI::App&, const std::vector<std::string>&)> walk =
      [&](const CLI::App& command, const std::vector<std::string>& path) {
        for (const CLI::Option* option : command.get_options()) {
          if (option->get_lnames().empty() || !absl::StrContains(option->get_type_name(), "{")) continue;
          std::vector<std::string> words = path;
          words.insert(words.end(), {absl::StrCat("--", option->get_lnames()[0]), ""});
          EXPECT_THAT(CompletionsOf(words), Not(IsEmpty())) << testing::PrintToString(words);
          ++flags;
        }
        for (const CLI::App* subcommand : Subcommands(command)) {
          std::vector<std::string> longer = path;
          longer.push_back(subcommand->get_name());
          walk(*subcommand, longer);
        }
      };
  walk(all.app, {});
  EXPECT_GE(flags, 4);
}

TEST(DatasetFilesTest, FindsThePartsOfAFolderAndNamesWhatIsAmbiguous) {
  const TempFolder folder;
  for (const char* name : {"train.jsonl", "test.jsonl", "rows.jsonl", "train-2.jsonl", "val.parquet", "README.md"})
    WriteText(folder.path() + "/" + name, "{}");
  const auto files = FindDatasetFiles({.paths = {folder.path()}});
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 2u);
  EXPECT_EQ((*files)[0].part, "train");
  EXPECT_EQ((*files)[1].part, "test");
  EXPECT_EQ(FindDatasetFiles({.paths = {folder.path() + "/rows.jsonl"}})->at(0).part, "train");
  const auto both = FindDatasetFiles({.paths = {folder.path() + "/train.jsonl", folder.path() + "/train-2.jsonl"}});
  EXPECT_THAT(std::string(both.status().message()), HasSubstr("train is given already by"));
  const auto unclear = FindDatasetFiles({.paths = {folder.path() + "/train.jsonl", folder.path() + "/rows.jsonl"}});
  EXPECT_THAT(std::string(unclear.status().message()), HasSubstr("is it train, validation or test?"));
  EXPECT_FALSE(FindDatasetFiles({}).ok());
  EXPECT_THAT(
      RowsLeftOut({.paths = {folder.path()}}),
      ElementsAre(folder.path() + "/rows.jsonl", folder.path() + "/train-2.jsonl", folder.path() + "/val.parquet"));
  EXPECT_THAT(RowsLeftOut({.paths = {folder.path() + "/rows.jsonl"}}), IsEmpty());
  WriteText(folder.path() + "/testimonials.jsonl", "{}");
  EXPECT_EQ(FindDatasetFiles({.paths = {folder.path() + "/testimonials.jsonl"}})->at(0).part, "train");
  EXPECT_THAT(std::string(FindDatasetFiles({.paths = {"/dev/null"}}).status().message()),
              HasSubstr("/dev/null: is no regular file"));
  WriteText(folder.path() + "/validation.jsonl.zst", "compressed");
  EXPECT_EQ(FindDatasetFiles({.paths = {folder.path()}})->at(1).part, "validation");
  WriteText(folder.path() + "/train.parquet", "a table");
  EXPECT_THAT(std::string(FindDatasetFiles({.paths = {folder.path()}}).status().message()),
              HasSubstr("train.parquet: train is given already by"));
  std::filesystem::remove(folder.path() + "/train.jsonl");
  EXPECT_THAT(FindDatasetFiles({.paths = {folder.path()}})->at(0).path, HasSubstr("train.parquet"));
}

TEST(ModelNamesTest, UnderstandsShortAndLongForms) {
  EXPECT_EQ(VersionName("m"), "models/m/versions/latest");
  EXPECT_EQ(VersionName("models/m"), "models/m/versions/latest");
  EXPECT_EQ(VersionName("jobs/m"), "models/m/versions/latest");
  EXPECT_EQ(VersionName("m/3"), "models/m/versions/3");
  EXPECT_EQ(VersionName("m@3"), "models/m/versions/3");
  EXPECT_EQ(VersionName("models/m/versions/3"), "models/m/versions/3");
}

}  // namespace
}  // namespace luthier
