// Where an agent lets other nodes reach its ranks.
#include "lib/base/gang_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "lib/base/own_address.h"

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

// Containers often have no IPv6, not even this address.
bool HasLoopbackOfIpv6() {
  std::ifstream interfaces("/proc/net/if_inet6");
  for (std::string line; std::getline(interfaces, line);) {
    if (line.rfind("00000000000000000000000000000001 ", 0) == 0) return true;
  }
  return false;
}

TEST(OwnAddressTest, IsOneOfThisMachine) {
  EXPECT_TRUE(CheckOwnAddress("127.0.0.1").ok());
  EXPECT_TRUE(CheckOwnAddress("localhost").ok());
  EXPECT_EQ(CheckOwnAddress("::1").ok(), HasLoopbackOfIpv6());
  for (const char* of_none : {"192.0.2.1", "2001:db8::1"}) {  // RFC 5737, RFC 3849
    const absl::Status foreign = CheckOwnAddress(of_none);
    EXPECT_EQ(foreign.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(foreign.message()), HasSubstr("is no address of this machine; give one that"));
  }
  const std::string no_name(300, 'a');  // nobody is asked for one so long
  EXPECT_THAT(std::string(CheckOwnAddress(no_name).message()), HasSubstr("' has no address: "));
}

TEST(OwnAddressTest, ALoopbackAddressIsReachedByNoOtherMachine) {
  for (const char* host : {"127.0.0.1", "127.0.1.1", "localhost"}) EXPECT_TRUE(IsLoopback(host)) << host;
  for (const char* host : {"192.0.2.1", "128.0.0.1", "no host at all"}) EXPECT_FALSE(IsLoopback(host)) << host;
}

}  // namespace
}  // namespace luthier
