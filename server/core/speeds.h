// How fast jobs train, as those that ran have reported it, and how long the others take by that. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "server/core/job.h"

namespace luthier {

// What an attempt of unknown duration is taken for, both to plan around it and to charge for it.
inline constexpr absl::Duration kUnknownDuration = absl::Hours(1);

// That of jobs which are alike.
struct Speed {
  std::string base_model;  // id
  Tuning tuning = Tuning::kNone;
  int nodes = 1, devices = 1;                  // as in Job
  double tokens_per_second = 0;                // of all ranks together: a mean in which the newest reports count most
  double on_record = 0;                        // what the record has of it; 0: nothing
  absl::Time observed = absl::InfinitePast();  // when a report last counted; in memory only
};

class Speeds {
 public:
  struct Expected {
    double tokens_per_second = 0;
    bool from_one_device = false;  // times the ranks, since no job like it has reported its speed
  };
  // How fast a job is expected to train. None: nobody knows.
  std::optional<Expected> Of(const Job& job) const;

  // Whether a progress report of a job counts: one of each kind in a while, however many jobs report how often.
  bool IsDue(const Job& job, double tokens_per_second, absl::Time now) const;
  // Takes one that does. Returns what the record is to have from now on, if that has changed enough.
  std::optional<Speed> Observe(const Job& job, double tokens_per_second, absl::Time now);
  // As it is on record.
  void Load(Speed speed);

  // All of a base model, to be put back where a change must not stay. None: it is forgotten.
  std::vector<Speed> OfModel(const std::string& base_model) const;
  void SetModel(const std::string& base_model, std::vector<Speed> speeds);

 private:
  const Speed* Find(const Job& job, int nodes, int devices) const;

  absl::flat_hash_map<std::string, std::vector<Speed>> by_base_model_;
};

// How long all of a job's work takes. None: nobody knows.
std::optional<absl::Duration> KnownDuration(const Job& job, const Speeds& speeds);
// The same, with something to plan with in any case.
absl::Duration ExpectedDuration(const Job& job, const Speeds& speeds);
// How the duration is known, or why it is not, for people.
std::string DurationReason(const Job& job, const Speeds& speeds);

}  // namespace luthier
