// The files of deploy/ hold together: what one names, another has.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/support/monitoring.h"

namespace luthier {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kDeploy[] = LUTHIER_SOURCE_FOLDER "/deploy";

std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(stream)), {});
}

std::vector<json> Dashboards() {
  std::vector<json> dashboards;
  for (const auto& path : FilesOf(absl::StrCat(kDeploy, "/grafana/dashboards"), ".json"))
    dashboards.push_back(ReadJson(path));
  return dashboards;
}

YAML::Node Compose() { return YAML::LoadFile(absl::StrCat(kDeploy, "/compose/compose.yml"))["services"]; }

// A field of a compose service, also if it comes from the block that it merges in.
YAML::Node Field(const YAML::Node& service, const std::string& name) {
  if (service[name]) return service[name];
  return service["<<"] ? service["<<"][name] : YAML::Node(YAML::NodeType::Undefined);
}

std::vector<std::string> Strings(const YAML::Node& list) {
  std::vector<std::string> strings;
  for (const YAML::Node& entry : list) strings.push_back(entry.as<std::string>());
  return strings;
}

TEST(Dashboards, HaveIdentitiesOfTheirOwn) {
  std::set<std::string> uids, titles;
  for (const json& dashboard : Dashboards()) {
    EXPECT_TRUE(uids.insert(dashboard["uid"].get<std::string>()).second) << dashboard["uid"];
    EXPECT_TRUE(titles.insert(dashboard["title"].get<std::string>()).second) << dashboard["title"];
    EXPECT_EQ(dashboard["editable"], false);
    std::set<int> ids;
    for (const json& panel : dashboard["panels"])
      EXPECT_TRUE(ids.insert(panel["id"].get<int>()).second) << dashboard["title"] << panel["id"];
  }
  EXPECT_EQ(uids.size(), 3u);
}

TEST(Dashboards, SayWhatAPanelShowsAndInWhichUnit) {
  for (const json& dashboard : Dashboards()) {
    for (const json& panel : dashboard["panels"]) {
      if (panel["type"] == "row") continue;
      const std::string where =
          absl::StrCat(dashboard["title"].get<std::string>(), ": ", panel["title"].get<std::string>());
      EXPECT_THAT(panel["description"].get<std::string>(), Not(IsEmpty())) << where;
      EXPECT_THAT(panel["fieldConfig"]["defaults"]["unit"].get<std::string>(), Not(IsEmpty())) << where;
      EXPECT_FALSE(panel["targets"].empty()) << where;
      std::set<std::string> refs;
      for (const json& target : panel["targets"]) {
        EXPECT_TRUE(refs.insert(target["refId"].get<std::string>()).second) << where;
        // The variable and not a data source of somebody's own installation.
        EXPECT_EQ(target["datasource"]["uid"], "${datasource}") << where;
      }
    }
  }
}

