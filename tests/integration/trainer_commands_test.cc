// The commands beside `run`: plan, export and generate.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/captured_program.h"
#include "tests/support/program.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

// The plan is the run's own: the same values and steps, without weights being read.
TEST_F(TrainerProgramTest, PlanSaysBeforehandWhatARunDoes) {
  WriteText(Out("spec.json"), LoraSpec().dump());
  const auto plan = [&](const std::vector<std::string>& more) {
    std::vector<std::string> command = {LUTHIER_TRAINER_PROGRAM, "plan", "--spec", Out("spec.json")};
    command.insert(command.end(), more.begin(), more.end());
    return RunCaptured(command);
  };
  const CapturedResult planned = plan({"--output", "json"});
  ASSERT_EQ(planned.exit_code, 0) << planned.err;
  const json report = json::parse(planned.out);
  const std::vector<json> events = Events(Train(LoraSpec(), Out("run")).output);
  const json& started = *Find(events, "started");
  EXPECT_EQ(report["total_steps"], started["total_steps"]);
  EXPECT_EQ(report["resolved"], started["resolved"]);
  EXPECT_EQ(report["rows"], started["train_rows"]);
  EXPECT_EQ(report["tokens"], started["train_tokens"]);
  EXPECT_LE(report["largest_micro_batch"], 200);
  EXPECT_GT(report["time"]["seconds"], 0);

  const json measured = json::parse(plan({"--output", "json", "--measure"}).out);
  EXPECT_THAT(measured["time"]["reason"].get<std::string>(), HasSubstr("2 steps were timed here"));
  const double peak = measured["memory_bytes"]["measured"], estimate = measured["memory_bytes"]["total"];
  EXPECT_GT(peak, 0.5 * estimate);
  EXPECT_LT(peak, 2 * estimate);
  const std::string text = plan({}).out;
  for (const char* part : {"memory   about", "rows     24 of", "steps    ", "time     about", "lora.rank", "given"})
    EXPECT_THAT(text, HasSubstr(part));

  json bad = LoraSpec();
  bad["lora"]["rank"] = 0;
  WriteText(Out("spec.json"), bad.dump());
  const CapturedResult refused = plan({});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("lora.rank"));
}

// `export --out BASE` once deleted the base's weights.
TEST_F(TrainerProgramTest, ExportAndRunNeverTouchWhatTheyRead) {
  ASSERT_EQ(Train(LoraSpec(), Out("run")).exit_code, 0);
  std::filesystem::copy(base_, Out("base"));
  const std::string adapter = Out("run") + "/adapter", weights = ReadText(Out("base") + "/model.safetensors");
  const auto export_to = [&](const std::string& format, const std::string& place) {
    return RunCaptured({LUTHIER_TRAINER_PROGRAM, "export", "--base", Out("base"), "--adapter", adapter, "--format",
                        format, "--out", place});
  };
  std::filesystem::create_directory(Out("notes"));
  WriteText(Out("notes") + "/thesis.txt", "mine");
  for (const std::string& place :
       {Out("base"), Out("base") + "/merged", folder_.path(), adapter, Out("run"), Out("notes")}) {
    const CapturedResult refused = export_to("merged", place);
    EXPECT_EQ(refused.exit_code, 1) << place;
    EXPECT_THAT(refused.err, HasSubstr("--out: " + place)) << place;
  }
  EXPECT_EQ(export_to("gguf", Out("base") + "/model.safetensors").exit_code, 1);
  EXPECT_EQ(export_to("gguf", Out("notes") + "/thesis.txt").exit_code, 1);
  EXPECT_EQ(ReadText(Out("base") + "/model.safetensors"), weights);
  EXPECT_EQ(ReadText(Out("notes") + "/thesis.txt"), "mine");
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(export_to("merged", Out("merged")).exit_code, 0);
    EXPECT_EQ(export_to("gguf", Out("adapter.gguf")).exit_code, 0);
  }

  json spec = LoraSpec();
  spec["base_model"] = Out("base");
  for (const std::string& out : {Out("base"), Out("base") + "/run"}) {
    WriteText(Out("spec.json"), spec.dump());
    const ProgramResult refused =
        RunProgram({LUTHIER_TRAINER_PROGRAM, "run", "--spec", Out("spec.json"), "--out", out});
    EXPECT_EQ(refused.exit_code, 1);
    const std::vector<json> events = Events(refused.output);
    EXPECT_EQ(events.back()["cause"], "CONFIG");
    EXPECT_EQ(events.back()["attempt"], "jobs/j/attempts/1");
    EXPECT_THAT(events.back()["message"].get<std::string>(), HasSubstr("base_model"));
  }
  WriteText(Out("notes") + "/report.json", "mine");
  EXPECT_EQ(Train(spec, Out("notes")).exit_code, 1);
  EXPECT_EQ(ReadText(Out("notes") + "/report.json"), "mine");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(Out("base")), {}),
            std::distance(std::filesystem::directory_iterator(base_), {}));
}

