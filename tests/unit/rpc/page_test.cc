// What a page of a list holds.
#include "server/rpc/page.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "luthier/v1/queues.pb.h"

namespace luthier {
namespace {

// Clients refuse an answer of more than 4 MiB.
TEST(PageTest, EndsBeforeItIsLargerThanClientsTake) {
  const std::vector<std::string> ids = {"a", "b", "c", "d", "e", "f"};
  std::vector<int> sizes;
  std::string seen;
  v1::ListTenantsRequest request;
  do {
    v1::ListTenantsResponse response;
    const auto by_id = [](const std::string& id) { return Position(0, id); };
    const absl::Status status = AddPage("tenants", request, response, ids, by_id, [&](const std::string& id) -> auto& {
      v1::Tenant& tenant = *response.add_tenants();
      tenant.set_name(id + std::string(1'000'000, 'x'));
      return tenant;
    });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_LT(response.ByteSizeLong(), size_t{4} << 20);
    for (const v1::Tenant& tenant : response.tenants()) seen += tenant.name()[0];
    sizes.push_back(response.tenants_size());
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  EXPECT_EQ(sizes, (std::vector<int>{4, 2}));
  EXPECT_EQ(seen, "abcdef") << "nothing is left out between two pages";
}

TEST(PageTest, SaysOfSizeAndTokenAtOnceWhatIsWrong) {
  const absl::Status refused = ParsePage("tenants", -1, "made up").status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused));
  EXPECT_THAT(std::string(refused.message()),
              testing::AllOf(testing::StartsWith("page_size: -1"), testing::HasSubstr("\npage_token: 'made up'")));
}

}  // namespace
}  // namespace luthier
