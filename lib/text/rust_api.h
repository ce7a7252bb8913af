// The C interface of the Rust crate in rust/ for tokenizers and chat templates. Functions return 0, or 1 with a message
// in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/rust_buffer.h"

struct LuthierTokenizer;
struct LuthierTemplate;

extern "C" {

struct LuthierEncoding {
  int32_t* ids;
  int64_t* offsets;  // first byte and end of each id
  size_t len;
};
struct LuthierRendered {
  LuthierBuffer text;
  int64_t* spans;  // first byte and end of each generation block
  size_t span_count;
  bool spans_in_place;
};

void luthier_encoding_free(LuthierEncoding encoding);
void luthier_rendered_free(LuthierRendered rendered);

// `files`: see tokenizer_files.h.
int luthier_tokenizer_new(const char* json, size_t len, const char* files, size_t files_len, LuthierTokenizer** out,
                          LuthierBuffer* error);
int luthier_named_tokens(const char* files, size_t len, LuthierBuffer* out, LuthierBuffer* error);
void luthier_tokenizer_free(LuthierTokenizer* tokenizer);
int luthier_tokenizer_encode(const LuthierTokenizer* tokenizer, const char* text, size_t len, bool with_special_tokens,
                             LuthierEncoding* out, LuthierBuffer* error);
int luthier_tokenizer_decode(const LuthierTokenizer* tokenizer, const int32_t* ids, size_t len,
                             bool skip_special_tokens, LuthierBuffer* out, LuthierBuffer* error);
int64_t luthier_tokenizer_vocab_size(const LuthierTokenizer* tokenizer);
int64_t luthier_tokenizer_token_to_id(const LuthierTokenizer* tokenizer, const char* token, size_t len);
bool luthier_tokenizer_id_to_token(const LuthierTokenizer* tokenizer, int32_t id, LuthierBuffer* out);
bool luthier_tokenizer_is_special(const LuthierTokenizer* tokenizer, int32_t id);

int luthier_template_new(const char* source, size_t source_len, const char* special_tokens, size_t special_tokens_len,
                         LuthierTemplate** out, bool* has_generation, LuthierBuffer* error);
void luthier_template_free(LuthierTemplate* compiled);
int luthier_template_render(const LuthierTemplate* compiled, const char* request, size_t len, LuthierRendered* out,
                            LuthierBuffer* error);

}  // extern "C"
