// A job file, with what flags change in it.
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/plan/job_spec.h"
#include "nlohmann/json.hpp"

namespace luthier {

// Fields of a job, and where in the file each stands.
struct JobFile {
  std::string name;  // of the file, for messages; empty: all from flags
  nlohmann::json fields = nlohmann::json::object();
  std::map<std::string, int> lines;
};

// Reads YAML or JSON; `-` is standard input. Errors: INVALID_ARGUMENT if it cannot be read or is no block of fields.
absl::StatusOr<JobFile> ReadJobFile(const std::string& path);

// Sets the field at a path (`lora.rank`) to a value written as in the file: `16`, `auto`, `[q_proj, v_proj]`.
// Errors: INVALID_ARGUMENT if the value is no YAML.
absl::Status SetField(JobFile& file, const std::string& field, const std::string& value);

// Takes out what goes with the other kind of tuning only. Returns the path of the field; empty if the file has none.
std::string LeaveOutOtherTuning(JobFile& file, const std::string& tuning);

// Adds a label written as KEY=VALUE.
absl::Status SetLabel(JobFile& file, const std::string& label);

// Errors: INVALID_ARGUMENT with every violation, each with file and line where it has one.
absl::StatusOr<JobSpec> ParseJobFile(const JobFile& file);

// Puts `file:line: ` before each line of a message that begins with a field of the file, as the server's messages do
// too, of what is wrong and of what does not exist.
absl::Status WithLines(const absl::Status& status, const JobFile& file);

}  // namespace luthier
