#include "lib/dataset/parquet_source.h"

#include <cstddef>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "lib/dataset/parquet_api.h"

namespace luthier {
namespace {

class ParquetFile : public TextSource {
 public:
  explicit ParquetFile(LuthierParquet* rows) : rows_(rows) {}

  absl::StatusOr<std::string_view> Next() override {
    const char* lines = nullptr;
    size_t length = 0;
    LuthierBuffer error{};
    const int code = luthier_parquet_next(rows_.get(), &lines, &length, &error);
    if (code == kLuthierParquetUnreadable) return absl::DataLossError(TakeText(error));
    if (code != 0) return absl::InvalidArgumentError(TakeText(error));
    return std::string_view(lines, length);
  }

  RowUnit unit() const override { return RowUnit::kRow; }

 private:
  struct Free {
    void operator()(LuthierParquet* rows) const { luthier_parquet_free(rows); }
  };
  std::unique_ptr<LuthierParquet, Free> rows_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TextSource>> OpenParquet(const std::string& path, TextSource::Limits limits) {
  LuthierParquet* rows = nullptr;
  LuthierBuffer error{};
  if (luthier_parquet_open(path.data(), path.size(), static_cast<uint64_t>(limits.max_line_bytes),
                           static_cast<uint64_t>(limits.max_expansion), &rows, &error) != 0) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path, ": ", TakeText(error)));
  }
  return std::make_unique<ParquetFile>(rows);
}

}  // namespace luthier
