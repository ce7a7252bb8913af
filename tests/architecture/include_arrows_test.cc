// Keeps the arrows of docs/architecture.md: which folder may include which, and which heavy headers may appear where.
// A folder's row lists every prefix that its quoted includes may start with; a violation names file, line and rule.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <vector>

namespace luthier {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Rule {
  std::string folder;
  std::vector<std::string> allowed;
};

// The longest matching folder decides.
const std::vector<Rule>& Rules() {
  static const auto* rules = new std::vector<Rule>{
      {"lib/", {"lib/"}},
      {"lib/wire/", {"lib/", "luthier/v1/"}},
      {"server/", {"server/", "lib/", "luthier/v1/"}},
      {"server/core/", {"server/core/"}},
      {"server/rows/", {"server/rows/", "lib/"}},
      {"server/store/", {"server/core/", "server/store/", "lib/"}},
      {"worker/agent/", {"worker/agent/", "lib/", "luthier/v1/"}},
      {"worker/agent/core/", {"worker/agent/core/", "lib/base/", "luthier/v1/"}},
      {"worker/trainer/", {"worker/trainer/", "lib/"}},
      {"client/", {"client/", "lib/", "luthier/v1/"}},
      {"client/lib/", {"client/lib/", "lib/", "luthier/v1/"}},
      {"client/hub/", {"client/hub/", "client/lib/", "lib/"}},
  };
  return *rules;
}

// Headers that belong to one place only: third-party ones, and what may end the process that uses it.
struct HeavyHeader {
  std::string prefix;
  std::vector<std::string> allowed_folders;
};

const std::vector<HeavyHeader>& HeavyHeaders() {
  static const auto* headers = new std::vector<HeavyHeader>{
      {"torch/", {"worker/trainer/"}},
      {"ATen/", {"worker/trainer/"}},
      {"c10/", {"worker/trainer/"}},
      {"grpc", {"lib/channel/", "server/rpc/", "server/server.", "worker/agent/", "client/"}},
      {"google/protobuf/", {"lib/wire/", "server/rpc/", "worker/agent/", "client/"}},
      {"SQLiteCpp/", {"server/store/"}},
      {"sqlite3", {"server/store/"}},
      {"lib/text/chat_template.h", {"lib/", "server/rows/", "worker/trainer/", "client/"}},
      {"prometheus/", {"server/metrics/", "server/server.", "worker/agent/"}},
  };
  return *headers;
}

bool StartsWithAny(const std::string& text, const std::vector<std::string>& prefixes) {
  for (const std::string& prefix : prefixes) {
    if (text.rfind(prefix, 0) == 0) return true;
  }
  return false;
}

const Rule* RuleFor(const std::string& file) {
  const Rule* best = nullptr;
  for (const Rule& rule : Rules()) {
    if (file.rfind(rule.folder, 0) != 0) continue;
    if (best == nullptr || rule.folder.size() > best->folder.size()) best = &rule;
  }
  return best;
}

// Violations of one source text that stands at `file` (relative to the repository).
std::vector<std::string> Violations(const std::string& file, std::istream& source) {
  static const std::regex include(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
  std::vector<std::string> found;
  const Rule* rule = RuleFor(file);
  std::string line;
  for (int number = 1; std::getline(source, line); ++number) {
    std::smatch match;
    if (!std::regex_search(line, match, include)) continue;
    const std::string header = match[2];
    const std::string where = file + ":" + std::to_string(number) + ": includes " + header;
    const bool project_header = StartsWithAny(header, {"lib/", "server/", "worker/", "client/", "luthier/v1/"});
    if (rule != nullptr && project_header && !StartsWithAny(header, rule->allowed)) {
      found.push_back(where + ", which " + rule->folder + " must not");
    }
    for (const HeavyHeader& heavy : HeavyHeaders()) {
      if (header.rfind(heavy.prefix, 0) == 0 && !StartsWithAny(file, heavy.allowed_folders)) {
        found.push_back(where + ", which belongs elsewhere");
      }
    }
  }
  return found;
}

TEST(IncludeArrowsTest, EveryIncludeFollowsTheArrows) {
  namespace fs = std::filesystem;
  std::vector<std::string> found;
  int files = 0;
  for (const char* root : {"lib", "server", "worker", "client"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc") continue;
      std::ifstream source(entry.path());
      for (std::string& violation : Violations(entry.path().generic_string(), source)) {
        found.push_back(std::move(violation));
      }
      ++files;
    }
  }
  EXPECT_GT(files, 0) << "run from the repository's root";
  EXPECT_THAT(found, IsEmpty());
}

TEST(IncludeArrowsTest, FindsAnIncludeAgainstTheArrows) {
  std::istringstream core("#include \"absl/time/time.h\"\n#include \"server/store/store.h\"\n");
  const auto found = Violations("server/core/state.h", core);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_THAT(found[0], HasSubstr("server/core/state.h:2"));
}

TEST(IncludeArrowsTest, FindsAHeavyHeaderOutsideItsPlace) {
  std::istringstream lib("#include <torch/torch.h>\n");
  EXPECT_EQ(Violations("lib/checkpoint/safetensors.cc", lib).size(), 1u);
}

}  // namespace
}  // namespace luthier
