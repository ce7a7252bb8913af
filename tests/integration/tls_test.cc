// Encrypted connections with certificates of one's own, and tokens over them: real server, agent and CLI.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/private_ca.h"
#include "tests/support/captured_program.h"
#include "tests/support/luthierd.h"
#include "tests/support/temp_folder.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Variables = std::vector<std::pair<std::string, std::string>>;

class TlsTest : public testing::Test {
 protected:
  void SetUp() override { MakeCa("tls"); }
  void MakeCa(const std::string& name) {
    const CapturedResult made =
        Cli({"admin", "tls", "init", "--to", Path(name), "--host", "example.org", "--host", "10.0.0.1"});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  std::unique_ptr<Luthierd> Start(bool mutual, const std::vector<std::string>& more = {},
                                  const std::vector<std::string>& environment = {},
                                  const std::string& listen = "127.0.0.1:0") {
    std::vector<std::string> arguments = {
        "--listen",   listen,       "--metrics-listen",     "127.0.0.1:0", "--data-dir",
        Path("data"), "--tls-cert", Path("tls/server.pem"), "--tls-key",   Path("tls/server.key")};
    if (mutual) arguments.insert(arguments.end(), {"--tls-client-ca", Path("tls/ca.pem")});
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto server = std::make_unique<Luthierd>(LUTHIER_BIN "/luthierd", arguments, environment);
    EXPECT_TRUE(server->Serves()) << server->log();
    return server;
  }
  CapturedResult Cli(std::vector<std::string> arguments, const Variables& variables = {}) {
    arguments.insert(arguments.begin(), LUTHIER_BIN "/luthier");
    CaptureOptions options;
    options.environment = {{"XDG_CONFIG_HOME", Path("config")}};
    options.environment.insert(options.environment.end(), variables.begin(), variables.end());
    return RunCaptured(arguments, options);
  }
  int List(Luthierd& server, const Variables& variables) {
    return Cli({"job", "list", "--server", server.address()}, variables).exit_code;
  }
  Variables Authority(const std::string& name = "tls") const { return {{"LUTHIER_TLS_CA", Path(name + "/ca.pem")}}; }
  Variables Certificate(const std::string& name = "tls") const {
    Variables variables = Authority();
    variables.emplace_back("LUTHIER_TLS_CERT", Path(name + "/client.pem"));
    variables.emplace_back("LUTHIER_TLS_KEY", Path(name + "/client.key"));
    return variables;
  }
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  TempFolder folder_;
};

TEST_F(TlsTest, KeysAreTheirOwnersOnlyAndNothingIsOverwritten) {
  for (const char* name : {"tls/ca.key", "tls/server.key", "tls/client.key"}) {
    EXPECT_EQ(fs::status(Path(name)).permissions(), fs::perms::owner_read | fs::perms::owner_write) << name;
  }
  const CapturedResult again = Cli({"admin", "tls", "init", "--to", Path("tls")});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_EQ(Cli({"admin", "tls", "init", "--to", Path("other"), "--host", "a host:7070"}).exit_code, 3);
  EXPECT_FALSE(fs::exists(Path("other")));
}

TEST_F(TlsTest, TakesEncryptedConnectionsOnlyAndCallersKnowTheServer) {
  MakeCa("foreign");
  const auto server = Start(/*mutual=*/false);
  EXPECT_EQ(List(*server, Authority()), 0);
  EXPECT_EQ(List(*server, {}), 6) << "plain text";
  EXPECT_EQ(List(*server, Authority("foreign")), 6) << "somebody else's server";
  for (const Variables& wrong : {Variables(), Authority("foreign")})
    EXPECT_THAT(Cli({"job", "list", "--server", server->address()}, wrong).err, HasSubstr("set LUTHIER_TLS_CA"));
  const CapturedResult unreadable =
      Cli({"job", "list", "--server", server->address()}, {{"LUTHIER_TLS_CA", Path("nowhere.pem")}});
  EXPECT_EQ(unreadable.exit_code, 3);
  EXPECT_THAT(unreadable.err, HasSubstr("LUTHIER_TLS_CA"));
}

TEST_F(TlsTest, AFolderWithoutRoomForTheSocketOfTheAgentIsNamed) {
  Luthierd server(LUTHIER_BIN "/luthierd", {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                                            "--with-local-worker", "--data-dir", Path(std::string(120, 'd')),
                                            "--tls-cert", Path("tls/server.pem"), "--tls-key", Path("tls/server.key")});
  EXPECT_EQ(server.Wait(), 1);
  EXPECT_THAT(server.log(), HasSubstr("is too long a path for the socket"));
}

TEST_F(TlsTest, WantsACertificateOfItsAuthorityIfItIsToldSo) {
  MakeCa("foreign");
  const auto server = Start(/*mutual=*/true);
  EXPECT_EQ(List(*server, Certificate()), 0);
  EXPECT_EQ(List(*server, Authority()), 6) << "no certificate";
  EXPECT_EQ(List(*server, Certificate("foreign")), 6) << "another authority's certificate";
}

TEST_F(TlsTest, ACertificateThatIsReplacedCountsForNewConnectionsWithoutARestart) {
  const auto server = Start(/*mutual=*/false);
  MakeCa("next");
  ASSERT_EQ(List(*server, Authority()), 0);
  ASSERT_EQ(List(*server, Authority("next")), 6);
  for (const char* file : {"server.key", "server.pem"})
    fs::rename(Path(absl::StrCat("next/", file)), Path(absl::StrCat("tls/", file)));
  EXPECT_TRUE(WaitFor([&] { return List(*server, Authority("next")) == 0; })) << server->log();
}

// Made 900 days ago, for 825. Callers trust both authorities: only the dates are wrong.
TEST_F(TlsTest, ACertificateThatHasExpiredIsRefusedOnBothSides) {
  ASSERT_TRUE(WritePrivateCa(Path("old"), {}, absl::Now() - absl::Hours(24 * 900)).ok());
  MakeCa("new");
  std::ofstream both(Path("both.pem"));
  for (const char* from : {"old", "new"}) both << std::ifstream(Path(absl::StrCat(from, "/ca.pem"))).rdbuf();
  both.close();
  const auto take = [&](const std::string& from) {
    for (const char* file : {"server.key", "server.pem"}) {
      fs::copy_file(Path(absl::StrCat(from, "/", file)), Path("next"));
      fs::rename(Path("next"), Path(absl::StrCat("tls/", file)));
    }
  };
  const auto caller = [&](const std::string& certificate) {
    return Variables{{"LUTHIER_TLS_CA", Path("both.pem")},
                     {"LUTHIER_TLS_CERT", Path(certificate + "/client.pem")},
                     {"LUTHIER_TLS_KEY", Path(certificate + "/client.key")}};
  };
  take("old");
  Luthierd refused(LUTHIER_BIN "/luthierd",
                   {"--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", Path("data"),
                    "--tls-cert", Path("tls/server.pem"), "--tls-key", Path("tls/server.key")});
  EXPECT_EQ(refused.Wait(), 1);
  EXPECT_THAT(refused.log(), AllOf(HasSubstr(Path("tls/server.pem") + " expired at "), HasSubstr("admin tls init")));

  take("new");
  const auto server = Start(/*mutual=*/false, {"--tls-client-ca", Path("both.pem")});
  EXPECT_EQ(List(*server, caller("new")), 0) << server->log();
  EXPECT_EQ(List(*server, caller("old")), 6) << "the caller's has expired";
  const auto days_left = [&] {
    const std::string metrics = server->Metrics(), name = "\nluthier_tls_certificate_expiry_timestamp_seconds ";
    const size_t at = metrics.find(name);
    return at == std::string::npos
               ? 0
               : (std::stod(metrics.substr(at + name.size())) - absl::ToUnixSeconds(absl::Now())) / 86400;
  };
  EXPECT_NEAR(days_left(), 825, 1);
  // It expires while the server runs: a new one needs no restart.
  take("old");
  EXPECT_TRUE(WaitFor([&] { return List(*server, caller("new")) == 6; })) << server->log();
  EXPECT_NEAR(days_left(), 825 - 900, 1);
  take("new");
  EXPECT_TRUE(WaitFor([&] { return List(*server, caller("new")) == 0; })) << server->log();
}

TEST_F(TlsTest, TheSecretOfATokenIsWrittenNowhere) {
  const auto server = Start(/*mutual=*/false);
  const auto cli = [&](std::vector<std::string> arguments, const Variables& variables) {
    arguments.insert(arguments.end(), {"--server", server->address()});
    return Cli(arguments, variables);
  };
  Variables root = Authority();
  const std::string secret(
      absl::StripAsciiWhitespace(cli({"admin", "token", "create", "root", "--role", "admin"}, root).out));
  ASSERT_EQ(secret.size(), 64u);
  root.emplace_back("LUTHIER_TOKEN", secret);
  std::string said = server->log() + server->Metrics();
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"admin", "token", "list", "-o", "json"}, {"job", "get", "none"}, {"node", "list"}}) {
    const CapturedResult result = cli(command, root);
    said += result.out + result.err;
  }
  said += cli({"job", "list"}, {Authority()[0], {"LUTHIER_TOKEN", secret + "x"}}).err + server->log();
  EXPECT_THAT(said, AllOf(HasSubstr("tokens/root"), Not(HasSubstr(secret))));
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(Path("data"))) {
    if (!entry.is_regular_file()) continue;
    std::ifstream stream(entry.path(), std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(stream)), {});
    EXPECT_THAT(content, Not(HasSubstr(secret))) << entry.path();
    ++files;
  }
  EXPECT_GT(files, 2);
}

