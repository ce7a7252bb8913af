// Where an export goes. What stands there is only replaced if an earlier export wrote it, and the place holds nothing
// until the export is whole and has been compared with the trained model.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "lib/checkpoint/gguf.h"

namespace luthier {

// How exports are told from what others wrote: metadata of safetensors and GGUF files.
inline constexpr char kProducerKey[] = "producer", kProducer[] = "luthier";
const std::map<std::string, std::string>& SafetensorsMetadata();

// A folder that an export reads, and the flag or field that gave it.
using ExportInput = std::pair<std::string, std::string>;

// Errors: INVALID_ARGUMENT naming `flag`, what is there and the remedy, if `place` is, holds or lies in one of the
// inputs, or if something other than an earlier export or an empty folder is there.
absl::Status CheckExportPlace(const std::string& flag, const std::string& place,
                              const std::vector<ExportInput>& inputs);

// The same for a run in folder `out` that will leave its result in `out`/`artifact`: it must not write into an input,
// nor replace files of something that is no run.
absl::Status CheckRunFolder(const std::string& out, const std::string& artifact,
                            const std::vector<ExportInput>& inputs);

// Calls `write` with a path beside `place` where nothing is, and gives what it made there the name of `place` if it
// succeeded; else removes it. Errors: those of `write`; as CheckExportPlace; RESOURCE_EXHAUSTED.
absl::Status WriteExport(const std::string& place,
                         const std::function<absl::Status(const std::string& unfinished)>& write);

}  // namespace luthier
