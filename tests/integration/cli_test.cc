// Inputs, jobs, sweeps and nodes: each step from the first upload to a comparison and a download.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/text/json_file.h"
#include "luthier/v1/worker.pb.h"
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
using ::testing::Not;
using ::testing::StartsWith;

TEST_F(CliTest, TakesAJobFromInputsToComparisonAndDownload) {
  AddInputs();
  EXPECT_THAT(Cli({"dataset", "upload", "words", "rows"}).err, HasSubstr("train: 2 rows"));
  ScriptedAgent agent(server_->address());
  std::thread training([&] { Train(agent); });
  const CapturedResult submit =
      Cli({"job", "submit", "-f", "job.yaml", "--id", "j", "--label", "team=support", "--watch"});
  training.join();
  EXPECT_EQ(submit.exit_code, 0) << submit.err;
  EXPECT_EQ(submit.out, "jobs/j\n") << "progress is a message, the name is the result";
  EXPECT_THAT(submit.err,
              AllOf(HasSubstr("started    cpu fp32, trains 131,072 of 3,812,096 parameters on 2 rows, 4 steps"),
                    HasSubstr("step 4/4  100%  loss 0.0000  1,234 tok/s"),
                    HasSubstr("evaluation test, tuned: exact match 100.0 %"), HasSubstr("SUCCEEDED"),
                    HasSubstr("luthier job compare j")));

  EXPECT_THAT(Ok({"job", "get", "j"}), AllOf(HasSubstr("SUCCEEDED"), HasSubstr("lora.rank"),
                                             HasSubstr("models/j/versions/1"), HasSubstr("team=support")));
  EXPECT_EQ(json::parse(Ok({"job", "get", "j", "-o", "json"}))["state"], "SUCCEEDED");
  EXPECT_THAT(Ok({"job", "get", "j", "-o", "yaml"}), HasSubstr("state: SUCCEEDED\n"));
  EXPECT_THAT(Ok({"job", "compare", "j"}),
              AllOf(HasSubstr("exact match"), HasSubstr("0.0 %"), HasSubstr("100.0 %"), HasSubstr("131,072"),
                    HasSubstr("base      the the\n"), HasSubstr("LoRA      yes\n")));
  EXPECT_EQ(json::parse(Ok({"job", "compare", "j", "-o", "json"}))["jobs"][0]["tuned"]["exact_match"], 1.0);
  EXPECT_THAT(Ok({"job", "logs", "j"}), AllOf(HasSubstr("[1] a line of the trainer\n"), HasSubstr("state: SUCCEEDED")));
  EXPECT_THAT(Ok({"job", "list"}), AllOf(StartsWith("NAME"), testing::ContainsRegex("\nj +SUCCEEDED +4/4")));
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--state", "succeeded,failed"}), "jobs/j\n");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--state", "running"}), "");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--label", "team=support", "--since", "1h", "--oldest-first"}),
            "jobs/j\n");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--label", "team=search"}), "");
  EXPECT_EQ(Ok({"job", "list", "-o", "name", "--filter", "base_model = tiny AND end_time > 2020-01-01T00:00:00Z"}),
            "jobs/j\n");
  EXPECT_EQ(Cli({"job", "list", "--filter", "speed = 3"}).exit_code, 3);
  EXPECT_EQ(json::parse(Ok({"job", "list", "-o", "json"}))["jobs"].size(), 1u);
  EXPECT_THAT(Ok({"job", "list", "-o", "wide"}), HasSubstr("team=support"));
  EXPECT_THAT(Ok({"model", "list"}), AllOf(HasSubstr("tiny"), HasSubstr("j/1"), HasSubstr("adapter")));
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "baseModels/tiny\nmodels/j/versions/1\n");
  EXPECT_THAT(Ok({"model", "list", "--tuned", "-o", "wide"}), Not(HasSubstr("base, llama")));
  EXPECT_THAT(Ok({"dataset", "list"}), HasSubstr("words"));
  EXPECT_THAT(Ok({"node", "list"}), AllOf(HasSubstr("n1"), HasSubstr("READY"), HasSubstr("8.0 GB")));
  EXPECT_THAT(Ok({"node", "list", "-o", "wide"}), HasSubstr("GANG ADDRESS"));
  EXPECT_EQ(json::parse(Ok({"node", "list", "-o", "json"}))["nodes"][0]["name"], "nodes/n1");

  EXPECT_EQ(Ok({"model", "download", "j"}), "j\n");
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_model.safetensors"), std::string(3'000'000, 'w'));
  EXPECT_EQ(Ok({"model", "download", "j/1", "--to", "elsewhere/deep"}), "elsewhere/deep\n");
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/elsewhere/deep/adapter_config.json"), kAdapterConfig);
  WriteText(folder_.path() + "/j/adapter_config.json", "changed");
  const CapturedResult taken = Cli({"model", "download", "j"});
  EXPECT_EQ(taken.exit_code, 1);
  EXPECT_THAT(taken.err, HasSubstr("give another folder"));

  Ok({"model", "delete-base", "tiny", "--yes"});
  const CapturedResult alone = Cli({"generate", "--model", "j", "--prompt", "x"});
  EXPECT_EQ(alone.exit_code, 5);
  EXPECT_THAT(alone.err, AllOf(HasSubstr("baseModels/tiny, which is not registered any more"), HasSubstr("import")));
}

