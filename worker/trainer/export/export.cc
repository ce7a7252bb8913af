#include "worker/trainer/export/export.h"

#include <filesystem>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/safetensors.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;

// An exact copy computes the same logits up to the order of sums.
constexpr double kExactTolerance = 1e-4;
// Part of the logits' spread that rounding the weights to 16 bits may move them; a wrong tensor moves them by far more.
constexpr double kRoundedTolerance = 0.05;

// What a Hugging Face folder holds besides config and weights, as far as the base has it.
constexpr const char* kTextFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                      "chat_template.jinja", "generation_config.json"};

absl::Status NewFolder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  fs::create_directories(folder, error);
  if (error) return absl::ResourceExhaustedError(absl::StrCat(folder.string(), ": ", error.message()));
  return absl::OkStatus();
}

absl::Status CompareLogits(const DecoderModel& trained, const DecoderModel& reloaded, const PackedBatch& probe,
                           double tolerance, const std::string& folder) {
  at::NoGradGuard no_grad;
  const Tensor expected = Logits(trained, probe);
  const double difference = (Logits(reloaded, probe) - expected).abs().max().item<double>();
  if (difference <= tolerance) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(folder, ": reloaded, the export computes other logits than the trained model (by ",
                                          difference, ", allowed ", tolerance, "); it is not published"));
}

at::ScalarType StoredType(const std::string& dtype) {
  if (dtype == "bfloat16") return at::kBFloat16;
  if (dtype == "float16") return at::kHalf;
  return at::kFloat;
}

}  // namespace

absl::Status ExportAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                           const DecoderModel& trained, const PackedBatch& probe, const std::string& folder) {
  LUTHIER_RETURN_IF_ERROR(NewFolder(folder));
  LUTHIER_RETURN_IF_ERROR(WriteAdapter(adapter, folder));
  const std::vector<LinearLayer> linears = LlamaLinearLayers(config);
  LUTHIER_ASSIGN_OR_RETURN(const Adapter again, ReadAdapter(folder, linears));
  LUTHIER_ASSIGN_OR_RETURN(const auto reloaded, MakeModel(config, base, CollectLayers({&again}, linears)));
  return CompareLogits(trained, *reloaded, probe, kExactTolerance, folder);
}

absl::Status ExportModel(const NamedTensors& weights, const nlohmann::json& config_json, const ModelConfig& config,
                         const std::string& base_folder, const DecoderModel& trained, const PackedBatch& probe,
                         const std::string& folder) {
  LUTHIER_RETURN_IF_ERROR(NewFolder(folder));
  const at::ScalarType type = StoredType(config.dtype);
  std::vector<Tensor> stored;  // keeps what `views` borrows
  std::vector<TensorToWrite> views;
  for (const auto& [name, tensor] : weights) {
    stored.push_back(tensor.detach().to(at::kCPU, type).contiguous());
    views.push_back(ToWrite(name, stored.back()));
  }
  LUTHIER_RETURN_IF_ERROR(WriteSafetensors(folder + "/model.safetensors", views, {{"format", "pt"}}));
  LUTHIER_RETURN_IF_ERROR(WriteFileDurably(folder + "/config.json", config_json.dump(2) + "\n"));
  for (const char* name : kTextFiles) {
    std::error_code error;
    if (!fs::exists(fs::path(base_folder) / name)) continue;
    fs::copy_file(fs::path(base_folder) / name, fs::path(folder) / name, error);
    if (error) return absl::ResourceExhaustedError(absl::StrCat(folder, "/", name, ": ", error.message()));
  }
  LUTHIER_RETURN_IF_ERROR(SyncFolder(folder));

  LUTHIER_ASSIGN_OR_RETURN(const NamedTensors again, LoadWeights(folder, config, at::kFloat));
  LUTHIER_ASSIGN_OR_RETURN(const auto reloaded, MakeModel(config, again, {}));
  double tolerance = kExactTolerance;
  if (type != at::kFloat) {
    at::NoGradGuard no_grad;
    const Tensor logits = Logits(trained, probe);
    tolerance = kRoundedTolerance * (logits.max() - logits.min()).item<double>();
  }
  return CompareLogits(trained, *reloaded, probe, tolerance, folder);
}

int64_t FolderBytes(const std::string& folder) {
  int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

}  // namespace luthier
