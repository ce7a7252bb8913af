// reference-check logits …: writes the logits of given tokens, for comparison in another framework.
// reference-check text DIR…: compares tokenizers, templates and masks with what transformers wrote (reference_text.h).
// reference-check models DIR…: compares the engine with what transformers + PEFT computed (reference_models.h). One
// JSON line a case and check; exit code 0 only if every check is ok.
#include <CLI/CLI.hpp>

#include <cstdint>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/base/status_macros.h"
#include "worker/trainer/check/reference_models.h"
#include "worker/trainer/check/reference_text.h"
#include "worker/trainer/check/report.h"
#include "worker/trainer/device.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/ops/place.h"
#include "worker/trainer/ops/subnormals.h"
#include "worker/trainer/train/batch.h"

namespace luthier {
namespace {

struct LogitsArguments {
  std::string base;
  std::string adapter;
  std::vector<int32_t> tokens;
  std::string out;
};

// Writes `logits` [T, V] of one document.
absl::Status WriteLogits(const LogitsArguments& arguments) {
  at::NoGradGuard no_grad;
  LUTHIER_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(arguments.base));
  LUTHIER_ASSIGN_OR_RETURN(const NamedTensors weights,
                           LoadWeights(arguments.base, config, at::kFloat, WeightUse::kFrozen));
  std::vector<const Adapter*> adapters;
  Adapter adapter;
  if (!arguments.adapter.empty()) {
    LUTHIER_ASSIGN_OR_RETURN(adapter, ReadAdapter(arguments.adapter, config, &weights));
    adapters.push_back(&adapter);
  }
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeTunedModel(config, weights, adapters));
  const Example document{arguments.tokens, std::vector<uint8_t>(arguments.tokens.size(), 1)};
  const Tensor logits_TV = Logits(*model, MakePackedBatch({&document}, at::kCPU)).contiguous();
  return WriteSafetensors(arguments.out, {ToWrite("logits", logits_TV)}, {});
}

// Runs `check`, which returns a StatusOr<bool>, on each folder; prints what keeps it from an answer.
template <typename Check>
bool CheckEach(const std::vector<std::string>& folders, const Check& check) {
  bool all_ok = true;
  for (const std::string& folder : folders) {
    absl::StatusOr<bool> ok;
    try {
      ok = check(folder);
    } catch (const std::exception& error) {  // LibTorch and JSON report damaged golden files so
      ok = absl::DataLossError(error.what());
    }
    if (!ok.ok()) Report(folder, std::cout).Fail("open", std::string(ok.status().message()));
    all_ok = all_ok && ok.ok() && *ok;
  }
  return all_ok;
}

int Main(int argc, char** argv) {
  ops::FlushSubnormals();  // as the trainer does
  CLI::App app{"Compares the engine with stored numbers and texts of transformers + PEFT."};
  app.require_subcommand(1);
  std::vector<std::string> folders;
  CLI::App* models = app.add_subcommand("models", "Every check that the golden files of each case folder allow.");
  models->add_option("DIR", folders, "Case folders (base/, adapter_init/, golden.json, …)")->required();
  std::string device = "cpu", dtype = "fp32";
  bool composed = false;
  models->add_option("--device", device)->check(CLI::IsMember({"cpu", "cuda"}))->capture_default_str();
  models->add_option("--dtype", dtype, "What is computed in; with bf16 tolerances are wider")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  models->add_flag("--composed", composed, "On a CPU by the operations that GPUs use");
  CLI::App* text = app.add_subcommand("text", "Every record of each folder: encodings, renderings, masks, probes.");
  text->add_option("DIR", folders, "Folders (tokenizers/, templates/, conversations.jsonl, expected/, …)")->required();
  LogitsArguments logits;
  CLI::App* logits_command = app.add_subcommand("logits", "Writes the logits of a token sequence as safetensors.");
  logits_command->add_option("--base", logits.base, "Base model folder")->required();
  logits_command->add_option("--adapter", logits.adapter, "Adapter folder in PEFT format");
  logits_command->add_option("--tokens", logits.tokens, "Token ids, separated by commas")->required()->delimiter(',');
  logits_command->add_option("--out", logits.out, "File to write")->required();
  CLI11_PARSE(app, argc, argv);
  if (logits_command->parsed()) {
    const absl::Status status = WriteLogits(logits);
    if (!status.ok()) std::cerr << "error: " << status.message() << "\n";
    return status.ok() ? 0 : 1;
  }
  if (text->parsed()) {
    return CheckEach(folders, [](const std::string& folder) { return CheckText(folder, std::cout); }) ? 0 : 1;
  }
  CheckSetting setting;
  if (device == "cuda") {
    const absl::StatusOr<at::Device> gpu = DeviceOfRank(0);
    if (!gpu.ok() || gpu->is_cpu()) {
      std::cerr << "error: --device cuda: " << (gpu.ok() ? "there is no GPU" : gpu.status().message()) << "\n";
      return 1;
    }
    setting.device = *gpu;
  }
  if (dtype == "bf16") setting.compute.type = at::kBFloat16;
  std::optional<ops::WithoutKernels> without_kernels;
  if (composed) without_kernels.emplace();
  return CheckEach(folders, [&](const std::string& folder) { return CheckModel(folder, setting, std::cout); }) ? 0 : 1;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::Main(argc, argv); }