// As the agent asks for it. A job's own template, its date in it, goes with both forms.
TEST_F(TrainerProgramTest, ARunExportsAnAdapterAsTheCommandDoes) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 2;
  spec["chat_template"] =
      "{{ strftime_now('%d %B %Y') }}"
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  spec["template_date"] = "2025-01-31";
  const ProgramResult trained = Train(spec, Out("run"));
  ASSERT_EQ(trained.exit_code, 0) << trained.output;
  const std::string adapter = Out("run") + "/adapter", own_template = ReadText(adapter + "/chat_template.jinja");
  ASSERT_THAT(own_template, HasSubstr("2025"));
  const auto run_export = [&](const std::string& form) {
    const json exported = {{"protocol", 1},
                           {"attempt", "jobs/x/attempts/1"},
                           {"base_model", base_},
                           {"start_adapter", adapter},
                           {"export", form}};
    return Train(exported, Out(form));
  };
  const auto command = [&](const std::string& form, const std::string& place) {
    EXPECT_EQ(RunProgram({LUTHIER_TRAINER_PROGRAM, "export", "--base", base_, "--adapter", adapter, "--format", form,
                          "--out", place})
                  .exit_code,
              0);
  };

  command("merged", Out("by-command"));
  command("gguf", Out("by-command.gguf"));
  for (int attempt = 0; attempt < 2; ++attempt) {  // the second finds what the first left
    const ProgramResult merged = run_export("merged");
    ASSERT_EQ(merged.exit_code, 0) << merged.output;
    const std::vector<json> events = Events(merged.output);
    EXPECT_EQ((*Find(events, "started"))["export"], "merged");
    EXPECT_EQ(events.back()["event"], "finished");
    EXPECT_EQ(events.back()["artifact"]["kind"], "model");
    EXPECT_GT(events.back()["artifact"]["bytes"], 0);
    for (const char* file : {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                             "tokenizer_config.json", "chat_template.jinja"}) {
      EXPECT_EQ(ReadText(Out("merged") + "/model/" + file), ReadText(Out("by-command") + "/" + file)) << file;
    }
    EXPECT_EQ(ReadText(Out("merged") + "/model/chat_template.jinja"), own_template);

    const ProgramResult gguf = run_export("gguf");
    ASSERT_EQ(gguf.exit_code, 0) << gguf.output;
    EXPECT_EQ(Events(gguf.output).back()["artifact"]["kind"], "gguf_adapter");
    const std::string bytes = ReadText(Out("gguf") + "/gguf_adapter/adapter.gguf");
    EXPECT_EQ(bytes.substr(0, 4), "GGUF");
    EXPECT_EQ(bytes, ReadText(Out("by-command.gguf")));
    EXPECT_EQ(ReadText(Out("gguf") + "/gguf_adapter/chat_template.jinja"), own_template);
  }
  const CapturedResult plan = RunCaptured({LUTHIER_TRAINER_PROGRAM, "plan", "--spec", Out("gguf") + ".spec.json"});
  EXPECT_EQ(plan.exit_code, 1);
  EXPECT_THAT(plan.err, HasSubstr("export: takes no steps"));
}

