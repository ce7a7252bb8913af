// Rows of a Parquet file as JSON lines: line N is row N, with the fields that the row has.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lib/dataset/text_source.h"

namespace luthier {

// Errors: NOT_FOUND if the file cannot be opened, or is none of Parquet. Those of its rows come when they are read.
absl::StatusOr<std::unique_ptr<TextSource>> OpenParquet(const std::string& path, TextSource::Limits limits);

}  // namespace luthier
