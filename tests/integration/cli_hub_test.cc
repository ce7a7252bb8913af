// `luthier model import NAME hf://ORG/REPO` against a server of the hub's API (tests/support/hub_server.py) and the
// real luthierd. The hub itself is not contacted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/artifact/hash.h"
#include "lib/text/json_file.h"
#include "nlohmann/json.hpp"
#include "tests/integration/cli_fixture.h"
#include "tests/support/background_program.h"
#include "tests/support/captured_program.h"
#include "tests/support/hub_server.h"
#include "tests/support/text_fixture.h"
#include "tests/support/wait_for.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

using Environment = std::vector<std::pair<std::string, std::string>>;

class CliHubTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    for (const char* repository : {"org/tiny", "private/tiny", "gated/tiny"}) Copy(shipped_, repository);
    StartHub();
  }
  // Tests that add repositories do so before.
  void StartHub(const std::string& tls = "") { hub_ = std::make_unique<HubServer>(HubPath(""), tls); }
  std::string HubPath(const std::string& path) const { return absl::StrCat(folder_.path(), "/hub/", path); }
  void Copy(const std::string& folder, const std::string& repository) {
    fs::create_directories(HubPath(repository));
    fs::copy(folder, HubPath(repository), fs::copy_options::recursive);
  }
  Environment HubEnvironment(const Environment& more = {}) const {
    Environment environment = {{"HF_ENDPOINT", hub_->endpoint()},
                               {"HF_HOME", HubPath("nobody")},
                               {"HF_TOKEN", ""},
                               {"HF_TOKEN_PATH", ""},
                               {"NO_PROXY", "127.0.0.1"}};
    environment.insert(environment.end(), more.begin(), more.end());
    return environment;
  }
  CapturedResult Import(const std::string& name, const std::string& source, const Environment& more = {}) {
    CaptureOptions options;
    options.environment = HubEnvironment(more);
    CapturedResult result = Cli({"model", "import", name, source}, options);
    EXPECT_THAT(result.out, Not(HasSubstr(HubServer::kToken)));
    EXPECT_THAT(result.err, Not(HasSubstr(HubServer::kToken)));
    return result;
  }
  // The files of a base model on the server's record, by path.
  std::map<std::string, std::string> Recorded(const std::string& name) {
    std::map<std::string, std::string> files;
    const json model = json::parse(Ok({"model", "get", absl::StrCat("baseModels/", name), "-o", "json"}));
    for (const json& file : model["files"]) files[file["path"]] = file["sha256"];
    return files;
  }
  // What lies in the cache, by the names in the commit's folder.
  std::map<std::string, std::string> Cached() const {
    std::map<std::string, std::string> files;
    const fs::path cache = folder_.path() + "/cache/hub";
    if (!fs::exists(cache)) return files;
    for (const auto& entry : fs::recursive_directory_iterator(cache)) {
      if (!entry.is_regular_file()) continue;
      const std::vector<std::string> names =
          absl::StrSplit(fs::relative(entry.path(), cache).string(), absl::MaxSplits('/', 2));
      files[names.back()] = *ReadTextFile(entry.path());
    }
    return files;
  }
  // The hub lies about its list of files.
  void List(const json& listing) {
    hub_->Fail(json::array({{{"at", "hub"}, {"path", "^/api/models/"}, {"body", listing.dump()}}}));
  }
  std::string Weights() const { return *ReadTextFile(shipped_ + "/model.safetensors"); }

  const std::string shipped_ = fs::absolute("examples/base/luthier-tiny");
  std::unique_ptr<HubServer> hub_;
};

