// The kinds of task that a job can have. They decide how answers are scored and which
// hyperparameters are chosen.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"

namespace luthier {

enum class TaskType { kClassification, kNer, kExtraction, kQa, kToolCalling, kChat, kText };

// "classification", "ner", "extraction", "qa", "tool_calling", "chat", "text". INVALID_ARGUMENT lists the names that
// exist.
absl::StatusOr<TaskType> ParseTaskType(std::string_view name);
// True if the parts of an answer are scored one by one (score.h): ner, extraction, qa, tool_calling.
bool HasFields(TaskType task);

}  // namespace luthier
