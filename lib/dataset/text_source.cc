#include "lib/dataset/text_source.h"

#include <zlib.h>
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataset/parquet_source.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

constexpr size_t kPieceBytes = 64 << 10;
constexpr int64_t kFreeBytes = 16 << 20;
constexpr std::string_view kGzipStart = "\x1F\x8B", kZstdStart = "\x28\xB5\x2F\xFD", kParquetStart = "PAR1";

class PlainFile : public TextSource {
 public:
  explicit PlainFile(std::ifstream file) : file_(std::move(file)), buffer_(kPieceBytes) {}

  absl::StatusOr<std::string_view> Next() override {
    file_.read(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
    if (file_.bad()) return absl::DataLossError("the file cannot be read on");
    return std::string_view(buffer_.data(), static_cast<size_t>(file_.gcount()));
  }

 private:
  std::ifstream file_;
  std::vector<char> buffer_;
};

absl::Status Damaged(std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("the compressed file is damaged here (", std::string(what), "); compress it again"));
}

// What gzip and zstd share: `Expand` is theirs.
class CompressedFile : public TextSource {
 public:
  CompressedFile(std::unique_ptr<TextSource> file, int64_t max_expansion)
      : file_(std::move(file)), max_expansion_(max_expansion), buffer_(kPieceBytes) {}

  absl::StatusOr<std::string_view> Next() override {
    while (true) {
      if (input_.empty() && !at_end_) {
        LUTHIER_ASSIGN_OR_RETURN(input_, file_->Next());
        at_end_ = input_.empty();
        bytes_in_ += static_cast<int64_t>(input_.size());
      }
      const size_t before = input_.size();
      LUTHIER_ASSIGN_OR_RETURN(const size_t written, Expand(input_, buffer_));
      bytes_out_ += static_cast<int64_t>(written);
      if (bytes_out_ > kFreeBytes + max_expansion_ * bytes_in_) {
        return absl::InvalidArgumentError(absl::StrCat("the compressed file expands to more than ", max_expansion_,
                                                       " times its size; give it uncompressed if that is no accident"));
      }
      if (written > 0) return std::string_view(buffer_.data(), written);
      if (at_end_ && complete()) return std::string_view();
      if (at_end_ && input_.size() == before) return Damaged("it ends too early");
    }
  }

 protected:
  // Moves bytes from the front of `input` to `output`; returns how many it wrote.
  virtual absl::StatusOr<size_t> Expand(std::string_view& input, std::vector<char>& output) = 0;
  // Whether the data may end here.
  virtual bool complete() const = 0;

 private:
  std::unique_ptr<TextSource> file_;
  const int64_t max_expansion_;
  std::vector<char> buffer_;
  std::string_view input_;
  bool at_end_ = false;
  int64_t bytes_in_ = 0, bytes_out_ = 0;
};

class GzipFile : public CompressedFile {
 public:
  GzipFile(std::unique_ptr<TextSource> file, int64_t max_expansion) : CompressedFile(std::move(file), max_expansion) {
    constexpr int kGzipOnly = 16;
    started_ = inflateInit2(&stream_, kGzipOnly + MAX_WBITS) == Z_OK;
  }
  ~GzipFile() override { inflateEnd(&stream_); }

 protected:
  absl::StatusOr<size_t> Expand(std::string_view& input, std::vector<char>& output) override {
    if (!started_) return absl::ResourceExhaustedError("no memory to decompress with");
    if (input.empty() && complete_) return 0;
    if (complete_) inflateReset(&stream_);  // files put behind one another, as `cat a.gz b.gz` does
    complete_ = false;
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(input.data()));
    stream_.avail_in = static_cast<uInt>(input.size());
    stream_.next_out = reinterpret_cast<Bytef*>(output.data());
    stream_.avail_out = static_cast<uInt>(output.size());
    const int result = inflate(&stream_, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
      return Damaged(stream_.msg != nullptr ? stream_.msg : "not gzip");
    }
    complete_ = result == Z_STREAM_END;
    input.remove_prefix(input.size() - stream_.avail_in);
    return output.size() - stream_.avail_out;
  }
  bool complete() const override { return complete_; }

 private:
  z_stream stream_ = {};
  bool started_ = false;
  bool complete_ = false;
};

class ZstdFile : public CompressedFile {
 public:
  using CompressedFile::CompressedFile;
  ~ZstdFile() override { ZSTD_freeDStream(stream_); }

 protected:
  absl::StatusOr<size_t> Expand(std::string_view& input, std::vector<char>& output) override {
    ZSTD_inBuffer in = {input.data(), input.size(), 0};
    ZSTD_outBuffer out = {output.data(), output.size(), 0};
    // Its window is at most 128 MiB, which is the decompressor's own limit.
    const size_t result = ZSTD_decompressStream(stream_, &out, &in);
    if (ZSTD_isError(result)) return Damaged(ZSTD_getErrorName(result));
    if (in.pos > 0 || out.pos > 0) complete_ = result == 0;
    input.remove_prefix(in.pos);
    return out.pos;
  }
  bool complete() const override { return complete_; }

 private:
  ZSTD_DStream* stream_ = ZSTD_createDStream();
  bool complete_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TextSource>> TextSource::Open(const std::string& path, Limits limits) {
  // Before it is opened: a pipe into which nobody writes lets nobody open it, and a device may never end.
  std::error_code error;
  if (const fs::file_status status = fs::status(path, error); fs::exists(status) && !fs::is_regular_file(status)) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path,
                                            ": it is a folder, a pipe or a device; give a file, whose rows can be read "
                                            "more than once"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat("cannot open ", path, ": no such file, or it may not be read; give a file of rows"));
  }
  char first[4] = {};
  file.read(first, sizeof(first));
  const std::string_view start(first, static_cast<size_t>(file.gcount()));
  if (start == kParquetStart) return OpenParquet(path, limits);
  if (path.ends_with(".parquet")) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": no Parquet file: it does not begin with PAR1; write it again, or name it for what it is"));
  }
  file.clear();
  file.seekg(0);
  std::unique_ptr<TextSource> plain = std::make_unique<PlainFile>(std::move(file));
  if (start.starts_with(kGzipStart)) return std::make_unique<GzipFile>(std::move(plain), limits.max_expansion);
  if (start.starts_with(kZstdStart)) return std::make_unique<ZstdFile>(std::move(plain), limits.max_expansion);
  return plain;
}

}  // namespace luthier
