#include "lib/wire/error_details.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(ErrorDetailsTest, ComeBackAsTheyWereSent) {
  const std::string bytes = SerializeErrorDetails(3, "two things",
                                                  {"INVALID",
                                                   {{"lora.rank", "0 is out of range"}, {"", "a line without a field"}},
                                                   absl::Seconds(90),
                                                   "tenants/t"});
  const ErrorDetails details = ParseErrorDetails(bytes);
  EXPECT_EQ(details.reason, "INVALID");
  EXPECT_THAT(details.violations, ElementsAre(FieldViolation{"lora.rank", "0 is out of range"},
                                              FieldViolation{"", "a line without a field"}));
  EXPECT_EQ(details.retry_delay, absl::Seconds(90));
  EXPECT_EQ(details.quota_subject, "tenants/t");
}

// As google/rpc/status.proto and error_details.proto number their fields; written out by hand once.
TEST(ErrorDetailsTest, AreTheBytesOfGoogleRpcStatus) {
  const std::string type = "type.googleapis.com/google.rpc.ErrorInfo";
  const std::string info = std::string("\x0a\x01R\x12\x07luthier", 12);
  const auto length = [](const std::string& bytes) { return std::string(1, static_cast<char>(bytes.size())); };
  const std::string any = absl::StrCat("\x0a", length(type), type, "\x12", length(info), info);
  EXPECT_EQ(SerializeErrorDetails(5, "m", {"R", {}, {}}), absl::StrCat("\x08\x05\x12\x01m\x1a", length(any), any));
}

TEST(ErrorDetailsTest, TheLinesOfAMessageAreItsViolations) {
  EXPECT_THAT(
      ViolationsIn("lora.rank: 0 is out of range: give 1\nsomething else"),
      ElementsAre(FieldViolation{"lora.rank", "0 is out of range: give 1"}, FieldViolation{"", "something else"}));
}

TEST(ErrorDetailsTest, WhatIsNotUnderstoodIsLeftOut) {
  for (const char* bytes : {"", "\xff\xff\xff", "\x1a\x05zz", "\x1a\x04\x0a\x02xy"}) {
    const ErrorDetails details = ParseErrorDetails(bytes);
    EXPECT_EQ(details.reason, "");
    EXPECT_THAT(details.violations, IsEmpty());
  }
}

}  // namespace
}  // namespace luthier
