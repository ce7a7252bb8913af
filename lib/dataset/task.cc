#include "lib/dataset/task.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

constexpr std::array<std::pair<TaskType, std::string_view>, 7> kNames = {{
    {TaskType::kClassification, "classification"},
    {TaskType::kNer, "ner"},
    {TaskType::kExtraction, "extraction"},
    {TaskType::kQa, "qa"},
    {TaskType::kToolCalling, "tool_calling"},
    {TaskType::kChat, "chat"},
    {TaskType::kText, "text"},
}};

}  // namespace

absl::StatusOr<TaskType> ParseTaskType(std::string_view name) {
  std::string names;
  for (const auto& [type, known] : kNames) {
    if (known == name) return type;
    absl::StrAppend(&names, names.empty() ? "" : ", ", std::string(known));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("task: '", std::string(name), "' is not known; choose one of ", names));
}

bool HasFields(TaskType task) {
  return task == TaskType::kNer || task == TaskType::kExtraction || task == TaskType::kQa ||
         task == TaskType::kToolCalling;
}

}  // namespace luthier
