// The C interface of the Rust crate in rust/ for Parquet files. Functions return 0, or one of LuthierParquetCode with a
// message in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/rust_buffer.h"

struct LuthierParquet;

enum LuthierParquetCode { kLuthierParquetRefused = 1, kLuthierParquetUnreadable = 2 };

extern "C" {

int luthier_parquet_open(const char* path, size_t path_len, uint64_t max_line_bytes, uint64_t max_expansion,
                         LuthierParquet** out, LuthierBuffer* error);
void luthier_parquet_free(LuthierParquet* rows);
// The next lines, valid until the next call; `len` is 0 at the end. Nothing comes after an error.
int luthier_parquet_next(LuthierParquet* rows, const char** lines, size_t* len, LuthierBuffer* error);

}  // extern "C"
