// What is exported of every family computes what was trained, and a file that does not is noticed.
#include "worker/trainer/export/export.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include "lib/checkpoint/gguf.h"
#include "lib/checkpoint/gguf_adapter.h"
#include "lib/checkpoint/safetensors.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temp_folder.h"
#include "tests/support/text_fixture.h"
#include "tests/support/tiny_model.h"
#include "worker/trainer/export/conversion.h"
#include "worker/trainer/export/export_place.h"
#include "worker/trainer/export/gguf_adapter.h"
#include "worker/trainer/export/template_file.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json ReadJson(const std::string& path) {
  std::ifstream stream(path);
  return json::parse(stream);
}

// A config.json that asks for its weights as `dtype` ("bfloat16").
json WithDtype(json config, const std::string& dtype) {
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = dtype;
  return config;
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

TEST_F(ExportTest, AnAdapterOnEmbeddingOrExpertsComputesWhatWasTrainedInEveryForm) {
  for (const std::string name :
       {"llama_embedding", "gemma3_embedding", "gemma2_embedding_dora", "qwen3_moe_experts", "qwen3_moe_router"}) {
    const ModelFixture fixture(name, "tests/fixtures/adapters/");
    const TrainedModel trained{*fixture.tuned, probe_};
    const absl::Status adapter =
        ExportAdapter(fixture.adapter, fixture.base, fixture.config, trained, Out(name + ".adapter"));
    EXPECT_TRUE(adapter.ok()) << name << ": " << adapter;
    const auto merged = MergeAdapter(fixture.config, fixture.base, fixture.adapter);
    ASSERT_TRUE(merged.ok()) << name << ": " << merged.status();
    const json config_json = WithDtype(MergedConfig(fixture.config_json, *merged), "float32");
    const absl::Status model =
        ExportModel({merged->weights, config_json, fixture.folder + "/base", {2}}, trained, Out(name));
    EXPECT_TRUE(model.ok()) << name << ": " << model;
    if (fixture.adapter.config.dora) continue;
    const absl::Status gguf =
        ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, trained, Out(name + ".gguf"));
    EXPECT_TRUE(gguf.ok()) << name << ": " << gguf;
  }
}

TEST_F(ExportTest, AMergedEmbeddingLeavesTheHeadThatItWasTiedTo) {
  const ModelFixture fixture("gemma3_text");
  ASSERT_TRUE(fixture.config.tie_word_embeddings);
  AdapterConfig config;
  config.target_modules = {"embed_tokens"};
  Adapter adapter = *MakeAdapter(config, fixture.config, fixture.base, 1);
  at::manual_seed(5);
  for (auto& [name, tensor] : adapter.tensors) tensor.normal_(0, 0.3);
  const auto tuned = *MakeTunedModel(fixture.config, fixture.base, {&adapter});
  const auto merged = MergeAdapter(fixture.config, fixture.base, adapter);
  ASSERT_TRUE(merged.ok()) << merged.status();
  const json config_json = WithDtype(MergedConfig(fixture.config_json, *merged), "float32");
  EXPECT_EQ(config_json["tie_word_embeddings"], false);
  const absl::Status status =
      ExportModel({merged->weights, config_json, fixture.folder + "/base", {2}}, {*tuned, probe_}, Out("m"));
  EXPECT_TRUE(status.ok()) << status;
}

