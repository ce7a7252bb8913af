// What holds for all commands: every method of the API has one, every list every format, every name completes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "luthier/v1/admin.pb.h"
#include "luthier/v1/datasets.pb.h"
#include "luthier/v1/jobs.pb.h"
#include "luthier/v1/models.pb.h"
#include "luthier/v1/nodes.pb.h"
#include "luthier/v1/queues.pb.h"
#include "luthier/v1/sweeps.pb.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/scripted_agent.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(CliTest, CompletesNamesThatTheServerKnows) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "intents-1"});
  EXPECT_EQ(Ok({"__complete", "--", "job", "get", "int"}), "intents-1\n");
  EXPECT_EQ(Ok({"__complete", "--", "job", "submit", "--dataset", ""}), "words\n");
  EXPECT_EQ(Ok({"__complete", "--", "job", "submit", "--base-model", "t"}), "tiny\n");
  ScriptedAgent agent(server_->address());
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "seeds", "--grid", "training.seed=1"});
  EXPECT_EQ(Ok({"__complete", "--", "sweep", "watch", "s"}), "seeds\n");
  EXPECT_EQ(Ok({"__complete", "--", "node", "drain", ""}), "n1\n");
  EXPECT_EQ(Ok({"__complete", "--", "tenant", "set", ""}), "default\n");
  Ok({"context", "set", "lab", "--server", "gpu1:7070"});
  EXPECT_EQ(Ok({"__complete", "--", "job", "list", "--context", "l"}), "lab\n");
  CaptureOptions elsewhere;
  elsewhere.environment = {{"LUTHIER_SERVER", "127.0.0.1:1"}};
  EXPECT_EQ(Cli({"__complete", "--", "--server", server_->address(), "job", "get", "int"}, elsewhere).out,
            "intents-1\n")
      << "the server of the line is asked";
  for (const char* shell : {"bash", "zsh", "fish"})
    EXPECT_THAT(Ok({"completion", shell}), HasSubstr("luthier __complete"));
}

// What bash makes of a line: it divides words at : and =, too.
TEST_F(CliTest, CompletesInBashWhateverItDividesWordsAt) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "intents-1"});
  CaptureOptions elsewhere;
  elsewhere.environment = {{"LUTHIER_SERVER", "127.0.0.1:1"}};
  const auto complete = [&](const std::string& line, const std::string& words) {
    return RunCaptured({"/bin/bash", "-c",
                        absl::StrCat("source <(" LUTHIER_BIN "/luthier completion bash); luthier() { " LUTHIER_BIN
                                     "/luthier \"$@\"; }; COMP_LINE='",
                                     line, "'; COMP_POINT=${#COMP_LINE}; COMP_WORDS=(", words,
                                     "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _luthier; echo \"${COMPREPLY[@]}\"")},
                       elsewhere)
        .out;
  };
  const std::string address = server_->address();
  const std::string host = address.substr(0, address.rfind(':')), port = address.substr(address.rfind(':') + 1);
  EXPECT_EQ(complete("luthier job wat", "luthier job wat"), "watch\n");
  EXPECT_EQ(complete(absl::StrCat("luthier --server ", address, "  job get int"),
                     absl::StrCat("luthier --server ", host, " : ", port, " job get int")),
            "intents-1\n");
  EXPECT_EQ(complete(absl::StrCat("luthier --server=", address, " job get "),
                     absl::StrCat("luthier --server = ", host, " : ", port, " job get ''")),
            "intents-1\n");
  EXPECT_EQ(complete("luthier job list --output=js", "luthier job list --output = js"), "json\n");
  EXPECT_EQ(complete("luthier job submit --tuning=", "luthier job submit --tuning ="), "lora full\n");
}

