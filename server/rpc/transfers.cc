#include "server/rpc/transfers.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/core/reason.h"

namespace luthier {
namespace {

constexpr absl::Duration kLook = absl::Seconds(1);

bool IsOfAgent(const Call& call) { return call.need == Need::kAgent; }

absl::Status TooMany(const Call& call, size_t most) {
  const std::string what =
      absl::StrCat(most, " uploads and downloads are under way, as many as may be at once; try again later");
  return WithReason(IsOfAgent(call) ? absl::UnavailableError(what) : absl::ResourceExhaustedError(what),
                    "TOO_MANY_TRANSFERS");
}

absl::Status TooManyOf(const std::string& tenant, size_t most) {
  return TenantMayNotHaveMore(
      tenant,
      absl::StrCat("tenants/", tenant, " has ", most,
                   " uploads and downloads under way, as many as a tenant may; try again when some are done"),
      "TOO_MANY_TRANSFERS");
}

}  // namespace

Transfers::Transfers(Access& access, Options options)
    : access_(access), options_(options), thread_([this] { Work(); }) {}

Transfers::~Transfers() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

absl::StatusOr<std::unique_ptr<Transfers::Transfer>> Transfers::Begin(const grpc::ServerContextBase& context,
                                                                      const Call& call) {
  const std::lock_guard lock(mutex_);
  const auto count = [&](auto condition) {
    return static_cast<size_t>(
        std::count_if(open_.begin(), open_.end(), [&](const Open& other) { return condition(other.call); }));
  };
  if (count([&](const Call& other) { return IsOfAgent(other) == IsOfAgent(call); }) >= options_.most) {
    return TooMany(call, options_.most);
  }
  if (!call.tenant.empty() &&
      count([&](const Call& other) { return other.tenant == call.tenant; }) >= options_.most_of_tenant) {
    return TooManyOf(call.tenant, options_.most_of_tenant);
  }
  return std::make_unique<Transfer>(*this, open_.insert(open_.end(), Open{context, call}));
}

Transfers::Transfer::~Transfer() {
  const std::lock_guard lock(transfers_.mutex_);
  transfers_.open_.erase(open_);
}

absl::Status Transfers::Transfer::WentAway() const {
  return absl::CancelledError(IsOfAgent(open_->call) ? "the agent went away" : "the client went away");
}

void Transfers::Transfer::SetWaitsSince(absl::Time time) {
  const std::lock_guard lock(transfers_.mutex_);
  open_->waits_since = time;
}

size_t Transfers::open() {
  const std::lock_guard lock(mutex_);
  return open_.size();
}

// One that moves ends by itself within a piece, and says why. So one whose token is worth nothing any more is cut only
// if it is still there at the second look.
void Transfers::Work() {
  std::unique_lock lock(mutex_);
  while (!work_.wait_for(lock, absl::ToChronoMilliseconds(kLook), [this] { return stopping_; })) {
    const absl::Time now = SteadyNow();
    for (Open& transfer : open_) {
      const bool refused = !access_.StillAdmits(transfer.call).ok();
      const bool stands_still = std::exchange(transfer.refused, refused) && refused;
      if (stands_still || now - transfer.waits_since > options_.longest_silence) transfer.context.TryCancel();
    }
  }
}

}  // namespace luthier
