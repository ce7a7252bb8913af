// Which local files are which parts of a dataset.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cli/command.h"
#include "client/lib/dataset_upload.h"

namespace luthier {

// What the command line gave: folders and files, and files for a certain part.
struct DatasetPaths {
  std::vector<std::string> paths;
  std::string train, validation, test;
};

// `paths` must outlive the parse.
void AddDatasetPaths(CLI::App& command, DatasetPaths& paths);

// A folder gives its train.jsonl, validation.jsonl and test.jsonl (or .jsonl.gz, .jsonl.zst, .parquet); a file is the
// part that its name begins with, and a single one of another name is `train`. Errors: INVALID_ARGUMENT if there is no
// file, a part is given twice, or a name says nothing.
absl::StatusOr<std::vector<DatasetFile>> FindDatasetFiles(const DatasetPaths& given);

// Files of rows in the given folders that are none of these three, such as val.jsonl.
std::vector<std::string> RowsLeftOut(const DatasetPaths& given);
void WarnOfRowsLeftOut(CommandContext& context, const DatasetPaths& given);

}  // namespace luthier
