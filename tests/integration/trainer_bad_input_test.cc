// Bad input: each fault ends the run with its cause and a message that names what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/integration/trainer_program_fixture.h"
#include "tests/support/program.h"
#include "tests/support/text_fixture.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct BadInput {
  const char* name;
  const char* cause;
  const char* message;  // part of it
  void (*damage)(json& spec, const std::string& folder);
};

class BadInputTest : public TrainerProgramTest, public ::testing::WithParamInterface<BadInput> {};

TEST_P(BadInputTest, FailsWithCauseAndRemedy) {
  json spec = LoraSpec();
  GetParam().damage(spec, folder_.path());
  const ProgramResult run = Train(spec, Out("run"));
  EXPECT_EQ(run.exit_code, 1);
  const json last = Events(run.output).back();
  EXPECT_EQ(last["event"], "failed");
  EXPECT_EQ(last["cause"], GetParam().cause) << last;
  EXPECT_THAT(last["message"].get<std::string>(), HasSubstr(GetParam().message));
}

void TrainOn(json& spec, const std::string& folder, const std::string& content) {
  WriteText(folder + "/bad.jsonl", content);
  spec["dataset"]["train"] = folder + "/bad.jsonl";
}

INSTANTIATE_TEST_SUITE_P(
    Faults, BadInputTest,
    ::testing::Values(BadInput{"MalformedJson", "USER_DATA", "bad.jsonl:2",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder, ChatLine("a", "b") + "{\"messages\": [\n");
                               }},
                      BadInput{"EmptyDataset", "USER_DATA", "bad.jsonl",
                               [](json& spec, const std::string& folder) { TrainOn(spec, folder, ""); }},
                      BadInput{"RowLongerThanTheContext", "USER_DATA", "bad.jsonl:1",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder, ChatLine(std::string(400, 'x'), "b"));
                               }},
                      BadInput{"NothingToTrain", "USER_DATA", "bad.jsonl:1",
                               [](json& spec, const std::string& folder) {
                                 TrainOn(spec, folder,
                                         R"({"messages": [{"role": "user", "content": "only a question"}]})"
                                         "\n");
                               }},
                      BadInput{"UnknownField", "CONFIG", "lora.rnk",
                               [](json& spec, const std::string&) { spec["lora"]["rnk"] = 4; }},
                      BadInput{"RankOutOfRange", "CONFIG", "lora.rank",
                               [](json& spec, const std::string&) { spec["lora"]["rank"] = 0; }},
                      BadInput{"UnknownTarget", "CONFIG", "q_prj",
                               [](json& spec, const std::string&) { spec["lora"]["target_modules"] = {"q_prj"}; }},
                      BadInput{"LayerThatIsNotThere", "CONFIG", "lora.layers: 99",
                               [](json& spec, const std::string&) { spec["lora"]["layers"] = {0, 99}; }},
                      BadInput{"MetricOfAnotherTask", "CONFIG", "evaluation.metric: field_f1",
                               [](json& spec, const std::string&) { spec["evaluation"]["metric"] = "field_f1"; }},
                      BadInput{"MoreThreadsThanCpus", "CONFIG", "resources.threads: 1024",
                               [](json& spec, const std::string&) { spec["resources"]["threads"] = 1024; }},
                      BadInput{"MissingTokenizer", "CONFIG", "tokenizer.json: not found; give a model folder",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 std::filesystem::remove(folder + "/base/tokenizer.json");
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"PatienceWithoutValidation", "CONFIG", "evaluation.patience",
                               [](json& spec, const std::string&) {
                                 spec["dataset"].erase("validation");
                                 spec["evaluation"]["patience"] = 2;
                               }},
                      BadInput{"MoreDevicesThanThereAre", "CONFIG", "resources.devices: 1024",
                               [](json& spec, const std::string&) { spec["resources"]["devices"] = 1024; }},
                      BadInput{"RanksThatMoveWeightsInTheBackwardPass", "CONFIG", "training.optimizer_in_backward",
                               [](json& spec, const std::string&) {
                                 spec["resources"]["devices"] = 2;
                                 spec["training"]["optimizer_in_backward"] = true;
                               }},
                      BadInput{"WhatEveryRankFinds", "CONFIG", "nowhere",
                               [](json& spec, const std::string&) {
                                 spec["resources"]["devices"] = 2;
                                 spec["base_model"] = "/nowhere";
                               }},
                      BadInput{"MissingModel", "CONFIG", "nowhere",
                               [](json& spec, const std::string&) { spec["base_model"] = "/nowhere"; }},
                      BadInput{"MissingTensor", "CONFIG", "missing: lm_head.weight",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["tie_word_embeddings"] = false;
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"WrongShape", "CONFIG", "wrong shape",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["intermediate_size"] = 96;
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"UnsupportedArchitecture", "CONFIG", "mixtral",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 json config = json::parse(std::ifstream(folder + "/base/config.json"));
                                 config["model_type"] = "mixtral";
                                 WriteText(folder + "/base/config.json", config.dump());
                                 spec["base_model"] = folder + "/base";
                               }},
                      BadInput{"WeightsThatAreNotFinite", "NAN", "not finite",
                               [](json& spec, const std::string& folder) {
                                 std::filesystem::copy(spec["base_model"].get<std::string>(), folder + "/base");
                                 std::fstream weights(folder + "/base/model.safetensors",
                                                      std::ios::in | std::ios::out | std::ios::binary);
                                 weights.seekp(-4, std::ios::end);
                                 weights.write("\x00\x00\xc0\x7f", 4);  // a NaN
                                 weights.close();
                                 spec["base_model"] = folder + "/base";
                               }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace luthier
