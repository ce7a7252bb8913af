#include "server/core/speeds.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"

namespace luthier {
namespace {

// Whatever speed an agent reports: a tenant is charged for what its jobs are expected to take.
constexpr absl::Duration kLongestJob = absl::Hours(24 * 365);
// A speed that has moved by less since it was written is not worth another write: it is reported with every progress.
constexpr double kNotableChange = 0.1;
// Of a report in the mean, and the pause until the next one counts: so the newest of several machines does not decide
// alone, and the queue is not looked at again for each report of a trainer, of which there are several a second.
constexpr double kNewest = 0.1;
constexpr absl::Duration kPause = absl::Seconds(10);

bool IsLike(const Speed& speed, const Job& job, int nodes, int devices) {
  return speed.tuning == job.tuning && speed.nodes == nodes && speed.devices == devices;
}

// "base lora".
std::string KindOnOneDevice(const Job& job) {
  return absl::StrCat(job.base_model, job.tuning == Tuning::kFull ? " full" : " lora");
}

// "2-node 4-device base lora".
std::string KindOf(const Job& job) {
  return absl::StrCat(job.nodes > 1 ? absl::StrCat(job.nodes, "-node ") : "",
                      job.devices > 1 ? absl::StrCat(job.devices, "-device ") : "", KindOnOneDevice(job));
}

}  // namespace

const Speed* Speeds::Find(const Job& job, int nodes, int devices) const {
  const auto found = by_base_model_.find(job.base_model);
  if (found == by_base_model_.end()) return nullptr;
  const std::vector<Speed>& speeds = found->second;
  const auto speed =
      std::find_if(speeds.begin(), speeds.end(), [&](const Speed& each) { return IsLike(each, job, nodes, devices); });
  return speed == speeds.end() ? nullptr : &*speed;
}

std::optional<Speeds::Expected> Speeds::Of(const Job& job) const {
  if (const Speed* like = Find(job, job.nodes, job.devices)) return Expected{like->tokens_per_second};
  // Devices wait for each other at every step, which the one that was measured did not.
  if (const Speed* alone = Find(job, 1, 1)) return Expected{alone->tokens_per_second * AllDevices(job), true};
  return std::nullopt;
}

bool Speeds::IsDue(const Job& job, double tokens_per_second, absl::Time now) const {
  if (job.tuning == Tuning::kNone || !(tokens_per_second > 0) || !std::isfinite(tokens_per_second)) return false;
  const Speed* like = Find(job, job.nodes, job.devices);
  // A clock that was set back must not make it deaf.
  return like == nullptr || now >= like->observed + kPause || now < like->observed;
}

std::optional<Speed> Speeds::Observe(const Job& job, double tokens_per_second, absl::Time now) {
  std::vector<Speed>& speeds = by_base_model_[job.base_model];
  auto speed = std::find_if(speeds.begin(), speeds.end(),
                            [&](const Speed& each) { return IsLike(each, job, job.nodes, job.devices); });
  if (speed == speeds.end()) {
    speed = speeds.insert(speed, {job.base_model, job.tuning, job.nodes, job.devices, tokens_per_second});
  } else {
    speed->tokens_per_second += kNewest * (tokens_per_second - speed->tokens_per_second);
  }
  speed->observed = now;
  if (std::abs(speed->tokens_per_second - speed->on_record) <= kNotableChange * speed->on_record) return std::nullopt;
  speed->on_record = speed->tokens_per_second;
  return *speed;
}

void Speeds::Load(Speed speed) {
  speed.on_record = speed.tokens_per_second;
  by_base_model_[speed.base_model].push_back(std::move(speed));
}

std::vector<Speed> Speeds::OfModel(const std::string& base_model) const {
  const auto found = by_base_model_.find(base_model);
  return found == by_base_model_.end() ? std::vector<Speed>() : found->second;
}

void Speeds::SetModel(const std::string& base_model, std::vector<Speed> speeds) {
  if (speeds.empty()) {
    by_base_model_.erase(base_model);
  } else {
    by_base_model_[base_model] = std::move(speeds);
  }
}

std::optional<absl::Duration> KnownDuration(const Job& job, const Speeds& speeds) {
  if (job.estimate > absl::ZeroDuration()) return job.estimate;
  const std::optional<Speeds::Expected> speed = speeds.Of(job);
  if (!speed || job.work_tokens <= 0) return std::nullopt;
  return std::min(absl::Seconds(static_cast<double>(job.work_tokens) / speed->tokens_per_second), kLongestJob);
}

absl::Duration ExpectedDuration(const Job& job, const Speeds& speeds) {
  return KnownDuration(job, speeds).value_or(kUnknownDuration);
}

std::string DurationReason(const Job& job, const Speeds& speeds) {
  if (job.estimate > absl::ZeroDuration()) return "from the size of the model";
  const std::optional<Speeds::Expected> speed = speeds.Of(job);
  if (!speed) return absl::StrCat("no ", KindOf(job), " job has reported its speed to this server yet");
  if (!speed->from_one_device) return absl::StrCat("from the speed of other ", KindOf(job), " jobs");
  return absl::StrCat("from the speed of ", KindOnOneDevice(job), " jobs on one device, times ", AllDevices(job),
                      "; the time in which ranks add up their gradients", job.nodes > 1 ? " over the network" : "",
                      " is not in it");
}

}  // namespace luthier
