// The fields of a job file as flags of `job submit`.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cli/command.h"
#include "client/cli/job_file.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// One field: `--lora.rank N`. Flags have hyphens where fields have underscores; WithHyphens() takes either.
struct JobFlag {
  const char* field;
  const char* value;  // what stands for it in the help
  const char* help;
};

// Every field of a job file except `labels`, in its order.
const std::vector<JobFlag>& JobFlagList();

// What was given on the command line.
struct JobFlagValues {
  std::vector<std::pair<std::string, std::string>> fields;  // field → value
  std::vector<std::string> labels;
};

// `--base-model=b` of `--base_model=b`; arguments that are no such flag stay as they are.
std::string WithHyphens(std::string argument);

// `values` must outlive the parse.
void AddJobFlags(CLI::App& command, JobFlagValues& values);

// What the file says of another kind of tuning gives way to `--tuning`, as its `dataset: NAME` does to
// `--dataset.train`, and is put into words for its author; flags that contradict one another are left to be refused.
// Errors: INVALID_ARGUMENT naming the flag.
absl::StatusOr<std::vector<std::string>> ApplyJobFlags(const JobFlagValues& values, JobFile& file);

// `before` with the flags in it, and what of it gave way. Its chat template stays as it is: of a file it might be a
// path, and no server chooses what is read here. Errors: as ParseJobFile(), ApplyJobFlags().
struct ChangedSpec {
  JobSpec spec;
  std::vector<std::string> gave_way;
};
absl::StatusOr<ChangedSpec> SpecWithFlags(const std::string& name, const JobSpec& before, const JobFlagValues& flags);

// The job file at `path` (empty: none) with the flags in it; says what of it gave way. Errors: as ReadJobFile(),
// ApplyJobFlags().
absl::StatusOr<JobFile> ReadJobWithFlags(CommandContext& context, const std::string& path, const JobFlagValues& flags);

// What a job has beside its file.
struct SettingFlags {
  std::string service_class;    // word; empty: the default
  std::optional<int> priority;  // none: 0
  std::string retention;        // duration; empty: the server's
  std::string deadline;         // duration from now, or a time; empty: none
};
void AddSettingFlags(CLI::App& command, SettingFlags& flags);
absl::Status ApplySettingFlags(const SettingFlags& flags, v1::FineTuningJob& job);
// Errors: INVALID_ARGUMENT naming the flag.
absl::Status SetRetention(const std::string& text, v1::FineTuningJob& job);
// `text`: a duration from now, or a time.
absl::Status SetDeadline(const std::string& text, absl::Time now, v1::FineTuningJob& job);

}  // namespace luthier
