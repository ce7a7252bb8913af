#include "worker/agent/core/outbox.h"

#include <algorithm>

namespace luthier {

void Outbox::Rewind(int64_t acknowledged) {
  if (acknowledged > last_) last_ = durable_ = acknowledged;
  acknowledged_ = handed_out_ = acknowledged;
}

void Outbox::Acknowledge(int64_t sequence) { acknowledged_ = std::max(acknowledged_, std::min(sequence, last_)); }

std::optional<int64_t> Outbox::Next() {
  if (handed_out_ >= durable_) return std::nullopt;
  return ++handed_out_;
}

}  // namespace luthier
