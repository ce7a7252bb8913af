// Where an agent lets other nodes reach its ranks.
#include "lib/base/gang_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "worker/agent/own_address.h"

namespace luthier {
namespace {

using ::testing::HasSubstr;

TEST(GangAddressTest, IsAHostWithOrWithoutAPort) {
  const absl::StatusOr<GangAddress> name = ReadGangAddress("gpu-1.cluster"), number = ReadGangAddress("10.0.0.2:30000");
  ASSERT_TRUE(name.ok()) << name.status();
  EXPECT_EQ(name->host, "gpu-1.cluster");
  EXPECT_EQ(name->port, 29400);
  ASSERT_TRUE(number.ok()) << number.status();
  EXPECT_EQ(number->host, "10.0.0.2");
  EXPECT_EQ(number->port, 30000);
}

TEST(GangAddressTest, IsNothingThatNobodyCanDialAndNoOption) {
  for (const char* text : {"", ":29400", "0.0.0.0", "--out", "a b", "[::1]:29400", "::1", "http://n1:29400",
                           "n1:", "n1:x", "n1:80", "n1:65000", "n1:-1"}) {
    EXPECT_EQ(ReadGangAddress(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_THAT(std::string(ReadGangAddress("n1:80").status().message()), HasSubstr("give one from 1024 to 64000"));
  EXPECT_FALSE(CheckGangAddress({std::string(254, 'a'), 29400}).ok());
}

TEST(OwnAddressTest, IsOneOfThisMachine) {
  EXPECT_TRUE(CheckOwnAddress("127.0.0.1").ok());
  const absl::Status foreign = CheckOwnAddress("192.0.2.1");  // of no machine at all (RFC 5737)
  EXPECT_EQ(foreign.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(foreign.message()), HasSubstr("no address of this machine"));
}

}  // namespace
}  // namespace luthier
