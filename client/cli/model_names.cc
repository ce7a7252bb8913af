#include "client/cli/model_names.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace luthier {

std::string VersionName(absl::string_view given) {
  absl::ConsumePrefix(&given, "models/");
  absl::ConsumePrefix(&given, "jobs/");  // a job publishes under its own name
  const std::string short_form = absl::StrReplaceAll(given, {{"/versions/", "/"}, {"@", "/"}});
  const std::vector<std::string> parts = absl::StrSplit(short_form, absl::MaxSplits('/', 1));
  return absl::StrCat("models/", parts[0], "/versions/", parts.size() > 1 && !parts[1].empty() ? parts[1] : "latest");
}

std::string ModelOf(const std::string& version) { return version.substr(0, version.find("/versions/")); }

std::string ShortVersionName(absl::string_view name) {
  absl::ConsumePrefix(&name, "models/");
  return absl::StrReplaceAll(name, {{"/versions/", "/"}});
}

}  // namespace luthier
