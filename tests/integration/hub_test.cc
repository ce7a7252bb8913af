// The client of the hub against a server of its API that fails on purpose (tests/support/hub_server.py), with pauses
// that are short.
#include "client/hub/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cli/private_ca.h"
#include "lib/text/json_file.h"
#include "nlohmann/json.hpp"
#include "tests/support/hub_server.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr int kAttempts = 3;

// Two megabytes and a bit: more than one step of progress, in bytes that do not repeat.
std::string Content() {
  std::string content;
  for (int i = 0; content.size() < 2'500'000; ++i) absl::StrAppend(&content, i, " ");
  return content;
}

class HubTest : public testing::Test {
 protected:
  HubTest() {
    setenv("NO_PROXY", "127.0.0.1", 1);
    fs::create_directories(folder_.path() + "/hub/org/model");
    WriteText(folder_.path() + "/hub/org/model/model.safetensors", content_);
    WriteText(folder_.path() + "/hub/org/model/config.json", "{}");
    options_.retry = {.attempts = kAttempts, .initial_pause = absl::Milliseconds(1)};
    options_.on_wait = [this](absl::Duration wait) { waits_.push_back(wait); };
  }
  // With `tls` as the server takes it.
  void Start(const std::string& tls = "") {
    server_ = std::make_unique<HubServer>(folder_.path() + "/hub", tls);
    options_.endpoint = server_->endpoint();
    Open();
  }
  void Open() {
    auto hub = Hub::Open(options_);
    ASSERT_TRUE(hub.ok()) << hub.status();
    hub_ = *std::move(hub);
  }
  // Lists the repository and fetches its weights.
  absl::Status Fetch() {
    const auto listing = hub_->List(address_);
    if (!listing.ok()) return listing.status();
    for (const HubFile& file : listing->files) {
      if (file.path != "model.safetensors") continue;
      received_ = 0;
      return hub_->Fetch(address_, listing->commit, file, part_, [this](int64_t bytes) { received_ += bytes; });
    }
    return absl::NotFoundError("no weights");
  }
  // That it worked, and that the progress told the truth.
  void ExpectFetched() {
    const absl::Status fetched = Fetch();
    EXPECT_TRUE(fetched.ok()) << fetched;
    EXPECT_EQ(*ReadTextFile(part_), content_);
    EXPECT_EQ(received_, static_cast<int64_t>(content_.size()));
  }
  // Every answer of the CDN.
  void FailDownloads(json fault) {
    fault["at"] = "cdn";
    fault["path"] = "^/store/";
    server_->Fail(json::array({fault}));
  }

  const std::string content_ = Content();
  TempFolder folder_;
  const std::string part_ = folder_.path() + "/part";
  const HubAddress address_ = {"org/model", "main"};
  Hub::Options options_;
  std::vector<absl::Duration> waits_;
  std::unique_ptr<HubServer> server_;
  std::unique_ptr<Hub> hub_;
  int64_t received_ = 0;
};

TEST_F(HubTest, GivesUpAfterAsManyFailuresAsThePolicySays) {
  Start();
  server_->Fail(json::array({{{"at", "hub"}, {"path", "^/api/"}, {"status", 503}}}));
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("hf://org/model@main"), HasSubstr("status 503")));
  EXPECT_THAT(server_->Requests("hub"), SizeIs(kAttempts));
}

TEST_F(HubTest, AFailureOrTwoAreNotNoticed) {
  Start();
  server_->Fail(json::array({{{"at", "hub"}, {"path", "^/api/"}, {"status", 500}, {"times", 1}},
                             {{"at", "hub"}, {"path", "/resolve/"}, {"status", 504}, {"times", 2}},
                             {{"at", "cdn"}, {"path", "."}, {"status", 502}, {"times", 2}}}));
  options_.retry.attempts = 6;
  Open();
  ExpectFetched();
}

TEST_F(HubTest, AListThatIsTooLongIsNotReadToItsEnd) {
  Start();
  server_->Fail(json::array({{{"at", "hub"}, {"path", "^/api/"}, {"body", std::string((size_t{32} << 20) + 1, ' ')}}}));
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("hf://org/model@main"), HasSubstr("longer than 32 MiB")));
  EXPECT_THAT(server_->Requests("hub"), SizeIs(1));
}

TEST_F(HubTest, AnEndpointThatSaysNothingIsGivenUp) {
  options_.idle_timeout = absl::Milliseconds(200);
  Start();
  server_->Fail(json::array({{{"at", "hub"}, {"path", "."}, {"silence", true}}}));
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("HF_ENDPOINT"));
  EXPECT_THAT(server_->Requests("hub"), SizeIs(kAttempts));
}

