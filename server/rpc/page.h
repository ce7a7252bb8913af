// Pages of lists. A token names its list and the item behind which its page begins. So what comes or goes in front of
// that moves no other item to another page, and a token of another list leads nowhere.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "lib/base/status_macros.h"

namespace luthier {

// Where an item stands in its list: by the number, then by the text.
using Position = std::pair<int64_t, std::string>;

// What a page has room for: so many items, and no more of them once they have 3 MiB. gRPC's clients refuse messages
// beyond 4 MiB, unless they are told to take them; the rest is for the last item.
class PageRoom {
 public:
  explicit PageRoom(int items) : items_(items) {}
  bool IsFull() const { return items_ <= 0 || bytes_ > (size_t{3} << 20); }
  template <typename Message>
  void Take(const Message& added) {
    --items_;
    bytes_ += added.ByteSizeLong();
  }

 private:
  int items_;
  size_t bytes_ = 0;
};

struct PageRequest {
  int size = 0;                   // above 0
  std::optional<Position> after;  // none: from the start
  // For lists that stand by number alone, from 1 on.
  int64_t after_number() const { return after ? after->first : 0; }
};

// `list`: what tells it from others, such as its name, its parent and its filter. Errors: INVALID_ARGUMENT for a
// negative size, or a token that is none or of another list.
absl::StatusOr<PageRequest> ParsePage(absl::string_view list, int page_size, const std::string& page_token);
std::string PageToken(absl::string_view list, const Position& after);

// Adds as many of `items` as a page of this size has room for to an empty response, and a token if some are left: one
// more than the size is enough to know. `add` returns the message that it added.
template <typename Items, typename Response, typename PositionOf, typename Add>
void FillPage(absl::string_view list, int size, const Items& items, Response& response, PositionOf position_of,
              Add add) {
  PageRoom room(size);
  auto item = std::begin(items);
  for (; item != std::end(items) && !room.IsFull(); ++item) room.Take(add(*item));
  if (item != std::end(items)) response.set_next_page_token(PageToken(list, position_of(*std::prev(item))));
}

// Adds a page of `items`, which are in the order of their positions, to an empty response. `add` returns the message
// that it added. Errors: as ParsePage.
template <typename Request, typename Response, typename Item, typename PositionOf, typename Add>
absl::Status AddPage(absl::string_view list, const Request& request, Response& response, const std::vector<Item>& items,
                     PositionOf position_of, Add add) {
  LUTHIER_ASSIGN_OR_RETURN(const PageRequest page, ParsePage(list, request.page_size(), request.page_token()));
  const auto first = std::find_if(items.begin(), items.end(),
                                  [&](const Item& each) { return !page.after || position_of(each) > *page.after; });
  FillPage(list, page.size, absl::MakeConstSpan(items).subspan(static_cast<size_t>(first - items.begin())), response,
           position_of, add);
  return absl::OkStatus();
}

}  // namespace luthier