TEST_F(CliTest, ADownloadGoesOnFromTheBytesThatAreThere) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  Train(agent);
  std::filesystem::create_directories(folder_.path() + "/j.partial");
  WriteText(folder_.path() + "/j.partial/adapter_model.safetensors", std::string(1'234'567, 'w'));
  WriteText(folder_.path() + "/j.partial/adapter_config.json", std::string(std::size(kAdapterConfig) - 1, 'x'));
  Ok({"model", "download", "j"});
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_model.safetensors"), std::string(3'000'000, 'w'));
  EXPECT_EQ(*ReadTextFile(folder_.path() + "/j/adapter_config.json"), kAdapterConfig)
      << "wrong bytes are noticed, though they are as many";
  const CapturedResult nowhere = Cli({"model", "download", "j", "--to", "/proc/none"});
  EXPECT_EQ(nowhere.exit_code, 1) << "the version is there";
  EXPECT_THAT(nowhere.err,
              AllOf(HasSubstr("the folder of the download cannot be made: /proc/none"), HasSubstr("give another one")));
  std::filesystem::create_symlink("nowhere", folder_.path() + "/dangling.partial");
  const CapturedResult locked = Cli({"model", "download", "j", "--to", "dangling"});
  EXPECT_EQ(locked.exit_code, 1) << "the version is there: " << locked.err;
}

TEST_F(CliTest, CancelsQueuedAndRunningJobs) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "queued"});
  EXPECT_EQ(Ok({"job", "cancel", "queued"}), "jobs/queued  CANCELLED\n");
  EXPECT_EQ(Cli({"job", "watch", "queued"}).exit_code, 2);
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "running"});
  agent.TakeAttempt();
  std::thread stop([&] {
    EXPECT_TRUE(agent.TakeStop());
    agent.End(v1::AttemptEnded::STOPPED);
  });
  EXPECT_EQ(Ok({"job", "cancel", "jobs/running", "--wait"}), "jobs/running  CANCELLED\n");
  stop.join();
  EXPECT_THAT(Ok({"job", "list"}), AllOf(HasSubstr("running"), Not(HasSubstr("CANCELLING"))));
}

