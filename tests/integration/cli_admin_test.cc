// What admins do: tokens, and checks of the server's data.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/ascii.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli_fixture.h"
#include "tests/support/captured_program.h"

namespace luthier {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(CliTest, OnceThereIsATokenEveryCallNeedsOneAndSeesItsTenantOnly) {
  AddInputs();
  const auto with = [](const std::string& secret) {
    CaptureOptions options;
    options.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
    return options;
  };
  EXPECT_EQ(Cli({"admin", "token", "create", "alice", "--role", "member", "--tenant", "support"}).exit_code, 1)
      << "the first is an admin's";
  const CapturedResult created = Cli({"admin", "token", "create", "root", "--role", "admin"});
  EXPECT_EQ(created.exit_code, 0) << created.err;
  EXPECT_THAT(created.out, testing::MatchesRegex("[0-9a-f]{64}\n"));
  const CapturedResult refused = Cli({"job", "list"});
  EXPECT_EQ(refused.exit_code, 4);
  EXPECT_THAT(refused.err, HasSubstr("LUTHIER_TOKEN"));
  const CaptureOptions root = with(created.out);
  EXPECT_EQ(Cli({"job", "list"}, root).exit_code, 0);
  CaptureOptions written_on_windows, of_the_docs;
  written_on_windows.environment = {{"LUTHIER_TOKEN", root.environment[0].second + "\r\n"}};
  EXPECT_EQ(Cli({"job", "list"}, written_on_windows).exit_code, 0);
  of_the_docs.environment = {{"LUTHIER_TOKEN", "…"}};
  const CapturedResult no_token = Cli({"job", "list"}, of_the_docs);
  EXPECT_EQ(no_token.exit_code, 3);
  EXPECT_THAT(no_token.err, HasSubstr("LUTHIER_TOKEN: holds characters that no token has"));
  const CaptureOptions alice =
      with(Cli({"admin", "token", "create", "alice", "--role", "member", "--tenant", "support"}, root).out);

  EXPECT_EQ(Cli({"job", "submit", "-f", "job.yaml", "--id", "j"}, alice).exit_code, 5)
      << "the rows are another tenant's";
  EXPECT_EQ(Cli({"dataset", "upload", "hers", "rows"}, alice).out, "datasets/hers\n");
  EXPECT_EQ(Cli({"job", "submit", "-f", "job.yaml", "--dataset", "hers", "--id", "j"}, alice).exit_code, 0);
  EXPECT_EQ(json::parse(Cli({"job", "get", "j", "-o", "json"}, root).out)["tenant"], "support");
  EXPECT_EQ(Cli({"dataset", "list", "-o", "name"}, alice).out, "datasets/hers\n");
  EXPECT_EQ(Cli({"model", "import", "more", "base"}, alice).exit_code, 4)
      << "members read no folders of the server's machine";
  EXPECT_EQ(Cli({"admin", "token", "list", "-o", "name"}, root).out, "tokens/alice\ntokens/root\n");
  WriteText(folder_.path() + "/root.token", root.environment.back().second + "\n");
  Ok({"context", "set", "lab", "--server", server_->address(), "--token-file", "root.token"});
  EXPECT_EQ(Ok({"admin", "token", "list", "--context", "lab", "-o", "name"}), "tokens/alice\ntokens/root\n")
      << "by the token of the context";
  EXPECT_EQ(Cli({"context", "set", "lab", "--server", server_->address(), "--token-file", "none"}).exit_code, 3);

  server_->Kill();
  server_->Start();
  EXPECT_EQ(Cli({"job", "list"}).exit_code, 4) << "what was made is on record";
  EXPECT_EQ(Cli({"job", "list", "-o", "name"}, alice).out, "jobs/j\n");
  EXPECT_EQ(Cli({"admin", "token", "revoke", "alice"}, root).out, "tokens/alice\n");
  EXPECT_EQ(Cli({"job", "list"}, alice).exit_code, 4);
}

TEST_F(CliTest, DataIsCheckedWithAndWithoutItsServer) {
  AddInputs();
  Ok({"job", "submit", "-f", "job.yaml", "--id", "j"});
  EXPECT_THAT(Cli({"admin", "check"}).err, HasSubstr("nothing is damaged"));
  const CapturedResult nowhere = Cli({"admin", "backup", "--to", "/proc/none"});
  EXPECT_EQ(nowhere.exit_code, 1);
  EXPECT_THAT(nowhere.err, AllOf(HasSubstr("path: /proc/none"), HasSubstr("give another folder")));
  const json served = json::parse(Ok({"admin", "check", "-o", "json"}));
  const CapturedResult busy = Cli({"admin", "check", "--data-dir", "server"});
  EXPECT_EQ(busy.exit_code, 1) << "a server uses it";
  server_->Kill();
  const CapturedResult offline = Cli({"admin", "check", "--data-dir", "server"});
  EXPECT_EQ(offline.exit_code, 0) << offline.err;
  EXPECT_EQ(offline.out, "ok\n");
  EXPECT_THAT(offline.err, AllOf(HasSubstr("1 jobs and "), HasSubstr("nothing is damaged")));
  const json found = json::parse(Ok({"admin", "check", "--data-dir", "server", "-o", "json"}));
  EXPECT_EQ(found["jobs"], "1");
  EXPECT_EQ(found["files"], served["files"]);
  EXPECT_EQ(Ok({"admin", "check", "--data-dir", "server", "-o", "name"}), "ok\n");
  EXPECT_THAT(Ok({"admin", "check", "--data-dir", "server", "-o", "yaml"}), HasSubstr("jobs: "));
}

TEST_F(CliTest, ALostSecretOfAnAdminIsReplacedOnTheServersMachine) {
  const auto with = [](const std::string& secret) {
    CaptureOptions options;
    options.environment = {{"LUTHIER_TOKEN", std::string(absl::StripAsciiWhitespace(secret))}};
    return options;
  };
  const auto replace = [&] {
    return RunCaptured({LUTHIER_BIN "/luthierd", "admin-token", "root", "--data-dir", folder_.path() + "/server"});
  };
  const std::string lost = Ok({"admin", "token", "create", "root", "--role", "admin"});
  EXPECT_EQ(replace().exit_code, 1) << "a server uses the folder";
  server_->Kill();
  const CapturedResult made = replace();
  EXPECT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.out, testing::MatchesRegex("[0-9a-f]{64}\n"));
  server_->Start();
  EXPECT_EQ(Cli({"job", "list"}, with(lost)).exit_code, 4) << "it may be in wrong hands";
  EXPECT_EQ(Cli({"admin", "token", "list", "-o", "name"}, with(made.out)).out, "tokens/root\n");
}

}  // namespace
}  // namespace luthier
