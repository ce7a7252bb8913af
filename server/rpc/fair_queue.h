// What waits, by tenant: a tenant's items in their order, and one of each tenant in turn, so that who has many waiting
// does not keep the others.
#pragma once

#include <cstddef>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <utility>

namespace luthier {

// Of one tenant's items.
struct FairLimits {
  size_t waiting = std::numeric_limits<size_t>::max();
  size_t at_once = std::numeric_limits<size_t>::max();  // that were taken and are not done; above 0
};

template <typename Item>
class FairQueue {
 public:
  explicit FairQueue(const FairLimits& limits = {}) : limits_(limits) {}

  // Whether none may be taken.
  bool empty() const { return turns_.empty(); }
  // False if as many of the tenant's wait as may: then the item is not taken.
  bool Push(const std::string& tenant, Item item) {
    if (const auto line = lines_.find(tenant); line != lines_.end() && line->second.waiting.size() >= limits_.waiting) {
      return false;
    }
    Line& line = lines_[tenant];
    line.waiting.push_back(std::move(item));
    if (line.waiting.size() == 1 && line.taken < limits_.at_once) turns_.push_back(tenant);
    return true;
  }
  // The next one and its tenant, for whom Done() follows. Requires: not empty.
  std::pair<std::string, Item> Pop() {
    std::string tenant = std::move(turns_.front());
    turns_.pop_front();
    Line& line = lines_.at(tenant);
    Item item = std::move(line.waiting.front());
    line.waiting.pop_front();
    ++line.taken;
    if (!line.waiting.empty() && line.taken < limits_.at_once) turns_.push_back(tenant);
    return {std::move(tenant), std::move(item)};
  }
  void Done(const std::string& tenant) {
    const auto line = lines_.find(tenant);
    auto& [waiting, taken] = line->second;
    if (taken == limits_.at_once && !waiting.empty()) turns_.push_back(tenant);
    if (--taken == 0 && waiting.empty()) lines_.erase(line);
  }

 private:
  struct Line {
    std::deque<Item> waiting;
    size_t taken = 0;
  };

  const FairLimits limits_;
  std::map<std::string, Line> lines_;  // each has something waiting or taken
  std::deque<std::string> turns_;      // tenants of whom one may be taken; the first is next
};

}  // namespace luthier
