#include "lib/artifact/durable_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/support/file_size_limit.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::string Content(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

size_t FilesIn(const std::string& folder) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(DurableFileTest, ReplacesAFileAsAWhole) {
  TempFolder folder;
  const std::string path = folder.path() + "/state";
  ASSERT_TRUE(WriteFileDurably(path, "old").ok());
  ASSERT_TRUE(WriteFileDurably(path, "new").ok());
  EXPECT_EQ(Content(path), "new");
  EXPECT_EQ(FilesIn(folder.path()), 1u);
}

TEST(DurableFileTest, AFullDiskKeepsTheOldFileAndLeavesNothingBehind) {
  TempFolder folder;
  const std::string path = folder.path() + "/state";
  ASSERT_TRUE(WriteFileDurably(path, "old").ok());
  {
    FileSizeLimit limit(1000);
    const absl::Status status = WriteFileDurably(path, std::string(5000, 'x'));
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_THAT(std::string(status.message()), HasSubstr("free space"));
  }
  EXPECT_EQ(Content(path), "old");
  EXPECT_EQ(FilesIn(folder.path()), 1u);
}

TEST(DurableFileTest, AFullDiskIsToldFromAnIoError) {
  EXPECT_EQ(FileError("f", "write", ENOSPC).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(FileError("f", "write", EDQUOT).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(FileError("f", "fsync", EIO).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(FileError("f", "open", EACCES).code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(FileError("f", "open", ENOENT).code(), absl::StatusCode::kNotFound);
}

TEST(DurableFileTest, WithoutCommitNothingIsThere) {
  TempFolder folder;
  {
    auto file = DurableFile::Create(folder.path() + "/state");
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Append(std::as_bytes(std::span("half", 4))).ok());
  }
  EXPECT_EQ(FilesIn(folder.path()), 0u);
}

TEST(DurableFileTest, AMissingFolderIsNamed) {
  const auto file = DurableFile::Create("/nonexistent-folder/state");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("/nonexistent-folder/state"));
}

// A process killed between any two appends leaves the old file whole.
TEST(DurableFileTest, AKillBeforeTheRenameKeepsTheOldFile) {
  TempFolder folder;
  const std::string path = folder.path() + "/state";
  ASSERT_TRUE(WriteFileDurably(path, "old").ok());
  for (int appends = 0; appends < 4; ++appends) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto file = DurableFile::Create(path);
      for (int i = 0; i < appends; ++i) (void)file->Append(std::as_bytes(std::span("new", 3)));
      kill(getpid(), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(Content(path), "old") << "killed after " << appends << " appends";
  }
}

TEST(DurableFileTest, CreatesMissingFolders) {
  TempFolder folder;
  ASSERT_TRUE(CreateFolders(folder.path() + "/a/b/c").ok());
  ASSERT_TRUE(CreateFolders(folder.path() + "/a/b/c").ok());
  EXPECT_TRUE(fs::is_directory(folder.path() + "/a/b/c"));
  std::ofstream(folder.path() + "/file") << "x";
  EXPECT_FALSE(CreateFolders(folder.path() + "/file/below").ok());
}

}  // namespace
}  // namespace luthier