TEST_F(CliHubTest, ImportsTheShippedModelAsItsFolderWouldBe) {
  for (const char* other : {"README.md", "pytorch_model.bin", "consolidated.safetensors", "model.gguf"})
    WriteText(HubPath("org/tiny/") + other, "nothing that a trainer reads");
  for (const char* folder : {"original", "onnx", "additional_chat_templates"})
    fs::create_directories(HubPath("org/tiny/") + folder);
  WriteText(HubPath("org/tiny/original/params.json"), "{}");
  WriteText(HubPath("org/tiny/onnx/config.json"), "{}");
  WriteText(HubPath("org/tiny/additional_chat_templates/rag.jinja"), "{{ messages }}");
  StartHub();
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out, "baseModels/tiny\n");
  const std::string commit = hub_->Listing("org/tiny")["sha"];
  EXPECT_THAT(result.err, AllOf(HasSubstr(absl::StrCat("hf://org/tiny@", commit)), HasSubstr("verified")));
  const json model = json::parse(Ok({"model", "get", "tiny", "-o", "json"}));
  EXPECT_EQ(model["source"], "hf://org/tiny");
  EXPECT_EQ(model["revision"], commit);
  EXPECT_THAT(Ok({"model", "get", "tiny"}), HasSubstr(absl::StrCat("\nfrom hf://org/tiny@", commit, "\n")));
  EXPECT_THAT(Ok({"model", "list", "-o", "wide"}),
              AllOf(HasSubstr("SOURCE"), HasSubstr(absl::StrCat("hf://org/tiny@", commit))));

  fs::create_directories(folder_.path() + "/by-hand/additional_chat_templates");
  fs::copy(shipped_, folder_.path() + "/by-hand");
  WriteText(folder_.path() + "/by-hand/additional_chat_templates/rag.jinja", "{{ messages }}");
  Ok({"model", "import", "by-hand", "by-hand"});
  EXPECT_EQ(Recorded("tiny"), Recorded("by-hand"));
  EXPECT_THAT(Ok({"model", "get", "by-hand"}), Not(HasSubstr("from ")));
  std::map<std::string, std::string> expected = {{"additional_chat_templates/rag.jinja", "{{ messages }}"}};
  for (const auto& entry : fs::directory_iterator(shipped_))
    expected[entry.path().filename()] = *ReadTextFile(entry.path());
  EXPECT_EQ(Cached(), expected) << "nothing else is fetched";
  EXPECT_THAT(hub_->Requests("hub", "/resolve/"), SizeIs(expected.size()));
  EXPECT_THAT(hub_->Requests("hub", absl::StrCat("/resolve/", commit, "/")), SizeIs(expected.size()))
      << "a branch that moves must not mix two versions";
}

TEST_F(CliHubTest, WhatIsThereIsVerifiedAndNotFetchedAgain) {
  ASSERT_EQ(Import("tiny", "hf://org/tiny").exit_code, 0);
  hub_->Fail(json::array());
  EXPECT_EQ(Import("tiny", "hf://org/tiny@refs/pr/1").exit_code, 0) << "the same commit by another name";
  EXPECT_THAT(hub_->Requests("hub"), SizeIs(1));
  EXPECT_THAT(hub_->Requests("cdn"), IsEmpty());
  const std::string folder =
      absl::StrCat(folder_.path(), "/cache/hub/org--tiny/", std::string(hub_->Listing("org/tiny")["sha"]));
  std::string damaged = Weights();
  damaged[damaged.size() / 2] ^= 1;
  WriteText(folder + "/model.safetensors", damaged);
  WriteText(folder + "/of-an-older-version.json", "{}");
  EXPECT_EQ(Import("tiny", "hf://org/tiny").exit_code, 0);
  EXPECT_EQ(Cached()["model.safetensors"], Weights());
  EXPECT_EQ(Cached().count("of-an-older-version.json"), 0u);
}

