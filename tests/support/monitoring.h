// What deploy/ shows and warns of: the queries of the dashboards and rules, read from the files that are shipped.
#pragma once

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "yaml-cpp/yaml.h"

namespace luthier {

struct MonitoringQuery {
  std::string where;  // file and panel, or file and rule
  std::string expr;   // PromQL; of a dashboard with Grafana's variables still in it
};

inline std::vector<std::filesystem::path> FilesOf(const std::string& folder, const std::string& extension) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.push_back(entry.path());
  }
  return files;
}

inline nlohmann::json ReadJson(const std::filesystem::path& path) {
  std::ifstream stream(path);
  return nlohmann::json::parse(stream);
}

// Every query of every panel, and the metrics that variables list their values from.
inline std::vector<MonitoringQuery> DashboardQueries(const std::string& folder) {
  std::vector<MonitoringQuery> queries;
  for (const auto& path : FilesOf(folder, ".json")) {
    const nlohmann::json dashboard = ReadJson(path);
    for (const nlohmann::json& panel : dashboard["panels"]) {
      for (const nlohmann::json& target : panel.value("targets", nlohmann::json::array())) {
        queries.push_back({path.filename().string() + ": " + panel["title"].get<std::string>(), target["expr"]});
      }
    }
    for (const nlohmann::json& variable : dashboard["templating"]["list"]) {
      if (variable["type"] != "query") continue;
      // label_values(METRIC, LABEL)
      const std::string definition = variable["definition"];
      const size_t begin = definition.find('(') + 1;
      queries.push_back({path.filename().string() + ": $" + variable["name"].get<std::string>(),
                         definition.substr(begin, definition.find(',') - begin)});
    }
  }
  return queries;
}

inline std::vector<MonitoringQuery> RuleQueries(const std::string& folder) {
  std::vector<MonitoringQuery> queries;
  for (const auto& path : FilesOf(folder, ".yml")) {
    for (const YAML::Node& group : YAML::LoadFile(path)["groups"]) {
      for (const YAML::Node& rule : group["rules"]) {
        const std::string name = (rule["record"] ? rule["record"] : rule["alert"]).as<std::string>();
        queries.push_back({path.filename().string() + ": " + name, rule["expr"].as<std::string>()});
      }
    }
  }
  return queries;
}

// The metrics and recorded series of ours that a query names.
inline std::set<std::string> MetricsOf(const std::string& expr) {
  std::set<std::string> metrics;
  std::string name;
  char quote = 0;
  for (const char c : expr + " ") {
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ':') {
      name.push_back(c);
      continue;
    }
    if (name.find("luthier_") != std::string::npos) metrics.insert(name);
    name.clear();
  }
  return metrics;
}

}  // namespace luthier