// llama.cpp looks a token up in a row of A, which PEFT holds as a column.
TEST_F(ExportTest, TheGgufAdapterOfAnEmbeddingIsTurned) {
  const ModelFixture fixture("llama_embedding", "tests/fixtures/adapters/");
  ASSERT_TRUE(
      ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out("a.gguf")).ok());
  const auto file = ReadGguf(Out("a.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufTensor& a = file->tensors.at("token_embd.weight.lora_a");
  EXPECT_THAT(a.shape, ElementsAre(40, 2));
  EXPECT_THAT(file->tensors.at("token_embd.weight.lora_b").shape, ElementsAre(16, 2));
  const Tensor& trained = fixture.adapter.tensors.at("base_model.model.model.embed_tokens.lora_embedding_A");
  EXPECT_TRUE(at::equal(at::tensor(at::ArrayRef<float>(a.values), at::kFloat).view(a.shape), trained.t()));
}

// llama.cpp has the matrices of all experts as a stack, and gate and up apart; what these have of A is the same.
TEST_F(ExportTest, TheGgufAdapterOfExpertsIsAStackOfTheirs) {
  const ModelFixture fixture("qwen3_moe_experts", "tests/fixtures/adapters/");
  ASSERT_TRUE(
      ExportGgufAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out("a.gguf")).ok());
  const auto file = ReadGguf(Out("a.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tensor = [&](const std::string& name) {
    const GgufTensor& stored = file->tensors.at("blk.0." + name);
    return at::tensor(at::ArrayRef<float>(stored.values), at::kFloat).view(stored.shape);
  };
  const std::string prefix = "base_model.model.model.layers.0.mlp.experts.base_layer.";
  const Tensor a = fixture.adapter.tensors.at(prefix + "lora_A.weight").view({4, 3, 16}),
               b = fixture.adapter.tensors.at(prefix + "lora_B.weight").view({16, 3, 4});
  EXPECT_TRUE(at::equal(tensor("ffn_gate_exps.weight.lora_a"), a));
  EXPECT_TRUE(at::equal(tensor("ffn_up_exps.weight.lora_a"), a));
  for (int64_t expert = 0; expert < 4; ++expert) {
    EXPECT_TRUE(at::equal(tensor("ffn_gate_exps.weight.lora_b")[expert], b.select(2, expert).slice(0, 0, 8)));
    EXPECT_TRUE(at::equal(tensor("ffn_up_exps.weight.lora_b")[expert], b.select(2, expert).slice(0, 8, 16)));
  }
  EXPECT_THAT(file->tensors.at("blk.0.ffn_down_exps.weight.lora_b").shape, ElementsAre(4, 16, 2));
}

TEST_F(ExportTest, AnExportThatIsStoppedSaysSoAndLeavesNothing) {
  ASSERT_TRUE(WriteTinyModel(Out("base")).ok());
  TrainerSpec spec;
  spec.base_model = Out("base");
  spec.start_adapter = Out("adapter");
  spec.export_as = "merged";
  RunControl control;
  control.stop = true;
  std::FILE* const output = std::fopen(Out("events").c_str(), "w");
  ASSERT_NE(output, nullptr);
  EventWriter events(output, spec.attempt, "");
  const absl::Status status = RunExport(spec, Out("run"), events, control);
  std::fclose(output);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> said;
  std::ifstream lines(Out("events"));
  for (std::string line; std::getline(lines, line);) said.push_back(json::parse(line)["event"]);
  EXPECT_THAT(said, ElementsAre("started", "busy", "stopped"));
  EXPECT_FALSE(std::filesystem::exists(Out("run") + "/model"));
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
  EXPECT_THAT(export_with(config), HasSubstr("target_modules: a GGUF adapter cannot hold an adapter on a head"));
  config.target_modules = {"embed_tokens"};
  EXPECT_THAT(export_with(config), HasSubstr("target_modules: a GGUF adapter cannot hold an adapter on an embedding"));
  EXPECT_FALSE(std::filesystem::exists(Out("a.gguf")));
}

// llama.cpp's Gemma 2 takes the embedding for its head, so that the remedy is another one there.
TEST_F(ExportTest, WhatLlamaCppHasNoMergedModelForIsRefusedWithoutThatRemedy) {
  const ModelFixture gemma2("gemma2"), gemma3("gemma3_text");
  ASSERT_TRUE(gemma2.config.tie_word_embeddings);
  AdapterConfig config;
  const auto refusal = [&](const ModelFixture& fixture) {
    return std::string(CheckFitsGgufAdapter(config, fixture.config).message());
  };
  for (const std::string module : {"lm_head", "embed_tokens"}) {
    config.target_modules = {"q_proj", module};
    EXPECT_THAT(refusal(gemma3), HasSubstr("export the merged model instead"));
    EXPECT_THAT(refusal(gemma2), AllOf(HasSubstr("target_modules: a GGUF adapter cannot hold an adapter on"),
                                       HasSubstr("llama.cpp knows no gemma2 with a head of its own"),
                                       HasSubstr("leave lm_head and embed_tokens as they are")));
  }
  config.target_modules = {"q_proj"};
  EXPECT_EQ(refusal(gemma2), "");
  config.modules_to_save = {"embed_tokens"};
  EXPECT_THAT(refusal(gemma2), HasSubstr("leave lm_head and embed_tokens as they are"));
  config.modules_to_save = {};
  config.dora = true;
  EXPECT_THAT(refusal(gemma2), HasSubstr("use_dora: a GGUF adapter cannot hold magnitudes; export the merged model"));
}

TEST_F(ExportTest, AnAdapterOnTheHeadOfAnUntiedGemma2IsRefusedToo) {
  ModelFixture fixture("gemma2_embedding_dora", "tests/fixtures/adapters/");
  ASSERT_FALSE(fixture.config.tie_word_embeddings);
  AdapterConfig config;
  config.target_modules = {"lm_head"};
  EXPECT_THAT(std::string(CheckFitsGgufAdapter(config, fixture.config).message()),
              HasSubstr("llama.cpp knows no gemma2 with a head of its own"));
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

// A router that chooses between two experts that are nearly as probable is turned by rounding, and then a few tokens
// have other logits.
TEST_F(ExportTest, AFewTokensOfAnotherExpertDoNotKeepAModelBack) {
  const ModelFixture fixture("qwen3_moe");
  json config_json = WithDtype(fixture.config_json, "float32");
  config_json["tie_word_embeddings"] = false;  // so that the embedding of one token moves no logits of the others
  const ModelConfig config = *ParseModelConfig(config_json);
  NamedTensors weights = fixture.base;
  const Tensor embedding_VD = weights.at("model.embed_tokens.weight");
  weights["lm_head.weight"] = embedding_VD;
  const auto export_of = [&](const Tensor& trained_VD) {
    NamedTensors trained = weights;
    trained["model.embed_tokens.weight"] = trained_VD;
    const auto model = *MakeModel(config, trained, {});
    return ExportModel({weights, config_json, fixture.folder + "/base", {2}}, {*model, probe_}, Out("m")).code();
  };
  const Tensor last_token_VD = embedding_VD.clone();  // 20 ends the probe, so no other token sees it
  last_token_VD[20].neg_();
  EXPECT_EQ(export_of(last_token_VD), absl::StatusCode::kOk);
  EXPECT_EQ(export_of(-embedding_VD), absl::StatusCode::kInternal);
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

// A bit of a matrix that the probe's tokens hardly touch moves no logit, and is not what was trained all the same.
TEST_F(ExportTest, AnAdapterIsComparedBitForBitInFp32) {
  const ModelFixture fixture("llama");
  ASSERT_TRUE(ExportAdapter(fixture.adapter, fixture.base, fixture.config, {*fixture.tuned, probe_}, Out("a")).ok());
  EXPECT_TRUE(CompareAdapter(fixture.adapter, Out("a")).ok());
  std::fstream file(Out("a/adapter_model.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(-4, std::ios::end);  // the lowest byte of the last number
  const int low = file.get();
  file.seekp(-4, std::ios::end);
  file.put(static_cast<char>(low ^ 1));
  file.close();
  EXPECT_EQ(CompareAdapter(fixture.adapter, Out("a")).code(), absl::StatusCode::kInternal);

  std::vector<Tensor> halves;
  std::vector<TensorToWrite> stored;
  for (const auto& [name, tensor] : fixture.adapter.tensors) {
    halves.push_back(tensor.to(at::kBFloat16).contiguous());
    stored.push_back(ToWrite(name, halves.back()));
  }
  ASSERT_TRUE(WriteSafetensors(Out("a/adapter_model.safetensors"), stored, {}).ok());
  EXPECT_THAT(std::string(CompareAdapter(fixture.adapter, Out("a")).message()), HasSubstr("F32"));
}

TEST_F(ExportTest, ExportsAreComparedOnAShortAMiddlingAndTheLongestRow) {
  EXPECT_THAT(ProbeRows({7}), ElementsAre(0));
  EXPECT_THAT(ProbeRows({9, 7}), ElementsAre(1, 0));
  EXPECT_THAT(ProbeRows({5, 90, 30, 4, 60}), ElementsAre(3, 2, 1));
  EXPECT_THAT(ProbeRows({5000, 4000, 3000}), ElementsAre(0));  // the longest is trained on as a whole
  EXPECT_THAT(ProbeRows({5000, 4000, 10}), ElementsAre(2, 0));
}

// Another window computes the same for a row that fits into it.
TEST_F(ExportTest, OnALongRowAConfigThatReadsAsAnotherModelIsNoticed) {
  const ModelFixture fixture("mistral");
  const auto plain = *MakeModel(fixture.config, fixture.base, {});
  json config_json = WithDtype(fixture.config_json, "float32");
  config_json["sliding_window"] = 1000;
  const auto export_with = [&](const PackedBatch& probe) {
    return ExportModel({fixture.base, config_json, fixture.folder + "/base", {2}}, {*plain, probe}, Out("m")).code();
  };
  std::vector<std::vector<int32_t>> rows = {{1, 5, 30}, std::vector<int32_t>(600, 7)};
  for (size_t i = 0; i < rows[1].size(); ++i) rows[1][i] = static_cast<int32_t>(i * 11 % 40);
  EXPECT_EQ(export_with(BatchOf({rows[0]})), absl::StatusCode::kOk);
  EXPECT_EQ(export_with(BatchOf(rows)), absl::StatusCode::kInternal);
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
  const auto names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                      "additional_chat_templates/tool_use.jinja"};
  std::filesystem::create_directory(Out("base/additional_chat_templates"));
  for (const char* name : names) WriteText(Out("base/") + name, name);
  for (int again = 0; again < 2; ++again) {  // the second takes the place of the first
    const absl::Status status =
        ExportModel({fixture.base, fixture.config_json, Out("base"), {2}}, {*plain, probe_}, Out("m"));
    ASSERT_TRUE(status.ok()) << status;
    for (const char* name : names) EXPECT_TRUE(std::filesystem::exists(Out("m/") + name)) << name;
  }
  WriteText(Out("m/additional_chat_templates/notes.txt"), "mine");
  EXPECT_EQ(ExportModel({fixture.base, fixture.config_json, Out("base"), {2}}, {*plain, probe_}, Out("m")).code(),
            absl::StatusCode::kInvalidArgument);
}

// A base with a template for tools had only the other one exported with a date.
TEST_F(ExportTest, ADateIsPinnedInBothTemplatesOfABase) {
  std::filesystem::create_directories(Out("base"));
  std::filesystem::create_directories(Out("model"));
  std::filesystem::create_directories(Out("adapter"));
  WriteText(Out("base/tokenizer_config.json"), R"({"chat_template": [{"name": "default", "template": "plain"},
                                                   {"name": "tool_use", "template": "tools"}]})");
  std::filesystem::copy(Out("base/tokenizer_config.json"), Out("model"));
  const TemplateSources pinned("{# template_date: 2026-11-29 #}\nplain", "{# template_date: 2026-11-29 #}\ntools");
  for (const char* folder : {"model", "adapter"}) {
    ASSERT_TRUE(ExportTemplate({}, "2026-11-29", Out("base"), Out(folder)).ok());
    EXPECT_TRUE(*ReadTemplateFiles(Out(folder)) == pinned) << folder;
  }
  const json config = ReadJson(Out("model/tokenizer_config.json"))["chat_template"];
  EXPECT_EQ(config, json::array({{{"name", "default"}, {"template", pinned.chat}},
                                 {{"name", "tool_use"}, {"template", pinned.tool_use}}}));
  // An adapter's go with the model that it is merged into.
  ASSERT_TRUE(ExportTemplate(*ReadTemplateFiles(Out("adapter")), "", Out("base"), Out("model")).ok());
  EXPECT_TRUE(*ReadTemplateFiles(Out("model")) == pinned);
}

// The base model's template for tools would render what the job trained with its own.
TEST_F(ExportTest, AJobsOwnTemplateLeavesNoneOfTheBase) {
  std::filesystem::create_directories(Out("model/additional_chat_templates"));
  WriteText(Out("model/additional_chat_templates/tool_use.jinja"), "tools of the base");
  WriteText(Out("model/tokenizer_config.json"),
            R"({"chat_template": [{"name": "tool_use", "template": "of the base"}]})");
  ASSERT_TRUE(ExportTemplate({"own"}, "", Out("model"), Out("model")).ok());
  EXPECT_TRUE(*ReadTemplateSources(Out("model")) == TemplateSources("own"));
  EXPECT_EQ(ReadJson(Out("model/tokenizer_config.json"))["chat_template"], "own");
}

}  // namespace
}  // namespace luthier
