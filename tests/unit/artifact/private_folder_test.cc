#include "lib/artifact/private_folder.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

TEST(PrivateFolderTest, OneThatIsMadeIsItsUsersAlone) {
  const TempFolder temp;
  const fs::path parent = temp.path() + "/parent";
  const fs::perms everybody = fs::perms::owner_all | fs::perms::others_exec;
  fs::create_directory(parent);
  fs::permissions(parent, everybody);
  for (const char* name : {"/parent/data", "/parent/with-a-slash/", "/parent/missing/data"}) {
    const std::string folder = temp.path() + name;
    ASSERT_TRUE(CreatePrivateFolder(folder).ok());
    EXPECT_EQ(fs::status(folder).permissions(), fs::perms::owner_all) << folder;
  }
  EXPECT_EQ(fs::status(parent).permissions(), everybody) << "what is above it stays as it is";
}

TEST(PrivateFolderTest, OneThatWasThereStaysAsItIs) {
  const TempFolder temp;
  const fs::perms groups = fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec;
  fs::permissions(temp.path(), groups);
  ASSERT_TRUE(CreatePrivateFolder(temp.path()).ok());
  EXPECT_EQ(fs::status(temp.path()).permissions(), groups);
}

TEST(PrivateFolderTest, IsOpenToEverybodyIfEveryFolderOnTheWayIs) {
  const TempFolder temp;
  if (!IsOpenToEverybody(fs::path(temp.path()).parent_path()))
    GTEST_SKIP() << "SKIPPED: the folder for temporary files is not open to everybody";
  const std::string inner = temp.path() + "/inner";
  fs::create_directory(inner);
  const auto open = fs::perms::others_exec;
  fs::permissions(temp.path(), open, fs::perm_options::add);
  fs::permissions(inner, open, fs::perm_options::add);
  EXPECT_TRUE(IsOpenToEverybody(inner));
  fs::permissions(inner, open, fs::perm_options::remove);
  EXPECT_FALSE(IsOpenToEverybody(inner));
  fs::permissions(inner, open, fs::perm_options::add);
  fs::permissions(temp.path(), open, fs::perm_options::remove);
  EXPECT_FALSE(IsOpenToEverybody(inner)) << "nobody gets that far";
  EXPECT_FALSE(IsOpenToEverybody(temp.path() + "/missing"));
}

}  // namespace
}  // namespace luthier
