#include "server/rpc/transfers.h"

#include <utility>

#include "absl/time/time.h"

namespace luthier {
namespace {

constexpr absl::Duration kLook = absl::Seconds(1);

}  // namespace

Transfers::Transfers(Access& access) : access_(access), thread_([this] { Work(); }) {}

Transfers::~Transfers() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

Transfers::Watched::Watched(Transfers& transfers, const grpc::ServerContextBase& context, const Call& call)
    : transfers_(transfers) {
  const std::lock_guard lock(transfers_.mutex_);
  open_ = transfers_.open_.insert(transfers_.open_.end(), Open{context, call});
}

Transfers::Watched::~Watched() {
  const std::lock_guard lock(transfers_.mutex_);
  transfers_.open_.erase(open_);
}

size_t Transfers::open() {
  const std::lock_guard lock(mutex_);
  return open_.size();
}

// One that moves ends by itself within a piece, and says why. So only what is still there at the second look is cut.
void Transfers::Work() {
  std::unique_lock lock(mutex_);
  while (!work_.wait_for(lock, absl::ToChronoMilliseconds(kLook), [this] { return stopping_; })) {
    for (Open& transfer : open_) {
      const bool refused = !access_.StillAdmits(transfer.call).ok();
      if (std::exchange(transfer.refused, refused) && refused) transfer.context.TryCancel();
    }
  }
}

}  // namespace luthier