TEST_F(CliTest, ASweepIsCreatedWatchedComparedAndCancelled) {
  AddInputs();
  std::thread training([&] {
    for (int job = 0; job < 2; ++job) {
      ScriptedAgent agent(server_->address());  // a new session hears of what the last one did not read
      Train(agent);
    }
  });
  const CapturedResult created = Cli({"sweep", "create", "-f", "job.yaml", "--id", "s", "--grid", "lora.rank=4,8",
                                      "--metric", "test.exact_match", "--class", "background", "--watch"});
  training.join();
  EXPECT_EQ(created.exit_code, 0) << created.err;
  EXPECT_THAT(created.out, AllOf(StartsWith("sweeps/s"), HasSubstr("lora.rank"), HasSubstr("s-2")));
  EXPECT_THAT(created.err, HasSubstr("2 SUCCEEDED"));
  EXPECT_THAT(Ok({"sweep", "get", "s"}), testing::ContainsRegex("s-1 +SUCCEEDED +4 +1 \\* +models/s-1/versions/1"));
  EXPECT_EQ(Ok({"sweep", "best", "s", "-o", "name"}), "jobs/s-1\n");
  EXPECT_THAT(Ok({"sweep", "best", "s"}), HasSubstr("test.exact_match 1  lora.rank=4"));
  EXPECT_EQ(json::parse(Ok({"sweep", "get", "s", "-o", "json"}))["jobs"][1]["values"]["lora.rank"], "8");
  EXPECT_EQ(json::parse(Ok({"job", "get", "s-1", "-o", "json"}))["service_class"], "SERVICE_CLASS_BACKGROUND");
  Ok({"sweep", "create", "-f", "job.yaml", "--id", "t", "--point", "lora.target_modules: [q_proj], training.seed: 3",
      "--point", "tuning: full"});
  EXPECT_THAT(Ok({"sweep", "cancel", "t"}), StartsWith("sweeps/t  "));
  EXPECT_EQ(Cli({"sweep", "best", "t"}).exit_code, 5);
  EXPECT_EQ(Ok({"sweep", "list", "-o", "name"}), "sweeps/t\nsweeps/s\n");
  WriteText(folder_.path() + "/lora.yaml", "base_model: tiny\ndataset: words\nlora: {rank: 4}\n");
  const CapturedResult kinds = Cli({"sweep", "create", "-f", "lora.yaml", "--grid", "tuning=lora,full", "--dry-run"});
  EXPECT_EQ(kinds.exit_code, 0) << kinds.err;
  EXPECT_THAT(kinds.err, HasSubstr("warning: lora: that of sweep.job is left out with tuning: full"));
  const CapturedResult both =
      Cli({"sweep", "create", "-f", "lora.yaml", "--point", "tuning: full, lora.rank: 8", "--dry-run"});
  EXPECT_EQ(both.exit_code, 3);
  EXPECT_THAT(both.err, AllOf(HasSubstr("lora: has values, but tuning is full"), Not(HasSubstr("lora.yaml:"))));
  const CapturedResult forgotten =
      Cli({"sweep", "create", "-f", "job.yaml", "--id", "w", "--point", "lora.rank: 4, training.epochs"});
  EXPECT_EQ(forgotten.exit_code, 3);
  EXPECT_THAT(forgotten.err, HasSubstr("--point: training.epochs has no value"));
  const CapturedResult wrong =
      Cli({"sweep", "create", "-f", "job.yaml", "--id", "w", "--grid", "lora.rank=4,999,0", "--dry-run"});
  EXPECT_EQ(wrong.exit_code, 3);
  EXPECT_THAT(wrong.err, AllOf(HasSubstr("lora.rank: 999 is out of range"), HasSubstr("(jobs/w-2)"),
                               HasSubstr("lora.rank: 0 is out of range"), HasSubstr("(jobs/w-3)")));
  const std::vector<std::string> unmeasured = {"sweep",           "create",      "-f",     "job.yaml",
                                               "--dataset.train", "words/train", "--grid", "training.seed=1,2",
                                               "--dry-run"};
  EXPECT_THAT(Cli(unmeasured).err,
              HasSubstr("warning: sweep.metric: validation.loss is measured on a validation part"));
}

TEST_F(CliTest, AClonesTemplateIsThatOfTheOtherJobUnlessItIsGiven) {
  AddInputs();
  const std::string turns =
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  WriteText(folder_.path() + "/own.jinja", turns);
  WriteText(folder_.path() + "/other.jinja", "Hello!\n" + turns);
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--hold", "--chat-template", "own.jinja"});
  std::vector<std::string> clone = {"job", "clone", "j", "--lora.rank", "4", "--dry-run", "-o", "json"};
  const json same = json::parse(Ok(clone));
  EXPECT_EQ(same["spec"]["chat_template"], turns);
  EXPECT_EQ(same["spec"]["lora"]["rank"], 4);
  clone.insert(clone.end(), {"--chat-template", "other.jinja"});
  EXPECT_EQ(json::parse(Ok(clone))["spec"]["chat_template"], "Hello!\n" + turns);
}

TEST_F(CliTest, OfALostAttemptItIsKnownWhenTheNextOneStarts) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  for (int i = 0; i < 2; ++i) {  // behind the second one there are seconds to ask in
    agent.TakeAttempt();
    agent.End(v1::AttemptEnded::LOST, "", "the trainer was ended by signal 9");
  }
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(HasSubstr("was lost; the next one starts in "), Not(HasSubstr("nobody can say when"))));
}

