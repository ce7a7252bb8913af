// What is exported of every family computes what was trained, and a file that does not is noticed.
#include "worker/trainer/export/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <set>

#include "lib/checkpoint/gguf.h"
#include "lib/checkpoint/safetensors.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "worker/trainer/export/export_place.h"
#include "worker/trainer/export/gguf_adapter.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json ReadJson(const std::string& path) {
  std::ifstream stream(path);
  return json::parse(stream);
}

class ExportTest : public ::testing::Test {
 protected:
  std::string Out(const std::string& name) const { return folder_.path() + "/" + name; }

  const PackedBatch probe_ = BatchOf({{1, 5, 30, 12, 9, 33, 2}, {1, 8, 8, 20}});
  TempFolder folder_;
};

TEST_F(ExportTest, AnAdapterOfEveryFamilyComputesWhatWasTrained) {
  for (const std::string& family : FixtureFamilies()) {
    const ModelFixture fixture(family);
    const absl::Status status =
        ExportAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out(family));
    EXPECT_TRUE(status.ok()) << family << ": " << status;
  }
}

TEST_F(ExportTest, AMergedModelOfEveryFamilyComputesWhatWasTrained) {
  for (const std::string& family : FixtureFamilies()) {
    const ModelFixture fixture(family);
    const auto merged = MergeAdapter(fixture.config, fixture.base, fixture.adapter);
    ASSERT_TRUE(merged.ok()) << family << ": " << merged.status();
    const json config_json = WithDtype(MergedConfig(fixture.config_json, *merged), "float32");
    const absl::Status status = ExportModel({merged->weights, config_json, fixture.folder + "/base", {2}},
                                            {*fixture.tuned, probe_}, Out(family));
    EXPECT_TRUE(status.ok()) << family << ": " << status;
  }
}

TEST_F(ExportTest, AGgufAdapterOfEveryFamilyComputesWhatWasTrained) {
  for (const std::string& family : FixtureFamilies()) {
    const ModelFixture fixture(family);
    const absl::Status status = ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config,
                                                  {*fixture.tuned, probe_}, Out(family + ".gguf"));
    EXPECT_TRUE(status.ok()) << family << ": " << status;
  }
}

// llama.cpp multiplies by alpha / rank and knows neither rsLoRA nor patterns; its Llama holds rows of a head in pairs.
TEST_F(ExportTest, TheGgufAdapterIsWhatLlamaCppWants) {
  ModelFixture fixture("mistral");
  fixture.adapter.config.alpha_pattern = {{"v_proj", 6}};
  fixture.tuned = *MakeTunedModel(fixture.config, fixture.base, {&fixture.adapter});
  ASSERT_TRUE(fixture.adapter.config.rslora);
  ASSERT_TRUE(
      ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out("a.gguf")).ok());
  const auto file = ReadGguf(Out("a.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(std::get<std::string>(file->metadata.at("general.type")), "adapter");
  EXPECT_EQ(std::get<std::string>(file->metadata.at("general.architecture")), "llama");
  EXPECT_EQ(std::get<std::string>(file->metadata.at("adapter.type")), "lora");
  const double alpha = std::get<float>(file->metadata.at("adapter.lora.alpha"));
  const auto run_time_scale = [&](const std::string& name) {
    return alpha / static_cast<double>(file->tensors.at(name).shape[1]);
  };
  const auto tensor = [&](const std::string& name) {
    const GgufTensor& stored = file->tensors.at(name);
    return at::tensor(at::ArrayRef<float>(stored.values), at::kFloat).view(stored.shape);
  };
  const auto trained = [&](const std::string& name) {
    return fixture.adapter.tensors.at("base_model.model.model.layers.1." + name + ".weight");
  };
  EXPECT_TRUE(at::equal(tensor("blk.1.ffn_down.weight.lora_a"), trained("mlp.down_proj.lora_A")));
  const Tensor down = tensor("blk.1.ffn_down.weight.lora_b") * run_time_scale("blk.1.ffn_down.weight.lora_b");
  EXPECT_LT((down - trained("mlp.down_proj.lora_B") * 4 / std::sqrt(2.0)).abs().max().item<double>(), 1e-6);
  const Tensor value = tensor("blk.1.attn_v.weight.lora_b") * run_time_scale("blk.1.attn_v.weight.lora_b");
  EXPECT_LT((value - trained("self_attn.v_proj.lora_B") * 6 / std::sqrt(2.0)).abs().max().item<double>(), 1e-6);
  // Rows of one head of 10: 0, 5, 1, 6, 2, 7, …
  const Tensor query = tensor("blk.1.attn_q.weight.lora_b") * run_time_scale("blk.1.attn_q.weight.lora_b");
  const Tensor wanted = trained("self_attn.q_proj.lora_B") * 4 / std::sqrt(2.0);
  EXPECT_LT((query[1] - wanted[5]).abs().max().item<double>(), 1e-6);
  EXPECT_LT((query[2] - wanted[1]).abs().max().item<double>(), 1e-6);
  EXPECT_LT((query[10] - wanted[10]).abs().max().item<double>(), 1e-6);
  EXPECT_LT((query[13] - wanted[16]).abs().max().item<double>(), 1e-6);
}

TEST_F(ExportTest, WhatAGgufAdapterCannotHoldIsRefused) {
  ModelFixture fixture("llama");
  const auto export_with = [&](const AdapterConfig& config) {
    const Adapter adapter = *MakeAdapter(config, fixture.config, fixture.base, 1);
    const auto tuned = *MakeTunedModel(fixture.config, fixture.base, {&adapter});
    return std::string(
        ExportGgufAdapter(adapter, fixture.base, fixture.config, {*tuned, probe_}, Out("a.gguf")).message());
  };
  AdapterConfig config;
  config.target_modules = {"q_proj"};
  config.dora = true;
  EXPECT_THAT(export_with(config), HasSubstr("use_dora"));
  config.dora = false;
  config.modules_to_save = {"lm_head"};
  EXPECT_THAT(export_with(config), HasSubstr("modules_to_save"));
  config.modules_to_save = {};
  config.target_modules = {"lm_head"};
  EXPECT_THAT(export_with(config), HasSubstr("target_modules"));
  EXPECT_FALSE(std::filesystem::exists(Out("a.gguf")));
}

// Bug 23: whatever went wrong on the way, an export that computes something else is not published.
TEST_F(ExportTest, AnExportThatComputesSomethingElseFails) {
  const ModelFixture fixture("qwen2");
  const auto other = *MakeModel(fixture.config, fixture.base, {});  // not the model that was trained
  const TrainedModel wrong{*other, probe_};
  EXPECT_EQ(ExportAdapter(fixture.adapter, fixture.base, fixture.config, wrong, Out("a")).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, wrong, Out("a.gguf")).code(),
            absl::StatusCode::kInternal);
  const auto merged = *MergeAdapter(fixture.config, fixture.base, fixture.adapter);
  EXPECT_EQ(ExportModel({merged.weights, fixture.config_json, fixture.folder + "/base", {2}}, wrong, Out("m")).code(),
            absl::StatusCode::kInternal);
}

