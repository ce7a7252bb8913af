#include "server/rows/row_check.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/rows/child_process.h"
#include "tests/support/hostile_templates.h"
#include "tests/support/processes.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

constexpr bool kSanitized =
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    true;
#else
    false;
#endif

constexpr int64_t kGigabyte = int64_t{1} << 30;

// ChatML with tags, so that training opens no answer, and `source` where one is opened.
std::string OpeningAnswersWith(const std::string& source) {
  return absl::StrCat(
      "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
      "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
      "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}",
      source, "{{ '<|im_start|>assistant\n' }}{% endif %}");
}

// 24 rows and a base model whose template renders them.
class RowCheckTest : public testing::Test {
 protected:
  RowCheckTest() {
    WriteTinyBase(check_.base_model);
    std::string rows;
    for (int i = 0; i < 24; ++i) rows += ChatLine("row " + std::to_string(i), "good");
    AddFile("train", rows);
  }
  void AddFile(const std::string& part, const std::string& rows) {
    const std::string path = folder_.path() + "/" + part;
    WriteText(path, rows);
    check_.files.push_back({.part = part, .name = "d/" + part, .path = path});
  }
  void SetTemplateOfBase(const std::string& source) {
    WriteText(check_.base_model + "/tokenizer_config.json",
              nlohmann::json{{"eos_token", "<|im_end|>"}, {"chat_template", source}}.dump());
  }
  absl::StatusOr<DatasetFacts> CheckInChild() const { return CheckRowsInChild(LUTHIERD_PROGRAM, check_, limits_); }
  std::string Refusal() const {
    const absl::Status status = CheckInChild().status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  }
  // A program in luthierd's place.
  absl::Status CheckWith(const std::string& script) {
    const std::string program = folder_.path() + "/program";
    WriteText(program, "#!/bin/sh\n" + script + "\n");
    std::filesystem::permissions(program, std::filesystem::perms::owner_all);
    return CheckRowsInChild(program, check_, limits_).status();
  }

  TempFolder folder_;
  RowCheck check_{.base_model = folder_.path() + "/base"};
  RowCheckLimits limits_{.memory_bytes = kGigabyte, .processor_time = absl::Seconds(100), .time = absl::Seconds(100)};
};

TEST_F(RowCheckTest, InAChildItFindsWhatItFindsHere) {
  AddFile("validation", ChatLine("a longer question than all the others", "good") + ChatLine("a", "b"));
  check_.files[0].weight = 2;
  check_.encoding.max_length = 58;  // two tokens of the longest answer
  check_.encoding.too_long = EncodeOptions::TooLong::kTruncate;
  const absl::StatusOr<DatasetFacts> here = CheckRows(check_), there = CheckInChild();
  ASSERT_TRUE(here.ok()) << here.status();
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_EQ(there->rows, 48);
  EXPECT_EQ(there->rows, here->rows);
  EXPECT_GT(there->tokens, 0);
  EXPECT_EQ(there->tokens, here->tokens);
  EXPECT_EQ(there->trained_tokens, here->trained_tokens);
  EXPECT_EQ(there->longest_row, here->longest_row);
  EXPECT_EQ(there->format, "messages");
  EXPECT_EQ(there->format, here->format);
  EXPECT_TRUE(there->has_validation);
  EXPECT_GT(there->truncated, 0);
  EXPECT_EQ(there->truncated, here->truncated);
  EXPECT_EQ(there->dropped, here->dropped);
}

TEST_F(RowCheckTest, InAChildItRefusesWithTheWordsOfHere) {
  const auto expect_same = [&](const std::string& words) {
    const absl::Status here = CheckRows(check_).status();
    EXPECT_THAT(std::string(here.message()), HasSubstr(words));
    EXPECT_EQ(CheckInChild().status(), here);
  };
  check_.encoding.max_length = 8;
  expect_same("d/train:1: the row has ");
  expect_same("\n… and 4 more");
  check_.encoding.max_length = 0;
  check_.chat_template = "{{ raise_exception('not “these” words') }}";
  expect_same("not “these” words");
  check_.chat_template = "{% if %}";
  expect_same("chat_template: chat template, line 1: ");
  check_.chat_template.clear();
  SetTemplateOfBase("{% if %}");
  expect_same(check_.base_model + ": chat template, line 1: ");
  std::filesystem::remove(check_.base_model + "/tokenizer.json");
  expect_same("tokenizer.json: not found");
}

TEST_F(RowCheckTest, ALongMessageComesInPart) {
  check_.chat_template = "{{ raise_exception('ä' * 100000) }}";
  EXPECT_THAT(Refusal(), HasSubstr("d/train:1: ää"));
}

struct HostileTemplateTest : RowCheckTest, testing::WithParamInterface<HostileTemplate> {};