TEST_F(HubTest, WaitsAsTheHubsOwnHeaderSaysAndNotForFailuresOfOtherKinds) {
  Start();
  const json headers = {{"RateLimit", R"("resolvers";r=0;t=1)"}};
  server_->Fail(
      json::array({{{"at", "hub"}, {"path", "/resolve/"}, {"status", 500}, {"headers", headers}, {"times", 1}},
                   {{"at", "hub"}, {"path", "/resolve/"}, {"status", 429}, {"headers", headers}, {"times", 1}}}));
  const absl::Time begin = absl::Now();
  ExpectFetched();
  EXPECT_GE(absl::Now() - begin, absl::Seconds(1));
  EXPECT_THAT(waits_, testing::ElementsAre(absl::Seconds(1)));
}

TEST_F(HubTest, AWaitThatIsTooLongIsSaidAndNotWaitedFor) {
  Start();
  server_->Fail(
      json::array({{{"at", "hub"}, {"path", "."}, {"status", 429}, {"headers", {{"Retry-After", "86400"}}}}}));
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("24h"), HasSubstr("HF_TOKEN")));
  EXPECT_THAT(server_->Requests("hub"), SizeIs(1));
  EXPECT_THAT(waits_, IsEmpty());
}

TEST_F(HubTest, ConnectionsThatBreakGoOnForAsLongAsTheyGetOn) {
  Start();
  FailDownloads({{"cut", 1'100'000}, {"times", 2}});
  options_.retry.attempts = 2;  // one failure in a row
  Open();
  ExpectFetched();
  EXPECT_THAT(server_->Requests("cdn", "/store/"), SizeIs(3));
}

TEST_F(HubTest, ConnectionsThatBreakAtOnceAreGivenUp) {
  Start();
  FailDownloads({{"cut", 1000}});
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("ended after 3000 of ", content_.size())));
  EXPECT_EQ(*ReadTextFile(part_), content_.substr(0, 3000)) << "a later command goes on from there";
  EXPECT_EQ(received_, 3000);
}

TEST_F(HubTest, AServerThatKnowsNoRangesIsReadFromTheStartAndNotForEver) {
  WriteText(part_, content_.substr(0, 2'000'000));
  Start();
  FailDownloads({{"whole", true}});
  ExpectFetched();
  fs::remove(part_);
  FailDownloads({{"whole", true}, {"cut", 2'000'000}});
  EXPECT_TRUE(absl::IsUnavailable(Fetch()));
  EXPECT_THAT(server_->Requests("cdn", "/store/"), SizeIs(kAttempts));
}

TEST_F(HubTest, BytesOfAnotherFileAreFetchedAgain) {
  Start();
  for (const std::string& before : {std::string(1000, 'x'), std::string(content_.size(), 'x'), content_ + "more"}) {
    WriteText(part_, before);
    server_->Fail(json::array());
    ExpectFetched();
  }
}

TEST_F(HubTest, AFileThatIsLongerThanItsListIsCutOff) {
  Start();
  FailDownloads({{"more", 1'000'000}});
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("goes on after"));
  EXPECT_LE(fs::file_size(part_), content_.size());
}

TEST_F(HubTest, ADestinationThatDoesNotEndIsGivenUp) {
  Start();
  const json around = {{"Location", "/org/model/resolve/round"}};
  server_->Fail(json::array({{{"at", "hub"}, {"path", "/resolve/"}, {"status", 302}, {"headers", around}}}));
  const absl::Status status = Fetch();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("redirects more than"));
  EXPECT_LT(server_->Requests("hub").size(), 20u);
}

TEST_F(HubTest, NoCertificateThatNobodyVouchesForAndNoWayOutOfTls) {
  const std::string tls = folder_.path() + "/tls";
  ASSERT_TRUE(WritePrivateCa(tls, {"hub.test", "cdn.test"}, absl::Now()).ok());
  options_.token = HubServer::kToken;
  server_ = std::make_unique<HubServer>(folder_.path() + "/hub", tls);
  options_.endpoint = server_->endpoint();
  setenv("HTTPS_PROXY", server_->proxy().c_str(), 1);
  Open();
  const absl::Status unknown = Fetch();
  EXPECT_TRUE(absl::IsUnavailable(unknown)) << unknown;
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("certificate"));
  EXPECT_THAT(server_->Requests("hub"), IsEmpty()) << "nobody may read the token";
  setenv("SSL_CERT_FILE", (tls + "/ca.pem").c_str(), 1);
  Open();
  server_->Fail(json::array({{{"at", "hub"},
                              {"path", "/resolve/"},
                              {"status", 302},
                              {"headers", {{"Location", "http://127.0.0.1:1/model.safetensors"}}}}}));
  const absl::Status plain = Fetch();
  EXPECT_TRUE(absl::IsFailedPrecondition(plain)) << plain;
  EXPECT_THAT(std::string(plain.message()), AllOf(HasSubstr("without TLS"), Not(HasSubstr(HubServer::kToken))));
  server_->Fail(json::array());
  ExpectFetched();
  unsetenv("HTTPS_PROXY");
  unsetenv("SSL_CERT_FILE");
}

}  // namespace
}  // namespace luthier
