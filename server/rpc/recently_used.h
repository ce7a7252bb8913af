// A bounded map that forgets what was not used for longest.
#pragma once

#include <list>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace luthier {

template <typename Value>
class RecentlyUsed {
 public:
  explicit RecentlyUsed(size_t capacity) : capacity_(capacity) {}
  std::optional<Value> Find(const std::string& key) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) return std::nullopt;
    order_.splice(order_.begin(), order_, found->second.second);
    return found->second.first;
  }
  void Put(const std::string& key, Value value) {
    Erase(key);
    order_.push_front(key);
    entries_.emplace(key, std::make_pair(std::move(value), order_.begin()));
    if (entries_.size() > capacity_) Erase(std::string(order_.back()));
  }
  void Erase(const std::string& key) {
    const auto found = entries_.find(key);
    if (found == entries_.end()) return;
    order_.erase(found->second.second);
    entries_.erase(found);
  }
  void Clear() {
    entries_.clear();
    order_.clear();
  }

 private:
  const size_t capacity_;
  std::list<std::string> order_;  // newest first
  std::map<std::string, std::pair<Value, std::list<std::string>::iterator>> entries_;
};

}  // namespace luthier
