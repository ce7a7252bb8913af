// The C interface of the Rust crate in rust/ for GET requests. Functions block and may be called from any thread. They
// return 0, or one of LuthierHttpCode with a message in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/rust_buffer.h"

struct LuthierHttp;
struct LuthierHttpAnswer;

// kLuthierHttpRefused: another try would do no better; kLuthierHttpBroken: of the connection.
enum LuthierHttpCode { kLuthierHttpRefused = 1, kLuthierHttpBroken = 2 };

extern "C" {

int luthier_http_new(uint64_t connect_timeout_ms, uint64_t idle_timeout_ms, LuthierHttp** out, LuthierBuffer* error);
void luthier_http_free(LuthierHttp* http);
// The bytes from `offset` on, of which the server may also send all. 0 whatever its status is.
int luthier_http_get(const LuthierHttp* http, const char* url, size_t url_len, const char* token, size_t token_len,
                     uint64_t offset, LuthierHttpAnswer** out, int32_t* status, LuthierBuffer* error);
bool luthier_http_header(const LuthierHttpAnswer* answer, const char* name, size_t name_len, LuthierBuffer* out);
// `count`: 0 at the end of the body.
int luthier_http_read(LuthierHttpAnswer* answer, char* data, size_t len, size_t* count, LuthierBuffer* error);
void luthier_http_answer_free(LuthierHttpAnswer* answer);

}  // extern "C"