TEST_F(CliHubTest, ATokenGoesToTheHubAndNowhereElse) {
  const CapturedResult without = Import("tiny", "hf://private/tiny");
  EXPECT_EQ(without.exit_code, 4);
  EXPECT_THAT(without.err, AllOf(HasSubstr("private/tiny"), HasSubstr("HF_TOKEN")));
  const CapturedResult wrong = Import("tiny", "hf://private/tiny", {{"HF_TOKEN", "hf_another"}});
  EXPECT_EQ(wrong.exit_code, 4);
  EXPECT_THAT(wrong.err, AllOf(HasSubstr("/settings/tokens"), Not(HasSubstr("hf_another"))));
  hub_->Fail(json::array());
  EXPECT_EQ(Import("tiny", "hf://private/tiny", {{"HF_TOKEN", HubServer::kToken}}).exit_code, 0);
  for (const json& request : hub_->Requests("hub")) EXPECT_EQ(request["token"], true) << request;
  // Twice for each large file: the CDN sends on within itself.
  EXPECT_THAT(hub_->Requests("cdn"), SizeIs(4));
  for (const json& request : hub_->Requests("cdn")) EXPECT_EQ(request["token"], false) << request;
}

// Nobody listens there: what goes to it has no answer.
TEST_F(CliHubTest, AProxyDoesNotSeeATokenThatGoesWithoutTls) {
  const CapturedResult result =
      Import("tiny", "hf://private/none",
             {{"HF_TOKEN", HubServer::kToken}, {"NO_PROXY", ""}, {"HTTP_PROXY", "http://127.0.0.1:9"}});
  EXPECT_EQ(result.exit_code, 5) << result.err;
}