// fish offers names of files beside everything that it is not told to keep them from.
TEST_F(CliTest, CompletesFilesInFishOnlyWhereNothingIsKnown) {
  if (RunCaptured({"/bin/bash", "-c", "command -v fish"}).exit_code != 0)
    GTEST_SKIP() << "SKIPPED: there is no fish here; its completion was not tested";
  WriteText(folder_.path() + "/r-file", "");
  const auto complete = [&](const std::string& line) {
    CaptureOptions options;
    options.folder = folder_.path();
    options.environment = {{"LUTHIER_SERVER", server_->address()}};
    return RunCaptured({"/bin/bash", "-c",
                        absl::StrCat("PATH=" LUTHIER_BIN ":$PATH exec fish --no-config -c 'luthier completion fish | "
                                     "source; complete -C \"",
                                     line, "\"'")},
                       options)
        .out;
  };
  EXPECT_EQ(complete("luthier job list --state r"), "recovering\nrunning\n");
  EXPECT_EQ(complete("luthier job submit --tuning=l"), "--tuning=lora\n");
  EXPECT_EQ(complete("luthier job submit -f r-"), "r-file\n");
  EXPECT_EQ(complete("luthier job submit --file=r-"), "--file=r-file\n");
}

// Every method of every service that is not for agents only.
std::set<std::string> PublicMethods() {
  std::set<std::string> methods;
  for (const google::protobuf::FileDescriptor* file :
       {v1::Backup::descriptor()->file(), v1::FineTuningJob::descriptor()->file(), v1::Dataset::descriptor()->file(),
        v1::ModelVersion::descriptor()->file(), v1::Node::descriptor()->file(), v1::Queue::descriptor()->file(),
        v1::Sweep::descriptor()->file()}) {
    for (int s = 0; s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) methods.insert(file->service(s)->method(m)->name());
    }
  }
  return methods;
}

