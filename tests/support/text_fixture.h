// A base model folder without weights that tests make themselves: config, a tokenizer whose tokens are the 256 bytes, a
// ChatML template with {% generation %}.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "nlohmann/json.hpp"

namespace luthier {

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// The printable stand-ins of the 256 bytes in byte-level BPE (GPT-2's bytes_to_unicode), as UTF-8.
inline std::string ByteSymbol(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

// Writes config.json, tokenizer.json and tokenizer_config.json of a Llama with 259 tokens and 2 layers into `folder`;
// `changes` to its config make it another family.
inline void WriteTinyBase(const std::string& folder, const nlohmann::json& changes = nlohmann::json::object()) {
  using nlohmann::json;
  std::filesystem::create_directories(folder);
  json vocab = {{"<|pad|>", 0}, {"<|im_start|>", 1}, {"<|im_end|>", 2}};
  for (int byte = 0; byte < 256; ++byte) vocab[ByteSymbol(byte)] = byte + 3;
  json added = json::array();
  for (const char* token : {"<|pad|>", "<|im_start|>", "<|im_end|>"}) {
    added.push_back({{"id", vocab[token]},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const json tokenizer = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", json::array()}}}};
  WriteText(folder + "/tokenizer.json", tokenizer.dump());
  const std::string chat_template =
      "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
      "{%- if message.role == 'assistant' %}{%- generation %}{{- message.content + '<|im_end|>' }}{%- endgeneration %}"
      "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
      "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";
  WriteText(folder + "/tokenizer_config.json",
            json{{"tokenizer_class", "PreTrainedTokenizerFast"},  // tokenizer.json as it stands, for a Gemma too
                 {"eos_token", "<|im_end|>"},
                 {"pad_token", "<|pad|>"},
                 {"chat_template", chat_template}}
                .dump());
  json config = json{{"architectures", {"LlamaForCausalLM"}},
                     {"model_type", "llama"},
                     {"vocab_size", 259},
                     {"hidden_size", 32},
                     {"intermediate_size", 64},
                     {"num_hidden_layers", 2},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"head_dim", 8},
                     {"max_position_embeddings", 256},
                     {"rms_norm_eps", 1e-5},
                     {"rope_theta", 10000.0},
                     {"tie_word_embeddings", true},
                     {"hidden_act", "silu"},
                     {"eos_token_id", 2},
                     {"pad_token_id", 0},
                     {"torch_dtype", "float32"}};
  config.update(changes);
  WriteText(folder + "/config.json", config.dump());
}

// A chat row as one line of JSONL.
inline std::string ChatLine(const std::string& question, const std::string& answer) {
  return nlohmann::json{
             {"messages", {{{"role", "user"}, {"content", question}}, {{"role", "assistant"}, {"content", answer}}}}}
             .dump() +
         "\n";
}

}  // namespace luthier