TEST_F(CliHubTest, TakesTheTokenThatHuggingFacesOwnToolsWrote) {
  fs::create_directories(HubPath("somebody"));
  WriteText(HubPath("somebody/token"), absl::StrCat(HubServer::kToken, "\n"));
  const CapturedResult result = Import("tiny", "hf://private/tiny", {{"HF_HOME", HubPath("somebody")}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST_F(CliHubTest, SaysWhereTheLicenceOfAGatedModelIsAccepted) {
  const CapturedResult without = Import("tiny", "hf://gated/tiny");
  EXPECT_EQ(without.exit_code, 4);
  EXPECT_THAT(without.err, AllOf(HasSubstr(absl::StrCat("accept its licence at ", hub_->endpoint(), "/gated/tiny")),
                                 HasSubstr("HF_TOKEN")));
  const CapturedResult with = Import("tiny", "hf://gated/tiny", {{"HF_TOKEN", HubServer::kToken}});
  EXPECT_EQ(with.exit_code, 4);
  EXPECT_THAT(with.err, AllOf(HasSubstr("accept its licence"), HasSubstr("the present one may not")));
}

TEST_F(CliHubTest, NamesWhatIsNotThere) {
  const Environment token = {{"HF_TOKEN", HubServer::kToken}};
  const CapturedResult repository = Import("tiny", "hf://org/none", token);
  EXPECT_EQ(repository.exit_code, 5);
  EXPECT_THAT(repository.err, HasSubstr(absl::StrCat(hub_->endpoint(), "/org/none is not there")));
  EXPECT_EQ(Import("tiny", "hf://org/none").exit_code, 4) << "to nobody the hub says only that there is nothing to see";
  const CapturedResult revision = Import("tiny", "hf://org/tiny@v9");
  EXPECT_EQ(revision.exit_code, 5);
  EXPECT_THAT(revision.err, HasSubstr("no revision 'v9'"));
  for (const char* wrong :
       {"hf://tiny", "hf://org/tiny/more", "hf://org/..", "hf://org/tiny@", "hf://org/tiny@a/../b"}) {
    const CapturedResult result = Import("tiny", wrong);
    EXPECT_EQ(result.exit_code, 3) << wrong;
    EXPECT_THAT(result.err, AllOf(HasSubstr(wrong), HasSubstr("hf://ORG/REPO"))) << wrong;
  }
}

TEST_F(CliHubTest, RefusesARepositoryThatIsNoBaseModelByWhatItHoldsInstead) {
  const std::map<std::string, std::pair<std::string, std::string>> cases = {
      {"org/pickled", {"pytorch_model.bin", "pytorch_model.bin is a pickle"}},
      {"org/llama-cpp", {"model.Q4_K_M.gguf", "name the model that it was made from"}},
      {"org/adapter", {"adapter_model.safetensors", "name the model that this one adapts"}}};
  for (const auto& [repository, holds] : cases) {
    fs::create_directories(HubPath(repository));
    WriteText(HubPath(repository + "/config.json"), "{}");
    WriteText(HubPath(absl::StrCat(repository, "/", holds.first)), "weights");
  }
  StartHub();
  for (const auto& [repository, holds] : cases) {
    const CapturedResult result = Import("tiny", absl::StrCat("hf://", repository));
    EXPECT_EQ(result.exit_code, 3) << repository;
    EXPECT_THAT(result.err, AllOf(HasSubstr(repository), HasSubstr(holds.second))) << repository;
  }
  EXPECT_THAT(Cached(), IsEmpty());
}

TEST_F(CliHubTest, AModelThatLuthierDoesNotKnowIsRefusedBeforeItsWeightsCome) {
  Copy(shipped_, "org/strange");
  json config = json::parse(*ReadTextFile(shipped_ + "/config.json"));
  config["model_type"] = "mystery";
  config["architectures"] = {"MysteryForCausalLM"};
  WriteText(HubPath("org/strange/config.json"), config.dump());
  Copy(shipped_, "org/speechless");
  fs::remove(HubPath("org/speechless/tokenizer.json"));
  StartHub();
  const CapturedResult strange = Import("tiny", "hf://org/strange");
  EXPECT_EQ(strange.exit_code, 3);
  EXPECT_THAT(strange.err, HasSubstr("ystery"));
  const CapturedResult speechless = Import("tiny", "hf://org/speechless");
  EXPECT_EQ(speechless.exit_code, 3);
  EXPECT_THAT(speechless.err, HasSubstr("tokenizer.json"));
  EXPECT_THAT(hub_->Requests("hub", "model.safetensors"), IsEmpty());
}

TEST_F(CliHubTest, TheShardsAreThoseOfTheIndex) {
  Copy(shipped_, "org/sharded");
  fs::rename(HubPath("org/sharded/model.safetensors"), HubPath("org/sharded/model-00001-of-00001.safetensors"));
  WriteText(HubPath("org/sharded/consolidated.safetensors"), "the same once more, in another form");
  json index = {{"metadata", {{"total_size", 1}}}, {"weight_map", json::object()}};
  const auto weights = SafetensorsFile::Open(shipped_ + "/model.safetensors");
  ASSERT_TRUE(weights.ok()) << weights.status();
  for (const auto& [name, view] : weights->tensors()) index["weight_map"][name] = "model-00001-of-00001.safetensors";
  WriteText(HubPath("org/sharded/model.safetensors.index.json"), index.dump());
  Copy(HubPath("org/sharded"), "org/incomplete");
  fs::remove(HubPath("org/incomplete/model-00001-of-00001.safetensors"));
  StartHub();
  const CapturedResult result = Import("tiny", "hf://org/sharded");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Recorded("tiny").count("model-00001-of-00001.safetensors"), 1u);
  EXPECT_EQ(Recorded("tiny").count("consolidated.safetensors"), 0u);
  const CapturedResult incomplete = Import("other", "hf://org/incomplete");
  EXPECT_EQ(incomplete.exit_code, 3);
  EXPECT_THAT(incomplete.err, HasSubstr("by the name of model-00001-of-00001.safetensors"));
}

TEST_F(CliHubTest, AWholeFileIsTakenAndNotTheShardsBesideIt) {
  Copy(shipped_, "org/both");
  WriteText(HubPath("org/both/model-00001-of-00001.safetensors"), "of another time");
  WriteText(HubPath("org/both/model.safetensors.index.json"),
            R"({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}})");
  StartHub();
  const CapturedResult result = Import("tiny", "hf://org/both");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(Recorded("tiny").count("model.safetensors"), 1u);
  EXPECT_EQ(Recorded("tiny").count("model-00001-of-00001.safetensors"), 0u);
}

TEST_F(CliHubTest, AnIndexThatNamesAPickleIsRefused) {
  Copy(shipped_, "org/bad");
  fs::remove(HubPath("org/bad/model.safetensors"));
  WriteText(HubPath("org/bad/pytorch_model.bin"), "a pickle");
  WriteText(HubPath("org/bad/model.safetensors.index.json"),
            R"({"weight_map": {"model.norm.weight": "pytorch_model.bin"}})");
  StartHub();
  const CapturedResult result = Import("bad", "hf://org/bad");
  EXPECT_EQ(result.exit_code, 3) << result.err;
  EXPECT_THAT(result.err, HasSubstr("no safetensors by the name of pytorch_model.bin"));
}

TEST_F(CliHubTest, WhatTheServerRefusesIsSaidWithTheFolderThatItCouldNotUse) {
  Copy(shipped_, "org/damaged");
  WriteText(HubPath("org/damaged/model.safetensors"), "as its owner uploaded it");
  StartHub();
  const CapturedResult result = Import("tiny", "hf://org/damaged");
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_THAT(result.err, AllOf(HasSubstr("model.safetensors"), HasSubstr(folder_.path() + "/cache/hub/org--damaged/"),
                                HasSubstr("LUTHIER_CACHE_DIR")));
}

TEST_F(CliHubTest, AConnectionThatBreaksIsTakenUpWhereItBroke) {
  hub_->Fail(json::array(
      {{{"at", "cdn"}, {"path", absl::StrCat("^/store/", Sha256Hex(Weights()))}, {"cut", 3'000'000}, {"times", 1}}}));
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  const std::vector<json> requests = hub_->Requests("cdn", absl::StrCat("/store/", Sha256Hex(Weights())));
  ASSERT_THAT(requests, SizeIs(2));
  EXPECT_EQ(requests[1]["range"], "bytes=3000000-");
  EXPECT_EQ(Cached()["model.safetensors"], Weights());
}

TEST_F(CliHubTest, AKilledImportLeavesNothingUnderItsNameAndGoesOnLater) {
  const std::string store = absl::StrCat("/store/", Sha256Hex(Weights()));
  hub_->Fail(json::array({{{"at", "cdn"}, {"path", absl::StrCat("^", store)}, {"cut", 3'000'000}, {"times", 1}},
                          {{"at", "cdn"}, {"path", absl::StrCat("^", store)}, {"silence", true}}}));
  std::vector<std::string> line = {"/usr/bin/env", absl::StrCat("LUTHIER_SERVER=", server_->address()),
                                   absl::StrCat("LUTHIER_CACHE_DIR=", folder_.path(), "/cache")};
  for (const auto& [name, value] : HubEnvironment()) line.push_back(absl::StrCat(name, "=", value));
  line.insert(line.end(), {LUTHIER_BIN "/luthier", "model", "import", "tiny", "hf://org/tiny"});
  BackgroundProgram importing(line);
  EXPECT_TRUE(WaitFor([&] { return hub_->Requests("cdn", store).size() == 2; }));
  importing.End(SIGKILL);
  std::map<std::string, std::string> cached = Cached();
  EXPECT_EQ(cached.count("model.safetensors"), 0u);
  EXPECT_EQ(cached["model.safetensors.part"], Weights().substr(0, 3'000'000));
  hub_->Fail(json::array());
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  ASSERT_THAT(hub_->Requests("cdn", store), SizeIs(1));
  EXPECT_EQ(hub_->Requests("cdn", store)[0]["range"], "bytes=3000000-");
  EXPECT_EQ(Cached()["model.safetensors"], Weights());
  EXPECT_EQ(Cached().count("model.safetensors.part"), 0u);
}

TEST_F(CliHubTest, WaitsAsLongAsTheHubAsks) {
  hub_->Fail(json::array(
      {{{"at", "hub"}, {"path", "/resolve/"}, {"status", 429}, {"headers", {{"Retry-After", "1"}}}, {"times", 1}}}));
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("asks to wait for 1"));
}

TEST_F(CliHubTest, AFileNameThatLeavesTheFolderMakesTheWholeListUseless) {
  const json honest = hub_->Listing("org/tiny");
  for (const std::string& name :
       {std::string("../evil.json"), std::string("/tmp/evil.json"), std::string("a/../../evil.json"),
        std::string("..\\evil.json"), std::string("evil.json\0.jinja", 16), std::string("")}) {
    json listing = honest;
    listing["siblings"].push_back({{"rfilename", name}, {"size", 2}, {"blobId", std::string(40, 'a')}});
    List(listing);
    const CapturedResult result = Import("tiny", "hf://org/tiny");
    EXPECT_EQ(result.exit_code, 1) << name;
    EXPECT_THAT(result.err, HasSubstr("is of no use")) << name;
    EXPECT_THAT(hub_->Requests("hub", "/resolve/"), IsEmpty()) << name;
  }
  EXPECT_THAT(Cached(), IsEmpty());
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "");
}