TEST_F(CliTest, EveryStepOfAJobIsTakenAndExplained) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j", "--label", "team=support"});
  EXPECT_EQ(Ok({"job", "pause", "j"}), "jobs/j  PAUSED\n");
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(StartsWith("jobs/j  PAUSED\n"), HasSubstr("waits because  paused; resume it"),
                    HasSubstr("starts         nobody can say when\n")));
  EXPECT_EQ(Ok({"job", "resume", "j", "-o", "name"}), "jobs/j\n");
  EXPECT_THAT(Ok({"job", "explain", "j"}),
              AllOf(HasSubstr("no node is connected"), HasSubstr("  its tenant     default: devices in use 0")));
  EXPECT_EQ(json::parse(Ok({"job", "explain", "j", "-o", "json"}))["pending_code"], "PENDING_REASON_NO_NODE");

  EXPECT_EQ(Ok({"job", "clone", "j", "--id", "k", "--hold", "--priority", "3", "--deadline", "none"}),
            "jobs/k  HELD\n");
  const json clone = json::parse(Ok({"job", "get", "k", "-o", "json"}));
  EXPECT_EQ(clone["labels"]["team"], "support");
  EXPECT_EQ(clone["priority"], 3);
  const CapturedResult changed = Cli({"job", "clone", "k", "--id", "m", "--lora.rank", "4", "--label", "team=sales",
                                      "--class", "background", "--priority", "0", "--dry-run", "-o", "json"});
  EXPECT_EQ(changed.exit_code, 0) << changed.err;
  const json other = json::parse(changed.out);
  EXPECT_EQ(other["spec"]["lora"]["rank"], 4);
  EXPECT_EQ(other["spec"]["base_model"], clone["spec"]["base_model"]);
  EXPECT_EQ(other["spec"]["dataset"], clone["spec"]["dataset"]);
  EXPECT_EQ(other["labels"]["team"], "sales");
  EXPECT_EQ(other["service_class"], "SERVICE_CLASS_BACKGROUND");
  EXPECT_FALSE(other.contains("priority")) << "0 was given";
  const std::string request = "11111111-2222-4333-8444-555555555555";
  const std::vector<std::string> again = {"job",  "clone", "k",      "--tuning",     "full",
                                          "--id", "whole", "--hold", "--request-id", request};
  const CapturedResult whole = Cli(again);
  EXPECT_EQ(whole.out, "jobs/whole  HELD\n") << whole.err;
  EXPECT_TRUE(json::parse(Ok({"job", "get", "whole", "-o", "json"}))["spec"].contains("full"));
  EXPECT_EQ(Ok(again), "jobs/whole  HELD\n") << "the same job once more";
  EXPECT_THAT(Cli({"job", "clone", "k", "--lora.rank", "999"}).err, HasSubstr("lora.rank: 999 is out of range"));
  const std::string etag = clone["etag"];
  EXPECT_EQ(Ok({"job", "update", "k", "--priority", "5", "--label", "team=sales", "--etag", etag}), "jobs/k  HELD\n");
  EXPECT_EQ(json::parse(Ok({"job", "get", "k", "-o", "json"}))["labels"]["team"], "sales");
  const CapturedResult late = Cli({"job", "update", "k", "--priority", "6", "--etag", etag});
  EXPECT_EQ(late.exit_code, 1);
  EXPECT_THAT(late.err, HasSubstr("was changed by someone else"));
  EXPECT_EQ(Cli({"job", "update", "k"}).exit_code, 3);
  EXPECT_EQ(Cli({"job", "update", "k", "--label", "team"}).exit_code, 3);

  EXPECT_EQ(Ok({"job", "start", "k"}), "jobs/k  QUEUED\n");
  EXPECT_EQ(Ok({"queue", "show", "-o", "name"}), "jobs/k\njobs/j\n") << "five points are worth five hours";
  EXPECT_THAT(Ok({"queue", "show"}),
              AllOf(StartsWith("NAME"), testing::ContainsRegex("\nk +default +standard +5 +1 .*no node")));
  EXPECT_EQ(json::parse(Ok({"queue", "show", "--limit", "1", "-o", "json"}))["entries"].size(), 1u);

  const CapturedResult both = Cli({"job", "retry", "j", "k"});
  EXPECT_EQ(both.exit_code, 1);
  EXPECT_THAT(both.err, AllOf(HasSubstr("j: jobs/j is QUEUED"), HasSubstr("k: jobs/k is QUEUED"),
                              HasSubstr("error: 2 of 2 could not be done")));
  Ok({"job", "cancel", "k"});
  EXPECT_EQ(Ok({"job", "retry", "k"}), "jobs/k  QUEUED\n");
}

