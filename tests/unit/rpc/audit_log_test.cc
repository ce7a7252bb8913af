// What the audit log says of calls, and what its files hold.
#include "server/rpc/audit_log.h"

#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/unit/rpc/access_fixture.h"

namespace luthier {
namespace {

using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(AccessTest, NotesWhatChangesAndWhatIsRefusedWithoutAnySecret) {
  RequireTokens();
  const std::string viewer = Make("viewer", v1::ROLE_VIEWER, "a");
  v1::FineTuningJob job;
  v1::CancelFineTuningJobRequest request;
  request.set_name("jobs/j");
  CallAs(viewer, *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, request, job);
  GetJob(viewer, "j", job);
  v1::SignModelVersionUrlsRequest sharing;
  sharing.set_name("models/j/versions/1");
  v1::SignModelVersionUrlsResponse urls;
  CallAs(viewer, *models_, &v1::ModelService::Stub::SignModelVersionUrls, sharing, urls);
  CallAs("guessed-secret", *jobs_, &v1::FineTuningService::Stub::CancelFineTuningJob, request, job);
  std::vector<std::string> notes;
  for (const nlohmann::json& line : AuditLines()) {
    notes.push_back(absl::StrCat(line["token"].get<std::string>(), " ", line["method"].get<std::string>(), " ",
                                 line["subject"].get<std::string>(), " ", line["code"].get<std::string>()));
    for (const std::string& secret : {root_, viewer, std::string("guessed-secret")})
      EXPECT_THAT(line.dump(), Not(HasSubstr(secret)));
  }
  EXPECT_THAT(notes, ElementsAre(" CreateToken tokens/root OK", "root CreateToken tokens/viewer OK",
                                 "viewer CancelFineTuningJob  PERMISSION_DENIED",
                                 "viewer SignModelVersionUrls models/j/versions/1 NOT_FOUND",
                                 " CancelFineTuningJob  UNAUTHENTICATED"));
  // Nor does the database hold a secret.
  for (const char* name : {"/luthier.db", "/luthier.db-wal"}) {
    std::ifstream file(folder_.path() + name, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_THAT(bytes, Not(HasSubstr(root_))) << name;
  }
}

// Else a thousand calls would push every other line out of the files that are kept.
TEST_F(AccessTest, ACallerCannotFillTheAuditLogWithALongName) {
  RequireTokens();
  v1::RevokeTokenRequest request;
  request.set_name("tokens/" + std::string(1'000'000, 'a'));
  v1::Token token;
  EXPECT_EQ(CallAs(root_, *admin_, &v1::AdminService::Stub::RevokeToken, request, token).error_code(),
            StatusCode::INVALID_ARGUMENT);
  const nlohmann::json last = AuditLines().back();
  EXPECT_EQ(last["method"], "RevokeToken");
  EXPECT_EQ(last["subject"].get<std::string>().size(), 1024u);
}

TEST(AuditLogTest, KeepsTheNewestLinesInSoManyFilesOfSoManyBytes) {
  const TempFolder folder;
  const AuditLog::Options options{.path = folder.path() + "/audit.log", .max_bytes = 100, .files = 3};
  const auto text_of = [&](const std::string& suffix) {
    std::ifstream file(options.path + suffix);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  };
  for (int line = 0; line < 40; line += 20) {  // and goes on after a restart
    AuditLog log(options);
    for (int i = line; i < line + 20; ++i) log.Append(absl::StrCat("a line with the number ", i));
  }
  std::string expected;
  const std::string kept = text_of(".2") + text_of(".1") + text_of("");
  const auto count = std::count(kept.begin(), kept.end(), '\n');
  EXPECT_GE(count, 7) << "two files are full";
  for (auto i = 40 - count; i < 40; ++i) absl::StrAppend(&expected, "a line with the number ", i, "\n");
  EXPECT_EQ(kept, expected);
  for (const char* suffix : {"", ".1", ".2"}) {
    EXPECT_LE(text_of(suffix).size(), 100u);
    struct stat found = {};
    ASSERT_EQ(stat((options.path + suffix).c_str(), &found), 0);
    EXPECT_EQ(found.st_mode & 0777, 0600u);
  }
  EXPECT_FALSE(std::ifstream(options.path + ".3").is_open());
}

TEST(AuditLogTest, GoesOnOnceItCanBeOpened) {
  const TempFolder folder;
  AuditLog log({.path = folder.path() + "/later/audit.log"});
  log.Append("lost");
  std::filesystem::create_directory(folder.path() + "/later");
  log.Append("kept");
  std::ifstream file(folder.path() + "/later/audit.log");
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), "kept\n");
}

// A file that may not grow stands for a disk that is full in the middle of a line.
TEST(AuditLogTest, ALineThatTheDiskTookHalfOfIsNotThere) {
  const TempFolder folder;
  AuditLog log({.path = folder.path() + "/audit.log"});
  log.Append("a whole line");
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto ignored = signal(SIGXFSZ, SIG_IGN);
  struct rlimit full = before;
  full.rlim_cur = 20;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  log.Append("one that the disk has no room for");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, ignored);
  log.Append("another");
  std::ifstream file(folder.path() + "/audit.log");
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(file)), {}), "a whole line\nanother\n");
}

}  // namespace
}  // namespace luthier
