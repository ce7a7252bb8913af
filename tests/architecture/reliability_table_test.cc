// docs/reliability.md names a test for each fault: every fault is there once, and every test that it names exists.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace luthier {
namespace {

std::string Read(const std::string& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

struct NamedTest {
  std::string name;  // `Suite.Test`, or the function of a Python test
  std::string file;
};

bool Exists(const NamedTest& test) {
  const size_t dot = test.name.find('.');
  const std::string definition = dot == std::string::npos ? "\ndef " + test.name + R"(\()"
                                                          : "TEST(_F|_P)?\\(" + test.name.substr(0, dot) + R"(,\s*)" +
                                                                test.name.substr(dot + 1) + R"(\))";
  return std::regex_search(Read(test.file), std::regex(definition));
}

TEST(ReliabilityTableTest, EveryFaultIsThereOnceAndEveryTestThatIsNamedExists) {
  std::set<int> expected;
  for (const auto& [first, last] : {std::pair(1, 39), std::pair(42, 42), std::pair(46, 52), std::pair(56, 59)}) {
    for (int number = first; number <= last; ++number) expected.insert(number);
  }
  static const std::regex row(R"(\| (\d+) \|(.*))"), named(R"(`([\w.]+)` in `([^`]+)`)");
  std::ifstream page("docs/reliability.md");
  std::set<int> found;
  for (std::string line; std::getline(page, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, row)) continue;
    const int number = std::stoi(match[1]);
    EXPECT_TRUE(found.insert(number).second) << "fault " << number << " stands there twice";
    const std::string cells = match[2];
    const std::sregex_iterator tests(cells.begin(), cells.end(), named), end;
    EXPECT_TRUE(tests != end || cells.find("No test yet") != std::string::npos)
        << "fault " << number << ": neither a test nor 'No test yet'";
    for (auto test = tests; test != end; ++test) {
      EXPECT_TRUE(Exists({(*test)[1], (*test)[2]})) << "fault " << number << ": no " << test->str();
    }
  }
  EXPECT_EQ(found, expected);
}

TEST(ReliabilityTableTest, ATestThatIsGoneIsNoticed) {
  const std::string here = "tests/architecture/reliability_table_test.cc";
  EXPECT_TRUE(Exists({"ReliabilityTableTest.ATestThatIsGoneIsNoticed", here}));
  EXPECT_FALSE(Exists({"ReliabilityTableTest.ATestThatIs", here}));
  EXPECT_FALSE(Exists({"ReliabilityTableTest.ATestThatIsGoneIsNoticed", "tests/architecture/nowhere.cc"}));
}

}  // namespace
}  // namespace luthier