TEST(Dashboards, LayPanelsBesideEachOther) {
  for (const json& dashboard : Dashboards()) {
    std::map<std::pair<int, int>, std::string> taken;
    for (const json& panel : dashboard["panels"]) {
      const json& place = panel["gridPos"];
      EXPECT_LE(place["x"].get<int>() + place["w"].get<int>(), 24) << panel["title"];
      for (int x = place["x"]; x < place["x"].get<int>() + place["w"].get<int>(); ++x) {
        for (int y = place["y"]; y < place["y"].get<int>() + place["h"].get<int>(); ++y) {
          EXPECT_TRUE(taken.emplace(std::pair(x, y), panel["title"]).second)
              << dashboard["title"] << ": " << panel["title"] << " lies over " << taken[{x, y}];
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST(Dashboards, AreProvisionedFromWhereComposeMountsThem) {
  const YAML::Node provider =
      YAML::LoadFile(absl::StrCat(kDeploy, "/grafana/provisioning/dashboards/luthier.yml"))["providers"][0];
  const auto path = provider["options"]["path"].as<std::string>();
  EXPECT_THAT(Strings(Compose()["grafana"]["volumes"]), Contains(absl::StrCat("../grafana/dashboards:", path, ":ro")));
  EXPECT_THAT(Strings(Compose()["grafana"]["volumes"]),
              Contains("../grafana/provisioning:/etc/grafana/provisioning:ro"));
  const YAML::Node source =
      YAML::LoadFile(absl::StrCat(kDeploy, "/grafana/provisioning/datasources/prometheus.yml"))["datasources"][0];
  EXPECT_EQ(source["url"].as<std::string>(), "http://prometheus:9090");
  EXPECT_TRUE(source["isDefault"].as<bool>());
}

TEST(Alerts, SayHowUrgentTheyAreAndWhereToRead) {
  const std::string manual = ReadText(LUTHIER_SOURCE_FOLDER "/docs/deploy.md");
  const YAML::Node rules = YAML::LoadFile(absl::StrCat(kDeploy, "/prometheus/rules/alerts.yml"));
  ASSERT_GT(rules["groups"].size(), 0u);
  for (const YAML::Node& group : rules["groups"]) {
    for (const YAML::Node& rule : group["rules"]) {
      const auto name = rule["alert"].as<std::string>();
      const auto severity = rule["labels"]["severity"].as<std::string>();
      EXPECT_TRUE(severity == "page" || severity == "ticket") << name << ": " << severity;
      EXPECT_THAT(rule["annotations"]["summary"].as<std::string>(), Not(IsEmpty())) << name;
      EXPECT_EQ(rule["annotations"]["runbook"].as<std::string>(),
                absl::StrCat("docs/deploy.md#", absl::AsciiStrToLower(name)));
      EXPECT_THAT(manual, HasSubstr(absl::StrCat("#### ", name, "\n"))) << "docs/deploy.md does not say what to do";
    }
  }
}

TEST(Alerts, EachHasATestInWhichItFires) {
  std::set<std::string> fired;
  const YAML::Node tests = YAML::LoadFile(absl::StrCat(kDeploy, "/prometheus/tests/alerts_test.yml"));
  for (const YAML::Node& test : tests["tests"]) {
    for (const YAML::Node& check : test["alert_rule_test"]) {
      if (check["exp_alerts"]) fired.insert(check["alertname"].as<std::string>());
    }
  }
  for (const MonitoringQuery& rule : RuleQueries(absl::StrCat(kDeploy, "/prometheus/rules"))) {
    absl::string_view name = rule.where;
    if (!absl::ConsumePrefix(&name, "alerts.yml: ")) continue;
    EXPECT_THAT(fired, Contains(std::string(name)));
  }
}

TEST(Compose, GivesNoContainerMoreThanItNeeds) {
  const std::string dockerfile = ReadText(absl::StrCat(kDeploy, "/docker/Dockerfile"));
  for (const auto& entry : Compose()) {
    const auto name = entry.first.as<std::string>();
    const YAML::Node& service = entry.second;
    EXPECT_TRUE(Field(service, "read_only").as<bool>()) << name;
    EXPECT_THAT(Strings(Field(service, "cap_drop")), Contains("ALL")) << name;
    EXPECT_THAT(Strings(Field(service, "security_opt")), Contains("no-new-privileges:true")) << name;
    EXPECT_TRUE(Field(service, "mem_limit").IsDefined()) << name << " has no memory limit";
    EXPECT_TRUE(Field(service, "pids_limit").IsDefined()) << name << " has no limit of processes";
    EXPECT_THAT(service["image"].as<std::string>(), AllOf(Not(testing::EndsWith(":latest")), HasSubstr(":"))) << name;
    if (service["build"]) {
      EXPECT_THAT(dockerfile, HasSubstr(absl::StrCat(" AS ", service["build"]["target"].as<std::string>(), "\n")))
          << name;
    } else {
      EXPECT_TRUE(service["healthcheck"].IsDefined()) << name << " has no health check";
    }
    for (const std::string& port : Strings(service["ports"])) EXPECT_THAT(port, StartsWith("127.0.0.1:")) << name;
  }
}

TEST(Compose, KnowsNoPassword) {
  const YAML::Node environment = Compose()["grafana"]["environment"];
  EXPECT_FALSE(environment["GF_SECURITY_ADMIN_PASSWORD"].IsDefined());
  EXPECT_EQ(environment["GF_SECURITY_ADMIN_PASSWORD__FILE"].as<std::string>(), "/run/secrets/grafana_admin_password");
}

TEST(Images, RunAsAnUnprivilegedUserAndSayWhetherTheyAreWell) {
  std::string stage;
  std::map<std::string, std::string> text;
  for (const absl::string_view line : absl::StrSplit(ReadText(absl::StrCat(kDeploy, "/docker/Dockerfile")), '\n')) {
    if (absl::StartsWith(line, "FROM ")) stage = std::string(line.substr(line.rfind(' ') + 1));
    absl::StrAppend(&text[stage], line, "\n");
  }
  for (const std::string image : {"server", "worker"}) {
    EXPECT_THAT(text[image], HasSubstr("\nUSER luthier\n")) << image;
    EXPECT_THAT(text[image], HasSubstr("\nHEALTHCHECK ")) << image;
  }
  EXPECT_THAT(text["worker-gpu"], AllOf(StartsWith("FROM worker AS"), Not(HasSubstr("USER root"))));
}

}  // namespace
}  // namespace luthier