TEST_F(CliTest, EveryMethodOfTheApiHasACommand) {
  AddInputs();
  EXPECT_THAT(Ok({"job", "estimate", "-f", "job.yaml"}),
              AllOf(HasSubstr("rows      2\n"),
                    testing::ContainsRegex("memory    [0-9.]+ .?B a device: weights .*, holes in the heap [1-9]"),
                    HasSubstr("takes     unknown (no "), HasSubstr("fits on   no node that is connected now\n")));
  EXPECT_EQ(json::parse(Ok({"job", "estimate", "-f", "job.yaml", "-o", "json"}))["train_rows"], "2");
  EXPECT_THAT(Cli({"job", "estimate", "--base-model", "tiny", "--dataset", "none"}).err, HasSubstr("none"));

  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--hold"});
  EXPECT_EQ(Cli({"job", "checkpoint", "j"}).exit_code, 1) << "it does not run";
  Ok({"job", "start", "j"});
  EXPECT_EQ(agent.TakeAttempt(), "jobs/j/attempts/1");
  agent.Report({{"event", "started"}, {"device", "cpu"}, {"total_steps", 4}, {"resumed_step", 0}});
  EXPECT_EQ(Ok({"job", "checkpoint", "j"}), "jobs/j\n");
  EXPECT_THAT(Cli({"job", "checkpoints", "j"}).err, HasSubstr("jobs/j has reported no checkpoint"));
  EXPECT_EQ(Ok({"job", "estimate", "-f", "job.yaml", "-o", "name"}), "nodes/n1\n");
  const CapturedResult several = Cli({"job", "estimate", "-f", "job.yaml", "--resources.nodes", "2"});
  EXPECT_THAT(several.out, HasSubstr("fits on   too few of the nodes that are connected now\n"));
  EXPECT_THAT(several.err, HasSubstr("warning: resources.nodes: 2 are more than the 1 that the server has seen"));
  TrainWhatWasTaken(agent);
  EXPECT_THAT(Ok({"job", "checkpoints", "j"}), testing::ContainsRegex("STEP +ATTEMPT.*\n +4 +1 +0.1 +1.0 kB +n1"));
  EXPECT_EQ(Ok({"job", "checkpoints", "j", "-o", "name"}), "jobs/j/checkpoints/4\n");
  const std::string metrics = Ok({"job", "metrics", "j"});
  EXPECT_THAT(metrics, AllOf(testing::ContainsRegex("STEP +LOSS"), testing::ContainsRegex("\n +4/4 +0 .*1,234\n"),
                             HasSubstr("test, tuned: exact match 100.0 %")));
  EXPECT_EQ(Ok({"job", "metrics", "j", "--follow"}), metrics) << "the stream says the same";
  EXPECT_EQ(Ok({"job", "metrics", "j", "-o", "json"}), Ok({"job", "metrics", "j", "--follow", "-o", "json"}));
  EXPECT_THAT(Ok({"job", "logs", "j", "--lines", "1"}), testing::EndsWith("[1] a line of the trainer\n"));
  EXPECT_EQ(json::parse(Ok({"job", "logs", "j", "--lines", "1", "-o", "json"}))["line"], "a line of the trainer");
  Ok({"job", "watch", "j"});
  Ok({"job", "logs", "j"});
  for (const char* command : {"watch", "logs"})
    EXPECT_THAT(Ok({"job", command, "j", "-o", "yaml"}), AllOf(StartsWith("---\n"), HasSubstr("\nstate: QUEUED\n")));
  Ok({"job", "get", "j"});
  Ok({"job", "list"});

  Ok({"node", "drain", "n1"});  // what follows waits
  Ok({"job", "clone", "j", "--id", "k"});
  for (const char* step : {"pause", "resume", "explain", "cancel", "retry", "cancel"}) Ok({"job", step, "k"});
  Ok({"job", "clone", "j", "--id", "l", "--hold"});
  Ok({"job", "update", "l", "--priority", "1"});
  EXPECT_THAT(Cli({"job", "logs", "l", "--lines", "1"}).err, HasSubstr("the trainer of jobs/l has written nothing"));
  const CapturedResult no_figures = Cli({"job", "compare", "l"});
  EXPECT_EQ(no_figures.exit_code, 1);
  EXPECT_EQ(no_figures.out, "");
  EXPECT_THAT(no_figures.err, AllOf(HasSubstr("jobs/l is HELD"), HasSubstr("nothing to compare")));
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "training.seed=1,2", "--hold"});
  EXPECT_EQ(Ok({"sweep", "start", "s"}), "sweeps/s  2 QUEUED\n");
  Ok({"sweep", "get", "s"});
  Ok({"sweep", "list"});
  Ok({"sweep", "cancel", "s"});

  EXPECT_THAT(Ok({"dataset", "get", "words"}), AllOf(StartsWith("datasets/words"), HasSubstr("validation")));
  Ok({"dataset", "list"});
  EXPECT_THAT(Ok({"model", "get", "baseModels/tiny"}), HasSubstr("model.safetensors"));
  EXPECT_EQ(Ok({"model", "get", "tiny"}), Ok({"model", "get", "baseModels/tiny"}));
  EXPECT_EQ(Cli({"model", "get", "tiny/1"}).exit_code, 5);
  EXPECT_THAT(Ok({"model", "get", "j"}), AllOf(StartsWith("models/j/versions/1\n"), HasSubstr("of jobs/j"),
                                               HasSubstr("adapter_model.safetensors")));
  EXPECT_THAT(Cli({"model", "alias", "list"}).err, HasSubstr("no aliases"));
  EXPECT_EQ(Ok({"model", "promote", "j", "--as", "production", "--minimum", "exact_match=0.9"}),
            "models/j/versions/1  production\n");
  const CapturedResult not_good_enough = Cli({"model", "promote", "j", "--as", "best", "--minimum", "field_f1=0.9"});
  EXPECT_EQ(not_good_enough.exit_code, 1);
  EXPECT_EQ(Cli({"model", "promote", "j", "--as", "best", "--minimum", "good"}).exit_code, 3);
  EXPECT_THAT(Ok({"model", "alias", "list"}), testing::ContainsRegex("\nj +production +1 +j\n"));
  EXPECT_EQ(Ok({"model", "alias", "list", "j", "-o", "name"}), "models/j/versions/production\n");
  EXPECT_EQ(Ok({"__complete", "--", "model", "alias", "delete", "j"}), "j/production\n");
  EXPECT_THAT(Ok({"model", "list"}), testing::ContainsRegex("j/1 +adapter +production"));
  EXPECT_EQ(Ok({"model", "download", "j/production", "--to", "p"}), "p\n");
  const CapturedResult urls = Cli({"model", "urls", "j/production"});
  EXPECT_EQ(urls.exit_code, 1) << "its files are in no bucket";
  EXPECT_THAT(urls.err, AllOf(HasSubstr("luthier model download"), HasSubstr("--artifact-store")));
  EXPECT_EQ(Cli({"model", "urls", "j", "--for", "soon"}).exit_code, 3);
  EXPECT_THAT(Ok({"model", "export", "j/production", "--format", "merged", "--dry-run"}),
              testing::ContainsRegex("model_export.model_version +models/j/versions/1 +given"));
  EXPECT_EQ(
      json::parse(Ok({"model", "export", "j", "--format", "gguf", "--dry-run", "-o", "json"}))["spec"]["output_model"],
      "j-gguf");
  EXPECT_EQ(Cli({"model", "export", "j", "--format", "onnx"}).exit_code, 3);
  EXPECT_THAT(Cli({"model", "export", "j", "--format", "gguf", "--hold", "--to", "x"}).err,
              HasSubstr("--to: there is nothing to download"));
  EXPECT_EQ(Ok({"model", "alias", "delete", "j/production"}), "models/j/versions/production\n");
  EXPECT_EQ(Cli({"model", "alias", "delete", "j/production"}).exit_code, 5);
  CaptureOptions no_trainer;
  no_trainer.environment = {{"LUTHIER_TRAINER", "/bin/true"}};
  EXPECT_EQ(Cli({"generate", "--base", "tiny", "--prompt", "x"}, no_trainer).exit_code, 0);

  EXPECT_THAT(Ok({"tenant", "set", "default", "--weight", "2", "--max-devices", "3"}),
              testing::ContainsRegex("\ndefault +2 +0 +0 +3 +[0-9]+ +no limit"));
  const CapturedResult guaranteed =
      Cli({"tenant", "set", "default", "--guaranteed-devices", "3", "--max-storage", "2GB"});
  EXPECT_THAT(guaranteed.out,
              testing::ContainsRegex("\ndefault +2 +0 +3 +3 +[0-9]+ +no limit +[0-9.]+ [kMG]?B +2.0 GB"));
  EXPECT_THAT(guaranteed.err, HasSubstr("warning: 3 devices are guaranteed to tenants in all"));
  EXPECT_THAT(Cli({"tenant", "set", "default", "--guaranteed-devices", "4"}).err,
              HasSubstr("tenant.guaranteed_devices: 4 are more than tenant.max_devices lets it use, 3"));
  EXPECT_EQ(json::parse(Ok({"tenant", "list", "-o", "json"}))["tenants"][0]["max_devices"], 3);
  Ok({"tenant", "set", "default", "--guaranteed-devices", "0", "--max-storage", "0"});
  EXPECT_THAT(Cli({"tenant", "set", "default", "--weight", "2"}).err, HasSubstr("updated tenants/default\n"));
  EXPECT_THAT(Cli({"tenant", "set", "defualt", "--weight", "2"}).err,
              HasSubstr("created tenants/defualt, which was not there before; did you mean default?"));
  EXPECT_EQ(Cli({"tenant", "set", "default"}).exit_code, 3);
  EXPECT_THAT(Cli({"tenant", "set", "default", "--weight", "0"}).err, HasSubstr("tenant.weight: 0 is out of range"));
  Ok({"queue", "show"});
  Ok({"node", "list"});
  Ok({"admin", "backup", "--to", "backup"});
  EXPECT_THAT(Cli({"admin", "backup", "--to", std::string(300, 'x')}).err, HasSubstr("File name too long"));
  EXPECT_EQ(json::parse(Ok({"admin", "check", "-o", "json"}))["jobs"], "5");
  EXPECT_EQ(Ok({"admin", "check", "-o", "name"}), "ok\n");
  Ok({"job", "cancel", "l"});
  Ok({"dataset", "delete", "words"});
  EXPECT_EQ(Ok({"model", "delete", "j/1"}), "models/j/versions/1\n");
  EXPECT_EQ(Ok({"model", "delete-base", "tiny"}), "baseModels/tiny\n");
  Ok({"node", "undrain", "n1"});
  CaptureOptions root;
  root.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(
                                            Ok({"admin", "token", "create", "root", "--role", "admin"})))}};
  Cli({"admin", "token", "create", "n1", "--role", "agent", "--node", "n1", "--expires", "3d"}, root);
  EXPECT_THAT(Cli({"admin", "token", "list"}, root).out,
              AllOf(testing::ContainsRegex("\nn1 +agent +- +n1 +valid +in 2d"),
                    testing::ContainsRegex("\nroot +admin +- +- +valid +never")));
  EXPECT_EQ(Cli({"admin", "token", "revoke", "n1"}, root).exit_code, 0);

  EXPECT_THAT(server_->MethodsCalled(), testing::IsSupersetOf(PublicMethods()));
}