// Rounding 16-bit weights moves logits by more than one layer that was merged without its adapter: logits alone would
// let it through.
TEST_F(ExportTest, OneWrongLayerIsNoticedIn16BitsToo) {
  const ModelFixture fixture("llama");
  const json config_json = WithDtype(fixture.config_json, "bfloat16");
  auto merged = *MergeAdapter(fixture.config, fixture.base, fixture.adapter);
  ASSERT_TRUE(
      ExportModel({merged.weights, config_json, fixture.folder + "/base", {2}}, {*fixture.tuned, probe_}, Out("m"))
          .ok());
  const std::string layer = "model.layers.0.self_attn.v_proj.weight";
  merged.weights[layer] = fixture.base.at(layer);
  const absl::Status status =
      ExportModel({merged.weights, config_json, fixture.folder + "/base", {2}}, {*fixture.tuned, probe_}, Out("wrong"));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_FALSE(std::filesystem::exists(Out("wrong")));
}

TEST_F(ExportTest, ABitThatIsWrongInAFileIsNoticed) {
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  const json config_json = WithDtype(fixture.config_json, "float16");
  ASSERT_TRUE(ExportModel({fixture.base, config_json, fixture.folder + "/base", {2}}, {*plain, probe_}, Out("m")).ok());
  EXPECT_TRUE(CompareWeights(fixture.base, at::kHalf, Out("m")).ok());
  EXPECT_EQ(CompareWeights(fixture.base, at::kBFloat16, Out("m")).code(), absl::StatusCode::kInternal);
  std::fstream file(Out("m/model.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-1, std::ios::end);
  const int last = file.get();
  file.seekp(-1, std::ios::end);
  file.put(static_cast<char>(last ^ 1));
  file.close();
  EXPECT_EQ(CompareWeights(fixture.base, at::kHalf, Out("m")).code(), absl::StatusCode::kInternal);
}

TEST_F(ExportTest, NothingButAnEarlierExportIsReplaced) {
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  const auto export_to = [&](const std::string& place, const DecoderModel& trained) {
    return ExportAdapter(fixture.adapter, fixture.base, fixture.config, {trained, probe_}, place);
  };
  ASSERT_TRUE(export_to(Out("a"), *fixture.tuned).ok());
  ASSERT_TRUE(export_to(Out("a"), *fixture.tuned).ok());
  // One that fails leaves the one before, and nothing of its own.
  EXPECT_EQ(export_to(Out("a"), *plain).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(ReadAdapter(Out("a"), fixture.config).ok());
  EXPECT_FALSE(std::filesystem::exists(Out(".unfinished-a")));

  WriteText(Out("a/notes.txt"), "mine");
  EXPECT_THAT(std::string(export_to(Out("a"), *fixture.tuned).message()), HasSubstr("other things than an earlier"));
  EXPECT_TRUE(std::filesystem::exists(Out("a/notes.txt")));
  // What PEFT or transformers wrote has the same names, and is not ours.
  std::filesystem::copy(fixture.folder + "/adapter_final", Out("theirs"));
  EXPECT_EQ(export_to(Out("theirs"), *fixture.tuned).code(), absl::StatusCode::kInvalidArgument);
  WriteText(Out("file"), "mine");
  EXPECT_EQ(export_to(Out("file"), *fixture.tuned).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(
      ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out("file")).code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::filesystem::file_size(Out("file")), 4u);
}

TEST_F(ExportTest, APlaceThatIsOrHoldsOrLiesInAnInputIsRefused) {
  std::filesystem::create_directories(Out("models/base"));
  std::filesystem::create_directory_symlink(Out("models/base"), Out("link"));
  const std::vector<ExportInput> inputs = {{"--base", Out("models/base")}};
  for (const char* place : {"models/base", "models/base/", "models", "models/base/merged", "models/x/../base", "link",
                            "link/merged", "link/merged/../../base"}) {
    const absl::Status status = CheckExportPlace("--out", Out(place), inputs);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << place;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--out: ")) << place;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--base")) << place;
  }
  for (const char* place : {"models/base2", "merged", "models/merged"})
    EXPECT_TRUE(CheckExportPlace("--out", Out(place), inputs).ok()) << place;
}

TEST_F(ExportTest, LargeModelsComeInShardsWithAnIndex) {
  constexpr int64_t kShardBytes = 6000;
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  const json config_json = WithDtype(fixture.config_json, "float32");
  const absl::Status status =
      ExportModel({fixture.base, config_json, fixture.folder + "/base", {2}}, {*plain, probe_}, Out("m"), kShardBytes);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_FALSE(std::filesystem::exists(Out("m/model.safetensors")));
  const json index = ReadJson(Out("m/model.safetensors.index.json"));
  EXPECT_EQ(index["weight_map"].size(), fixture.base.size());
  int64_t total = 0;
  std::set<std::string> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    files.insert(file);
    total += fixture.base.at(name).numel() * 4;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_GT(files.size(), 2u);
  EXPECT_THAT(*files.begin(), HasSubstr("model-00001-of-0000"));
  for (const std::string& file : files)
    EXPECT_LT(std::filesystem::file_size(Out("m/" + file)), kShardBytes + 2000u) << file;
}

// Bugs 4 and 24: a model that was tuned on turns must stop at the end of a turn, whatever its base called the end.
TEST_F(ExportTest, GenerationStopsAtEveryTokenThatEndsAnAnswer) {
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  std::filesystem::copy(fixture.folder + "/base", Out("base"));
  const auto ends = [&](const std::vector<int32_t>& end_ids) {
    const absl::Status status =
        ExportModel({fixture.base, fixture.config_json, Out("base"), end_ids}, {*plain, probe_}, Out("m"));
    EXPECT_TRUE(status.ok()) << status;
    return ReadJson(Out("m/generation_config.json"));
  };
  EXPECT_EQ(ends({2})["eos_token_id"], 2);  // config.json's own
  EXPECT_EQ(ends({2, 7})["eos_token_id"], json({2, 7}));
  WriteText(Out("base/generation_config.json"), R"({"eos_token_id": [5], "temperature": 0.6})");
  const json generation = ends({7});
  EXPECT_EQ(generation["eos_token_id"], json({5, 7}));
  EXPECT_EQ(generation["temperature"], 0.6);
}

TEST_F(ExportTest, GenerationSettingsComeAlongWhereNoTokenEndsAnAnswer) {
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  std::filesystem::copy(fixture.folder + "/base", Out("base"));
  json config_json = fixture.config_json;
  config_json.erase("eos_token_id");
  WriteText(Out("base/generation_config.json"), R"({"temperature": 0.6})");
  ASSERT_TRUE(ExportModel({fixture.base, config_json, Out("base"), {}}, {*plain, probe_}, Out("m")).ok());
  EXPECT_EQ(ReadJson(Out("m/generation_config.json")), json({{"temperature", 0.6}}));
}

TEST_F(ExportTest, TokenizerAndTemplateComeAlong) {
  const ModelFixture fixture("llama");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  std::filesystem::copy(fixture.folder + "/base", Out("base"));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"})
    WriteText(Out("base/") + name, name);
  ASSERT_TRUE(ExportModel({fixture.base, fixture.config_json, Out("base"), {2}}, {*plain, probe_}, Out("m")).ok());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    EXPECT_TRUE(std::filesystem::exists(Out("m/") + name)) << name;
  }
}

}  // namespace
}  // namespace luthier
