#include <fstream>

#include "lib/checkpoint/adapter_config.h"
#include "tests/fuzz/input.h"
#include "tests/support/temp_folder.h"

namespace luthier {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const TempFolder folder;
  std::ofstream(folder.path() + "/adapter_config.json", std::ios::binary)
      .write(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<AdapterConfig> config = ReadAdapterConfig(folder.path());
  if (!config.ok()) {
    Require(!config.status().message().empty(), "a refusal has a reason");
    return 0;
  }
  for (const char* module : {"model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "lm_head"}) {
    Require(config->RankOf(module) > 0, "ranks are 1 or more");
    config->Targets(module, 0);
    config->Saves(module);
  }
  const nlohmann::ordered_json written = ToJson(*config);
  const absl::StatusOr<AdapterConfig> again = ParseAdapterConfig(written);
  Require(again.ok(), "what is written is read");
  Require(ToJson(*again) == written, "what is written reads back");
  return 0;
}

}  // namespace luthier