// Several tasks on one base: which adapter answers is said for all questions, or for each.
TEST_F(TrainerProgramTest, GenerateChoosesAdaptersAndStopsAtStrings) {
  json spec = LoraSpec();
  spec["training"]["max_steps"] = 2;
  ASSERT_EQ(Train(spec, Out("run")).exit_code, 0);
  const std::string adapter = Out("run") + "/adapter";
  const auto generate = [&](const std::vector<std::string>& more) {
    std::vector<std::string> command = {
        LUTHIER_TRAINER_PROGRAM, "generate",  "--base",       base_,           "--adapter",
        "a=" + adapter,          "--adapter", "b=" + adapter, "--temperature", "1",
        "--max-new-tokens",      "24",        "-o",           "json"};
    command.insert(command.end(), more.begin(), more.end());
    return RunCaptured(command);
  };
  const std::vector<json> both = Events(generate({"--prompt", "row 1"}).out);
  ASSERT_EQ(both.size(), 2u);
  const std::vector<json> one = Events(generate({"--prompt", "row 1", "--use", "b"}).out);
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0]["model"], "b");
  EXPECT_EQ(one[0]["answer"], both[1]["answer"]);
  EXPECT_THAT(generate({"--prompt", "row 1", "--use", "c"}).err,
              HasSubstr("'c' is not loaded; give one of base, a, b"));

  WriteText(Out("questions"), R"({"prompt": "row 1", "adapter": "b"}
{"prompt": "row 1", "adapter": "base"}
{"prompt": "row 2"}
{"prompt": "row 1", "adaptor": "b"}
)");
  const CapturedResult lines =
      RunCaptured({"/bin/sh", "-c",
                   std::string(LUTHIER_TRAINER_PROGRAM) + " generate --base " + base_ + " --adapter a=" + adapter +
                       " --adapter b=" + adapter +
                       " --temperature 1 --max-new-tokens 24 -o json --use a --input json < " + Out("questions")});
  const std::vector<json> answers = Events(lines.out);
  ASSERT_EQ(answers.size(), 3u) << lines.err;
  EXPECT_EQ(answers[0], one[0]);
  EXPECT_EQ(answers[1]["model"], "base");
  EXPECT_EQ(answers[2]["model"], "a");
  EXPECT_THAT(lines.err, HasSubstr("line 4"));
  EXPECT_THAT(lines.err, HasSubstr("adaptor"));

  const std::string whole = one[0]["answer"];
  ASSERT_GT(whole.size(), 8u);
  const std::string stop = whole.substr(3, 4);  // lies across tokens, which are bytes here
  ASSERT_EQ(stop.find('\0'), std::string::npos);
  const std::vector<json> stopped =
      Events(generate({"--prompt", "row 1", "--use", "b", "--stop", "never", "--stop", stop}).out);
  EXPECT_EQ(stopped[0]["answer"], whole.substr(0, whole.find(stop)));
}

TEST_F(TrainerProgramTest, GenerateRefusesFlagsByNameAndValueWithARemedy) {
  const std::pair<const char*, const char*> flags[] = {
      {"--top-p", "0"},  {"--top-p", "1.5"}, {"--temperature", "nan"},  {"--temperature", "-1"},
      {"--top-k", "-5"}, {"--seed", "-1"},   {"--max-new-tokens", "0"}, {"--repetition-penalty", "0"},
      {"--stop", ""}};
  for (const auto& [flag, value] : flags) {
    const CapturedResult refused =
        RunCaptured({LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_, "--prompt", "x", flag, value});
    EXPECT_EQ(refused.exit_code, 2) << flag << " " << value;
    EXPECT_THAT(refused.err, HasSubstr(std::string(flag) + ": " + value)) << flag << " " << value;
    EXPECT_THAT(refused.err, HasSubstr("; give")) << flag << " " << value;
  }
  for (const auto& [first, second] : {std::pair("x", "y"), std::pair("a=x", "a=y"), std::pair("b=x", "base=y")}) {
    const CapturedResult refused = RunCaptured({LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_, "--prompt", "x",
                                                "--adapter", first, "--adapter", second});
    EXPECT_EQ(refused.exit_code, 2);
    EXPECT_THAT(refused.err, HasSubstr(std::string("--adapter: ") + second)) << first;
    EXPECT_THAT(refused.err, HasSubstr("NAME=FOLDER")) << first;
  }
}

TEST_F(TrainerProgramTest, GenerateNamesTheLineOfAPromptThatIsNotUtf8) {
  const std::vector<std::string> command = {LUTHIER_TRAINER_PROGRAM, "generate", "--base", base_,
                                            "--max-new-tokens",      "2",        "-o",     "json"};
  const CapturedResult lines = RunCaptured(command, {.input = "row 1\n\xE9t\xE9\nrow 2\n"});
  EXPECT_EQ(lines.exit_code, 2);
  EXPECT_EQ(Events(lines.out).size(), 1u);
  EXPECT_EQ(lines.err, "error: standard input, line 2: invalid UTF-8 at byte 1; save it as UTF-8\n");
  std::vector<std::string> flag = command;
  flag.insert(flag.end(), {"--prompt", "caf\xE9"});
  EXPECT_THAT(RunCaptured(flag).err, HasSubstr("error: --prompt: invalid UTF-8 at byte 4"));
}

TEST_F(TrainerProgramTest, OutputThatCannotBeWrittenIsAFailure) {
  const std::string generate = "generate --max-new-tokens 1 --prompt x --base " + base_;
  for (const std::string& command : {std::string("version"), std::string("--help"), generate}) {
    const CapturedResult lost =
        RunCaptured({"/bin/sh", "-c", std::string(LUTHIER_TRAINER_PROGRAM) + " " + command + " > /dev/full"});
    EXPECT_EQ(lost.exit_code, 1) << command;
    EXPECT_THAT(lost.err, HasSubstr("the output cannot be written")) << command;
  }
}

}  // namespace
}  // namespace luthier
