// Which files make a base model.
#include "lib/checkpoint/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "lib/checkpoint/safetensors.h"
#include "tests/support/temp_folder.h"

namespace luthier {
namespace {

using ::testing::ElementsAre;

TEST(BelongsToModelTest, TakesWhatATrainerReadsOrAnExportCopiesAndNothingElse) {
  for (const char* path :
       {"config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja", "tokenizer.model", "merges.txt"})
    EXPECT_TRUE(BelongsToModel(path)) << path;
  for (const char* path :
       {"README.md", "pytorch_model.bin", "model.gguf", "onnx/tokenizer.model", "config.json.part", "onnx/config.json",
        "original/params.json", "templates/x.jinja", "additional_chat_templates/x.json",
        "additional_chat_templates/more/x.jinja", "additional_chat_templates", ""})
    EXPECT_FALSE(BelongsToModel(path)) << path;
}

TEST(ShardFilesTest, AreThoseOfTheIndex) {
  const TempFolder folder;
  const auto write = [&](const std::string& index) {
    std::ofstream(folder.path() + "/model.safetensors.index.json") << index;
  };
  write(R"({"weight_map": {"a": "x.safetensors", "b": "y.safetensors", "c": "x.safetensors"}})");
  EXPECT_THAT(*ShardFiles(folder.path()), ElementsAre("x.safetensors", "y.safetensors"));
  for (const char* wrong : {"", "[]", R"({"weight_map": {"a": "../x.safetensors"}})", R"({"weight_map": {"a": 1}})"}) {
    write(wrong);
    EXPECT_TRUE(absl::IsInvalidArgument(ShardFiles(folder.path()).status())) << wrong;
  }
}

}  // namespace
}  // namespace luthier
