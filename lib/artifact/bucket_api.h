// The C interface of the Rust crate in rust/ for object stores. Functions block and may be called from any thread. They
// return 0, or one of LuthierBucketCode with a message in `error`.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lib/base/rust_buffer.h"

struct LuthierBucket;
struct LuthierUpload;

enum LuthierBucketCode { kLuthierFailed = 1, kLuthierNotFound = 2, kLuthierExists = 3, kLuthierDenied = 4 };

extern "C" {

struct LuthierBucketOptions {
  uint32_t max_retries;
  uint64_t retry_timeout_ms;
  uint64_t request_timeout_ms;
};

// `scheme`: of the address, `s3`, `az` or `gs`.
int luthier_bucket_open(const char* scheme, size_t scheme_len, const char* name, size_t name_len, const char* prefix,
                        size_t prefix_len, const LuthierBucketOptions* options, LuthierBucket** out,
                        LuthierBuffer* error);
void luthier_bucket_free(LuthierBucket* bucket);
int luthier_bucket_put_new(const LuthierBucket* bucket, const char* key, size_t key_len, const char* text, size_t len,
                           LuthierBuffer* error);
int luthier_bucket_stat(const LuthierBucket* bucket, const char* key, size_t key_len, int64_t* size, int64_t* modified,
                        LuthierBuffer* error);
int luthier_bucket_read(const LuthierBucket* bucket, const char* key, size_t key_len, uint64_t offset, char* data,
                        size_t len, LuthierBuffer* error);
int luthier_bucket_list(const LuthierBucket* bucket, const char* folder, size_t folder_len,
                        void (*each)(void* context, const char* key, size_t key_len, int64_t size, int64_t modified),
                        void* context, LuthierBuffer* error);
int luthier_bucket_delete(const LuthierBucket* bucket, const char* key, size_t key_len, LuthierBuffer* error);
int luthier_bucket_sign(const LuthierBucket* bucket, const char* key, size_t key_len, uint64_t lifetime_ms,
                        LuthierBuffer* out, LuthierBuffer* error);

int luthier_upload_new(const LuthierBucket* bucket, const char* key, size_t key_len, size_t part_bytes,
                       LuthierUpload** out, LuthierBuffer* error);
int luthier_upload_write(LuthierUpload* upload, const char* data, size_t len, LuthierBuffer* error);
// kLuthierExists: the bucket no longer has the parts, most likely since the object is complete.
int luthier_upload_complete(LuthierUpload* upload, LuthierBuffer* error);
int luthier_upload_free(LuthierUpload* upload, LuthierBuffer* error);

}  // extern "C"
