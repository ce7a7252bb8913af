#include "client/cli/job_file.h"

#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cli/label_flag.h"
#include "client/cli/model_names.h"
#include "client/cli/yaml.h"
#include "lib/base/status_macros.h"
#include "lib/text/chat_template.h"
#include "lib/text/json_file.h"

namespace luthier {
namespace {

using nlohmann::json;

// No further than ParseYaml() takes it: a device or a pipe may have no end.
absl::StatusOr<std::string> ReadText(const std::string& path) {
  constexpr size_t kMost = kMostYamlBytes + 1;
  if (path == "-") {
    std::string text(kMost, '\0');
    std::cin.read(text.data(), kMost);
    text.resize(static_cast<size_t>(std::cin.gcount()));
    return text;
  }
  absl::StatusOr<std::string> text = ReadTextFile(path, kMost);
  if (!text.ok())
    return absl::InvalidArgumentError(absl::StrCat("-f: ", text.status().message(), "; give the path of a job file"));
  return text;
}

}  // namespace

absl::StatusOr<JobFile> ReadJobFile(const std::string& path) {
  LUTHIER_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  JobFile file;
  file.name = path == "-" ? "standard input" : path;
  LUTHIER_ASSIGN_OR_RETURN(YamlDocument document, ParseYaml(text, file.name));
  if (!document.value.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.name, ": is no job file; write `base_model: NAME` and `dataset: NAME`"));
  }
  file.fields = std::move(document.value);
  file.lines = std::move(document.lines);
  return file;
}

absl::Status SetField(JobFile& file, const std::string& field, const std::string& value) {
  const absl::StatusOr<YamlDocument> parsed = ParseYaml(value, absl::StrCat("--", field));
  LUTHIER_RETURN_IF_ERROR(parsed.status());
  json* target = &file.fields;
  const std::vector<std::string> path = absl::StrSplit(field, '.');
  for (size_t i = 0; i + 1 < path.size(); ++i) {
    target = &(*target)[path[i]];
    if (!target->is_object()) *target = json::object();  // `dataset: name` gives way to `--dataset.train`
  }
  (*target)[path.back()] = parsed->value;
  file.lines.erase(field);
  return absl::OkStatus();
}

std::string LeaveOutOtherTuning(JobFile& file, const std::string& tuning) {
  const std::string field = LeaveOutOtherTuning(file.fields, tuning);
  if (field.empty()) return field;
  std::erase_if(file.lines, [&](const auto& line) { return absl::StartsWith(line.first + ".", field + "."); });
  return field;
}

absl::Status SetLabel(JobFile& file, const std::string& label) {
  LUTHIER_ASSIGN_OR_RETURN(const auto pair, ParseLabel(label));
  if (!file.fields["labels"].is_object()) file.fields["labels"] = json::object();
  file.fields["labels"][pair.first] = pair.second;
  return absl::OkStatus();
}

absl::StatusOr<JobSpec> ParseJobFile(const JobFile& file) {
  absl::StatusOr<JobSpec> spec = ParseJobSpec(file.fields);
  if (!spec.ok()) return WithLines(spec.status(), file);
  absl::StatusOr<std::string> chat_template = TemplateSource(spec->recipe.chat_template);
  if (!chat_template.ok()) return WithLines(chat_template.status(), file);
  spec->recipe.chat_template = *std::move(chat_template);
  if (!spec->recipe.lora.start_from.empty()) spec->recipe.lora.start_from = VersionName(spec->recipe.lora.start_from);
  return spec;
}

absl::Status WithLines(const absl::Status& status, const JobFile& file) {
  const bool is_of_fields = absl::IsInvalidArgument(status) || absl::IsNotFound(status);
  if (!is_of_fields || file.name.empty()) return status;
  std::string message;
  for (absl::string_view line : absl::StrSplit(status.message(), '\n')) {
    const auto found = file.lines.find(std::string(line.substr(0, line.find(": "))));
    absl::StrAppend(&message, message.empty() ? "" : "\n");
    if (found != file.lines.end()) absl::StrAppend(&message, file.name, ":", found->second, ": ");
    absl::StrAppend(&message, line);
  }
  absl::Status with_lines(status.code(), message);
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& bytes) { with_lines.SetPayload(url, bytes); });
  return with_lines;
}

}  // namespace luthier