TEST_F(CliHubTest, SizesAndHashesThatLieAreFound) {
  const json honest = hub_->Listing("org/tiny");
  const auto refused = [&](const std::function<void(json&)>& lie, const std::string& why) {
    json listing = honest;
    lie(listing);
    List(listing);
    const CapturedResult result = Import("tiny", "hf://org/tiny");
    EXPECT_EQ(result.exit_code, 1) << why;
    EXPECT_THAT(result.err, HasSubstr(why));
    EXPECT_EQ(Cached().count("model.safetensors"), 0u) << why;
  };
  const auto resize = [](int64_t bytes) {
    return [bytes](json& listing) {
      json& file = FileIn(listing, "model.safetensors");
      file["size"] = bytes;
      file["lfs"]["size"] = bytes;
    };
  };
  refused(resize(1000), "is listed with 1000");
  refused(resize(6'000'000), "is listed with 6000000");
  refused([](json& listing) { FileIn(listing, "model.safetensors")["size"] = 1000; },
          "has 1000 bytes and 5513720 as well");
  refused([](json& listing) { FileIn(listing, "model.safetensors")["lfs"]["sha256"] = std::string(64, '0'); },
          "expected 0000");
  refused([](json& listing) { FileIn(listing, "config.json")["blobId"] = std::string(40, '0'); }, "expected 0000");
  refused([](json& listing) { FileIn(listing, "config.json").erase("size"); }, "'config.json' has no size");
  EXPECT_EQ(Ok({"model", "list", "-o", "name"}), "");
}