// Handshakes that were begun and left.
TEST_F(TlsTest, ServesWhileHundredsOfConnectionsSayNothing) {
  const auto server = Start(/*mutual=*/false);
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  where.sin_port = htons(static_cast<uint16_t>(std::stoi(server->address().substr(server->address().rfind(':') + 1))));
  std::vector<int> silent;
  for (int i = 0; i < 500; ++i) {
    silent.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(silent.back(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << i;
  }
  EXPECT_EQ(List(*server, Authority()), 0);
  // Each holds a file of the server's until its time is over.
  const auto is_closed = [](int fd) {
    char byte;
    return recv(fd, &byte, 1, MSG_DONTWAIT) == 0;
  };
  EXPECT_TRUE(WaitFor([&] { return std::all_of(silent.begin(), silent.end(), is_closed); })) << server->log();
  for (const int fd : silent) close(fd);
}

// One of gRPC's threads may be at a handshake when a program ends.
TEST_F(TlsTest, ProgramsEndAsTheyShouldWhileAThreadIsStillAtAHandshake) {
  const auto server = Start(/*mutual=*/true, {}, {"LD_PRELOAD=" LUTHIER_LATE_HANDSHAKE});
  Variables known = Certificate(), unknown = Authority();
  for (Variables* variables : {&known, &unknown}) variables->emplace_back("LD_PRELOAD", LUTHIER_LATE_HANDSHAKE);
  EXPECT_EQ(List(*server, known), 0);
  EXPECT_EQ(List(*server, unknown), 6);

  CaptureOptions options;
  options.environment = known;
  options.on_output = [](const CapturedResult& so_far, pid_t agent) {
    if (so_far.err.find("metrics on port") != std::string::npos) kill(agent, SIGTERM);
  };
  const CapturedResult agent = RunCaptured({LUTHIER_BIN "/luthier-worker", "--server", server->address(), "--data-dir",
                                            Path("agent"), "--trainer", "/bin/true", "--metrics-listen", "127.0.0.1:0"},
                                           options);
  EXPECT_EQ(agent.exit_code, 0) << agent.err;
  EXPECT_EQ(server->End(SIGTERM), 0) << server->log();
}

// Between its looks a watch sleeps, and while all sleep nobody reads what the server says in a handshake.
TEST_F(TlsTest, AWatchedListGoesOnAfterARestartOfTheServer) {
  auto server = Start(/*mutual=*/false);
  const std::string address = server->address();
  const auto set_tenant = [&](const char* name) {
    EXPECT_EQ(Cli({"tenant", "set", name, "--weight", "2", "--server", address}, Authority()).exit_code, 0);
  };
  set_tenant("early");
  enum { kRuns, kGone, kIsBack, kInterrupted } stage = kRuns;
  CaptureOptions options;
  options.environment = Authority();
  options.on_output = [&](const CapturedResult& result, pid_t pid) {
    if (stage == kRuns && absl::StrContains(result.out, "early")) {
      stage = kGone;
      server->End(SIGKILL);
    } else if (stage == kGone && absl::StrContains(result.err, "waiting for it")) {
      stage = kIsBack;
      server = Start(/*mutual=*/false, {}, {}, address);
      set_tenant("late");
    } else if (stage == kIsBack && absl::StrContains(result.out, "late")) {
      stage = kInterrupted;
      kill(pid, SIGINT);
    }
  };
  const CapturedResult watch =
      RunCaptured({LUTHIER_BIN "/luthier", "tenant", "list", "--watch", "--server", address}, options);
  EXPECT_EQ(watch.exit_code, 0) << watch.err;
  EXPECT_EQ(stage, kInterrupted) << watch.out << watch.err;
}

// The agent beside the server needs neither certificate nor a token that a person made.
TEST_F(TlsTest, TheServersOwnAgentComesBackWhenTokensAndCertificatesAreWanted) {
  std::string secret;
  {
    const auto server = Start(/*mutual=*/true);
    const CapturedResult created =
        Cli({"admin", "token", "create", "root", "--role", "admin", "--server", server->address()}, Certificate());
    ASSERT_EQ(created.exit_code, 0) << created.err;
    secret = std::string(absl::StripAsciiWhitespace(created.out));
  }
  const auto server = Start(/*mutual=*/true, {"--with-local-worker"});
  Variables root = Certificate();
  EXPECT_EQ(List(*server, root), 4) << "a certificate is no token";
  root.emplace_back("LUTHIER_TOKEN", secret);
  EXPECT_TRUE(WaitFor([&] {
    return Cli({"node", "list", "--server", server->address()}, root).out.find("READY") != std::string::npos;
  })) << server->log();
}

}  // namespace
}  // namespace luthier
