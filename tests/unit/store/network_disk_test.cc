#include "server/store/network_disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

TEST(NetworkFileSystemTest, KnowsWhatOtherMachinesShare) {
  EXPECT_EQ(NetworkFileSystem(0x6969), "NFS");
  EXPECT_EQ(NetworkFileSystem(0x517b), "SMB");
  EXPECT_EQ(NetworkFileSystem(0xff534d42), "CIFS");
  EXPECT_EQ(NetworkFileSystem(static_cast<int32_t>(0xff534d42)), "CIFS") << "with its sign extended";
  EXPECT_EQ(NetworkFileSystem(0xfe534d42), "SMB2");
  EXPECT_EQ(NetworkFileSystem(0x65735546), "FUSE");
  EXPECT_EQ(NetworkFileSystem(0x01021997), "9P");
  EXPECT_EQ(NetworkFileSystem(0x0bd00bd0), "Lustre");
  EXPECT_EQ(NetworkFileSystem(0x00c36400), "Ceph");
}

TEST(NetworkFileSystemTest, TakesLocalDisksAndWhatContainersHave) {
  for (const int64_t local : {0xef53LL /* ext */, 0x58465342LL /* XFS */, 0x9123683eLL /* Btrfs */,
                              0x2fc12fc1LL /* ZFS */, 0x01021994LL /* tmpfs */, 0x794c7630LL /* overlay */}) {
    EXPECT_EQ(NetworkFileSystem(local), "") << local;
  }
  EXPECT_TRUE(CheckLocalDisk(TempFolder().path()).ok());
}

TEST(CheckLocalDiskTest, NamesAFolderThatIsNotThere) {
  EXPECT_THAT(std::string(CheckLocalDisk("/nowhere/at/all").message()), ::testing::HasSubstr("/nowhere/at/all"));
}

}  // namespace
}  // namespace luthier