// What is read into memory as a whole must not be as large as somebody likes.
TEST_F(CliHubTest, AFileWithoutWeightsThatIsTooLargeIsRefusedBeforeItComes) {
  const json honest = hub_->Listing("org/tiny");
  for (const char* name : {"config.json", "model.safetensors.index.json"}) {
    json listing = honest;
    if (std::string(name) == "config.json") {
      FileIn(listing, name)["size"] = 300'000'000;
    } else {
      listing["siblings"].push_back({{"rfilename", name}, {"size", 300'000'000}, {"blobId", std::string(40, 'a')}});
    }
    List(listing);
    const CapturedResult result = Import("tiny", "hf://org/tiny");
    EXPECT_EQ(result.exit_code, 3) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr(absl::StrCat(name, " is listed with 300.0 MB")), HasSubstr("256 MiB")));
    EXPECT_THAT(hub_->Requests("hub", "/resolve/"), IsEmpty());
  }
  EXPECT_THAT(Cached(), IsEmpty());
}

TEST_F(CliHubTest, AModelThatDoesNotFitOntoTheDiskIsRefusedBeforeItComes) {
  json listing = hub_->Listing("org/tiny");
  json& file = FileIn(listing, "model.safetensors");
  file["size"] = file["lfs"]["size"] = 90'000'000'000'000;
  List(listing);
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("90.0 TB are still to come"), HasSubstr("LUTHIER_CACHE_DIR")));
  EXPECT_THAT(hub_->Requests("hub", "model.safetensors"), IsEmpty());
}