TEST_F(CliTest, EveryListIsThereInEveryFormat) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "training.seed=1"});
  Train(agent);
  Ok({"model", "promote", "s-1", "--as", "production"});
  Ok({"node", "drain", "n1"});
  Ok({"job", "submit", "-f", "job.yaml", "--id", "waits"});
  Ok({"context", "set", "lab", "--server", server_->address()});
  ExpectInEveryFormat({"node", "list"});  // while the agent is there
  Ok({"admin", "token", "create", "root", "--role", "admin", "-o", "json"});
  server_->Kill();
  const std::string secret =
      RunCaptured({LUTHIER_BIN "/luthierd", "admin-token", "--data-dir", folder_.path() + "/server"}).out;
  server_->Start();
  CaptureOptions root;
  root.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
  for (const std::vector<std::string>& list : {std::vector<std::string>{"job", "list"},
                                               {"job", "checkpoints", "s-1"},
                                               {"sweep", "list"},
                                               {"dataset", "list"},
                                               {"model", "list"},
                                               {"model", "alias", "list"},
                                               {"context", "list"},
                                               {"tenant", "list"},
                                               {"queue", "show"},
                                               {"admin", "token", "list"}}) {
    ExpectInEveryFormat(list, root);
  }
}

TEST_F(CliTest, AListThatIsCutSaysSoInEveryFormat) {
  AddInputs();
  Ok({"sweep", "create", "-f", "job.yaml", "--grid", "training.seed=1,2", "--hold"});
  for (const char* format : {"table", "json", "yaml", "name"}) {
    EXPECT_THAT(Cli({"job", "list", "--limit", "1", "-o", format}).err, HasSubstr("more jobs may exist")) << format;
    EXPECT_THAT(Cli({"sweep", "list", "--limit", "1", "-o", format}).err, HasSubstr("more sweeps may exist")) << format;
    EXPECT_EQ(Cli({"job", "list", "--limit", "3", "-o", format}).err, "") << format;
  }
}

TEST_F(CliTest, AnEmptyQueueIsAnEmptyListForPrograms) {
  EXPECT_EQ(json::parse(Ok({"queue", "show", "-o", "json"})), json::parse(R"({"entries": []})"));
}

TEST_F(CliTest, TheFileOfAProjectSaysHowItsCommandsPrint) {
  AddInputs();
  WriteText(folder_.path() + "/.luthier.yaml", "output: name\n");
  EXPECT_EQ(Ok({"dataset", "list"}), "datasets/words\n");
  EXPECT_THAT(Ok({"dataset", "list", "-o", "table"}), StartsWith("NAME")) << "flags win";
}

TEST_F(CliTest, ShowsItsVersion) {
  EXPECT_THAT(Ok({"version"}), StartsWith("luthier "));
  EXPECT_TRUE(json::parse(Ok({"version", "-o", "json"})).contains("version"));
}

}  // namespace
}  // namespace luthier
