// Which jobs of the record a list wants, and in which order: a subset of AIP-160 and AIP-132.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "luthier/v1/jobs.pb.h"
#include "server/store/store.h"

namespace luthier {

struct JobFilter {
  JobQuery query;  // what the record decides; `tenant`, `cursor` and `limit` are the caller's
  // Key and value; no value: any.
  std::vector<std::pair<std::string, std::optional<std::string>>> labels;

  bool MatchesLabels(const v1::FineTuningJob& job) const;
};

// `filter`: comparisons joined by AND, as ListFineTuningJobsRequest says. Errors: INVALID_ARGUMENT.
absl::StatusOr<JobFilter> ParseJobFilter(const std::string& filter, const std::string& order_by);

}  // namespace luthier