TEST_P(HostileTemplateTest, IsRefusedWhetherItIsTheJobsOrTheBaseModels) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer ends a program in its own way";
  check_.chat_template = GetParam().source;
  EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with it needs more than 1.1 GB of memory, or a "
                                   "deeper stack than there is; give a template that "));
  check_.chat_template.clear();
  SetTemplateOfBase(GetParam().source);
  EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with that of the base model needs more than "));
}

// Training renders whole conversations only. A question without its answer is what an evaluation renders.
TEST_P(HostileTemplateTest, IsRefusedWhereOnlyAnEvaluationWouldRenderIt) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer ends a program in its own way";
  check_.chat_template = OpeningAnswersWith(GetParam().source);
  check_.scored_rows = 200;
  EXPECT_TRUE(CheckInChild().ok()) << CheckInChild().status();
  for (const char* part : {"validation", "test"}) {
    SCOPED_TRACE(part);
    AddFile(part, ChatLine("a", "b"));
    EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with it needs more than 1.1 GB of memory, or a "
                                     "deeper stack than there is; give a template that "));
    check_.files.pop_back();
  }
}

INSTANTIATE_TEST_SUITE_P(RowCheck, HostileTemplateTest, testing::ValuesIn(HostileTemplates()),
                         [](const auto& info) { return info.param.name; });

TEST_F(RowCheckTest, OnlyRowsThatAnEvaluationScoresAreRenderedAsItDoes) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer ends a program in its own way";
  check_.chat_template = OpeningAnswersWith(
      absl::StrCat("{% if messages[-1].content == 'bad' %}", HostileTemplates().front().source, "{% endif %}"));
  AddFile("validation", absl::StrCat(ChatLine("good", "a"), "{\"text\": \"no question\"}\n", ChatLine("bad", "a")));
  check_.scored_rows = 1;
  EXPECT_TRUE(CheckInChild().ok()) << CheckInChild().status();
  check_.scored_rows = 2;
  EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with it needs more than "));
}

// As with the trainer, which says how many there are.
TEST_F(RowCheckTest, AQuestionThatTheTemplateRefusesIsARowThatIsNotScored) {
  check_.chat_template = OpeningAnswersWith("{{ raise_exception('no question') }}");
  check_.scored_rows = 200;
  AddFile("validation", ChatLine("a", "b"));
  EXPECT_TRUE(CheckInChild().ok()) << CheckInChild().status();
}

TEST_F(RowCheckTest, ATemplateThatTakesTooLongIsRefused) {
  check_.chat_template = EndlessTemplate();
  limits_.processor_time = absl::Seconds(1);
  EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with it needs more than 1s; "));
  limits_.processor_time = absl::Seconds(100);
  limits_.time = absl::Milliseconds(100);
  EXPECT_THAT(Refusal(), HasSubstr("chat_template: checking the rows with it needs more than 100ms; "));
}

TEST_F(RowCheckTest, WhatTheTemplateIsNotToBlameForIsNoRefusal) {
  const absl::Status no_answer = CheckWith("echo '{\"code\": 0}'");
  EXPECT_TRUE(absl::IsInternal(no_answer)) << no_answer;
  EXPECT_THAT(std::string(no_answer.message()), HasSubstr("its answer is none"));
  EXPECT_TRUE(absl::IsInternal(CheckWith("echo '['")));
  EXPECT_TRUE(absl::IsInternal(CheckWith("echo '{\"code\": \"three\", \"message\": \"m\"}'")));
  EXPECT_TRUE(absl::IsInternal(CheckWith("true")));
  EXPECT_THAT(std::string(CheckWith("exit 7").message()), HasSubstr("its process ended with code 7; tell who runs it"));
  EXPECT_TRUE(absl::IsUnavailable(CheckWith("kill -TERM $$")));
}

TEST_F(RowCheckTest, ItsProcessDiesWithWhoStartedIt) {
  check_.chat_template = EndlessTemplate();
  const pid_t starter = fork();
  if (starter == 0) {
    (void)CheckInChild();
    _exit(0);
  }
  const std::string command = absl::StrCat("check-rows", std::string(1, '\0'), starter);
  EXPECT_TRUE(WaitFor([&] { return !ProcessesWith(command).empty(); }));
  kill(starter, SIGKILL);
  waitpid(starter, nullptr, 0);
  EXPECT_TRUE(WaitFor([&] { return ProcessesWith(command).empty(); }, std::chrono::seconds(10)));
}

TEST_F(RowCheckTest, ItsProcessDoesNothingIfWhoStartedItIsGone) {
  const absl::StatusOr<ChildEnd> end = RunChild({LUTHIERD_PROGRAM, "check-rows", "1"}, "{}", absl::Minutes(1));
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(end->exit_code, 2);
  EXPECT_EQ(end->output, "");
}

}  // namespace
}  // namespace luthier