TEST_F(CliTest, ADrainedNodeGetsNothingAndCanMoveWhatItRuns) {
  AddInputs();
  ScriptedAgent agent(server_->address());
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  agent.TakeAttempt();
  EXPECT_EQ(Ok({"node", "drain", "n1"}), "nodes/n1  DRAINING\n");
  EXPECT_THAT(Ok({"job", "get", "j"}), HasSubstr("STARTING")) << "what runs goes on";
  std::thread stop([&] {
    EXPECT_TRUE(agent.TakeStop());
    agent.End(v1::AttemptEnded::STOPPED);
  });
  EXPECT_EQ(Ok({"node", "drain", "n1", "--requeue", "-o", "name"}), "nodes/n1\n");
  stop.join();
  EXPECT_THAT(
      Ok({"job", "explain", "j"}),
      AllOf(HasSubstr("QUEUED"), HasSubstr("node n1 would take it, but is drained; `luthier node undrain n1`")));
  EXPECT_THAT(Ok({"node", "list"}), HasSubstr("DRAINED"));
  EXPECT_EQ(Ok({"node", "undrain", "n1"}), "nodes/n1  READY\n");
  EXPECT_EQ(agent.TakeAttempt(), "jobs/j/attempts/2");
  EXPECT_EQ(Cli({"node", "drain", "n2"}).exit_code, 5);
}

TEST_F(CliTest, TheSameRequestIdMakesOneJob) {
  AddInputs();
  const std::string id = "11111111-2222-4333-8444-555555555555";
  const std::string first = Ok({"job", "submit", "-f", "job.yaml", "--request-id", id});
  EXPECT_EQ(Ok({"job", "submit", "-f", "job.yaml", "--request-id", id}), first);
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), first);
  const CapturedResult other = Cli({"job", "submit", "-f", "job.yaml", "--lora.rank", "4", "--request-id", id});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err, HasSubstr(id));
}

TEST_F(CliTest, ADryRunShowsEveryValueWithItsReasonAndCreatesNothing) {
  AddInputs();
  const CapturedResult result = Cli({"job", "submit", "-f", "job.yaml", "--training.epochs", "3", "--dry-run"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(StartsWith("FIELD"), HasSubstr("lora.rank"), HasSubstr("training.learning_rate"),
                                testing::ContainsRegex("training.epochs +3 +given")));
  EXPECT_EQ(Ok({"job", "list", "-o", "name"}), "");
}

TEST_F(CliTest, JobsComeFromFlagsOrFromStandardInput) {
  AddInputs();
  EXPECT_EQ(Ok({"job", "submit", "--base-model", "tiny", "--dataset", "words", "--lora.target_modules", "[q_proj]",
                "--id", "a"}),
            "jobs/a\n");
  CaptureOptions options;
  options.input = R"({"base_model": "tiny", "dataset": {"train": "words/train"}, "tuning": "full"})";
  EXPECT_EQ(Cli({"job", "submit", "-f", "-", "--id", "b", "-o", "name"}, options).out, "jobs/b\n");
  EXPECT_TRUE(json::parse(Ok({"job", "get", "b", "-o", "json"}))["spec"].contains("full"));
  WriteText(folder_.path() + "/lora.yaml", "base_model: tiny\ndataset: words\nlora: {rank: 4}\n");
  const CapturedResult changed = Cli({"job", "submit", "-f", "lora.yaml", "--tuning", "full", "--dry-run"});
  EXPECT_EQ(changed.exit_code, 0) << changed.err;
  EXPECT_THAT(changed.err, HasSubstr("lora of lora.yaml is left out"));
}

TEST_F(CliTest, DeletesADatasetThatNoJobUses) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  EXPECT_THAT(Cli({"dataset", "delete", "words"}).err, HasSubstr("jobs/j"));
  Ok({"job", "cancel", "j"});
  const CapturedResult several = Cli({"dataset", "delete", "none", "words"});
  EXPECT_EQ(several.exit_code, 5) << "that of the one that failed";
  EXPECT_EQ(several.out, "datasets/words\n") << "the other is deleted";
  EXPECT_EQ(Ok({"dataset", "list", "-o", "name"}), "");
}

TEST_F(CliTest, TakesParquetAsADatasetAndPlansAJobWithIt) {
  const std::string fixtures = std::filesystem::absolute("tests/fixtures/parquet/").string();
  Ok({"model", "import", "tiny", "base"});
  Ok({"dataset", "upload", "table", fixtures + "completion.parquet"});
  EXPECT_THAT(Ok({"dataset", "get", "table"}), HasSubstr("40"));
  Ok({"job", "submit", "--base-model", "tiny", "--dataset", "table", "--id", "of-a-table"});
  const CapturedResult wrong = Cli({"dataset", "upload", "wrong", fixtures + "chat.parquet"});
  EXPECT_EQ(wrong.exit_code, 3);
  EXPECT_THAT(wrong.err, HasSubstr("chat.parquet, row 7: messages[1].content is missing"));
}

}  // namespace
}  // namespace luthier
