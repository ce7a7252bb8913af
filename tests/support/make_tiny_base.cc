// make-tiny-base FOLDER [FAMILY]: the tests' base model (FOLDER/empty, no weights) and rows (FOLDER/train.jsonl), for
// shell tests.
#include <iostream>
#include <map>

#include "tests/support/text_fixture.h"

namespace {

// What makes the tiny Llama another family.
const std::map<std::string, nlohmann::json>& Families() {
  static const std::map<std::string, nlohmann::json> families = {
      {"llama", nlohmann::json::object()},
      {"qwen2",
       {{"model_type", "qwen2"},
        {"architectures", {"Qwen2ForCausalLM"}},
        {"tie_word_embeddings", false},
        {"use_sliding_window", false}}},
      {"gemma2",
       {{"model_type", "gemma2"},
        {"architectures", {"Gemma2ForCausalLM"}},
        {"hidden_activation", "gelu_pytorch_tanh"},
        {"query_pre_attn_scalar", 8},
        {"sliding_window", 6},
        {"attn_logit_softcapping", 5.0},
        {"final_logit_softcapping", 8.0}}},
      {"qwen3_moe",
       {{"model_type", "qwen3_moe"},
        {"architectures", {"Qwen3MoeForCausalLM"}},
        {"moe_intermediate_size", 12},
        {"num_experts", 4},
        {"num_experts_per_tok", 2},
        {"norm_topk_prob", true},
        {"decoder_sparse_step", 1},
        {"mlp_only_layers", {1}},
        {"head_dim", 8}}},
  };
  return families;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string family = argc == 3 ? argv[2] : "llama";
  if (argc < 2 || argc > 3 || !Families().contains(family)) {
    std::cerr << "usage: make-tiny-base FOLDER [llama|qwen2|gemma2|qwen3_moe]\n";
    return 2;
  }
  const std::string folder = argv[1];
  luthier::WriteTinyBase(folder + "/empty", Families().at(family));
  std::string rows;
  for (int i = 0; i < 24; ++i) rows += luthier::ChatLine("row " + std::to_string(i), i % 2 == 0 ? "even" : "odd");
  luthier::WriteText(folder + "/train.jsonl", rows);
}