// Nobody makes a folder in /sys, whoever runs the tests.
TEST_F(CliHubTest, ACacheThatCannotBeWrittenIsNamedAndNoRefusalOfTheHub) {
  CaptureOptions options;
  options.environment = HubEnvironment({{"LUTHIER_CACHE_DIR", "/sys/luthier"}});
  for (const std::vector<std::string>& command : {std::vector<std::string>{"model", "import", "tiny", "hf://org/tiny"},
                                                  {"generate", "--base", "shipped", "--prompt", "x"}}) {
    Ok({"model", "import", "shipped", shipped_});
    const CapturedResult result = Cli(command, options);
    EXPECT_EQ(result.exit_code, 1) << result.err;
    EXPECT_THAT(result.err, AllOf(HasSubstr("/sys/luthier"), HasSubstr("LUTHIER_CACHE_DIR names another folder")));
  }
}

TEST_F(CliHubTest, WithoutAServerNothingIsFetched) {
  server_->Kill();
  const CapturedResult result = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(result.exit_code, 6);
  EXPECT_THAT(result.err, HasSubstr("luthierd --with-local-worker"));
  EXPECT_THAT(hub_->Requests("hub"), IsEmpty());
}

TEST_F(CliHubTest, OverTlsAndAProxyItIsTheSame) {
  const std::string tls = folder_.path() + "/tls";
  Ok({"admin", "tls", "init", "--to", tls, "--host", "hub.test", "--host", "cdn.test"});
  StartHub(tls);
  const CapturedResult result =
      Import("tiny", "hf://private/tiny",
             {{"HF_TOKEN", HubServer::kToken}, {"HTTPS_PROXY", hub_->proxy()}, {"SSL_CERT_FILE", tls + "/ca.pem"}});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(hub_->Requests("proxy", "hub.test:443"), Not(IsEmpty()));
  EXPECT_THAT(hub_->Requests("proxy", "cdn.test:443"), Not(IsEmpty()));
  for (const json& request : hub_->Requests("proxy")) EXPECT_EQ(request["token"], false) << request;
  for (const json& request : hub_->Requests("cdn")) EXPECT_EQ(request["token"], false) << request;
  EXPECT_EQ(Cached()["model.safetensors"], Weights());
}

TEST_F(CliHubTest, AnEndpointThatIsNoneIsNamedWithoutWhatStandsInIt) {
  const CapturedResult secret = Import("tiny", "hf://org/tiny", {{"HF_ENDPOINT", "https://me:hunter2@mirror.test"}});
  EXPECT_EQ(secret.exit_code, 3);
  EXPECT_THAT(secret.err, AllOf(HasSubstr("HF_ENDPOINT"), Not(HasSubstr("hunter2"))));
  const CapturedResult plain =
      Import("tiny", "hf://org/tiny", {{"HF_ENDPOINT", "http://192.0.2.1"}, {"HF_TOKEN", HubServer::kToken}});
  EXPECT_EQ(plain.exit_code, 3);
  EXPECT_THAT(plain.err, AllOf(HasSubstr("HF_TOKEN"), HasSubstr("https://")));
  hub_->Fail(json::array({{{"at", "hub"}, {"path", "."}, {"body", "<html>Sign in to this network</html>"}}}));
  const CapturedResult portal = Import("tiny", "hf://org/tiny");
  EXPECT_EQ(portal.exit_code, 1);
  EXPECT_THAT(portal.err, AllOf(HasSubstr("no JSON object"), HasSubstr("HF_ENDPOINT")));
}

}  // namespace
}  // namespace luthier
