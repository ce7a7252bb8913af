// A job in words and tables.
#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/cli/table.h"
#include "client/cli/terminal.h"
#include "luthier/v1/jobs.pb.h"

namespace luthier {

// The states that a job can be in, as --state takes them.
std::vector<std::string> StateWords();

// One line a job; `wide` adds columns.
Table JobTable(const std::vector<v1::FineTuningJob>& jobs, bool wide, absl::Time now);

// Everything that is known of a job: state, why it waits, values with reasons, progress, evaluations, result or
// failure.
std::string JobDescription(const v1::FineTuningJob& job, absl::Time now, const Terminal& terminal);

// What a job has published, and what can be done with it. Requires: it has succeeded.
std::string WhatCameOut(const v1::FineTuningJob& job);

// How it makes its result: lora, full or export.
std::string TuningWord(const v1::FineTuningSpec& spec);

// Every resolved value with its reason.
std::string ResolvedTable(const v1::FineTuningJob& job, const Terminal& terminal);

// What the user can do about a failure with this cause.
std::string Remedy(v1::JobFailure::Cause cause, const std::string& job);

}  // namespace luthier
