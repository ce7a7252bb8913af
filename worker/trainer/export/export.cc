#include "worker/trainer/export/export.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <span>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/artifact/durable_file.h"
#include "lib/base/status_macros.h"
#include "lib/checkpoint/safetensors.h"
#include "lib/text/template_source.h"
#include "worker/trainer/device.h"
#include "worker/trainer/export/export_place.h"
#include "worker/trainer/models/weights.h"

namespace luthier {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Part of the logits' spread that rounding the weights to 16 bits may move them. Wrong tensors are found before: this
// finds a config.json that reads as another model.
constexpr double kRoundedTolerance = 0.05;
// The same for sums in another order: a merged layer multiplies once where the trained one adds an adapter.
constexpr double kReorderedTolerance = 1e-4;

// Of how many tokens the logits must be so near. Where a router chooses among experts, rounding lets it choose another
// one of two that are nearly as probable; that moves a few tokens by much, and a wrong config.json moves them all.
double ComparedShare(const ModelConfig& config) { return config.experts ? 0.5 : 1; }

at::ScalarType StoredType(const std::string& dtype) {
  if (dtype == "bfloat16") return at::kBFloat16;
  if (dtype == "float16") return at::kHalf;
  return at::kFloat;
}

// Names of the tensors of each file, in order, so that no file exceeds the limit unless a single tensor does.
std::vector<std::vector<std::string>> Shards(const NamedTensors& weights, int64_t element_bytes,
                                             int64_t max_shard_bytes) {
  std::vector<std::vector<std::string>> shards(1);
  int64_t bytes = 0;
  for (const auto& [name, tensor] : weights) {
    const int64_t size = tensor.numel() * element_bytes;
    if (!shards.back().empty() && bytes + size > max_shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(name);
    bytes += size;
  }
  return shards;
}

// One shard at a time is converted, so that the whole model is never held twice.
absl::Status WriteWeights(const NamedTensors& weights, at::ScalarType type, int64_t max_shard_bytes,
                          const std::string& folder) {
  const auto element_bytes = static_cast<int64_t>(at::elementSize(type));
  const auto shards = Shards(weights, element_bytes, max_shard_bytes);
  json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", json::object()}};
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file =
        shards.size() == 1 ? kWeightsFile : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    std::vector<Tensor> stored;  // keeps what `views` borrows
    std::vector<TensorToWrite> views;
    for (const std::string& name : shards[i]) {
      stored.push_back(weights.at(name).detach().to(at::kCPU, type).contiguous());
      views.push_back(ToWrite(name, stored.back()));
      index["weight_map"][name] = file;
      total += stored.back().numel() * element_bytes;
    }
    LUTHIER_RETURN_IF_ERROR(WriteSafetensors(folder + "/" + file, views, SafetensorsMetadata()));
  }
  if (shards.size() == 1) return absl::OkStatus();
  index["metadata"]["total_size"] = total;
  return WriteFileDurably(folder + "/" + kWeightsIndexFile, index.dump(2) + "\n");
}

absl::Status CopyTextFiles(const fs::path& from, const fs::path& to) {
  std::vector<std::string> names = NamedTemplateFiles(from);
  if (!names.empty()) LUTHIER_RETURN_IF_ERROR(CreateFolders(to / kNamedTemplates));
  for (const char* name : kTextFiles) {
    if (fs::exists(from / name)) names.emplace_back(name);
  }
  for (const std::string& name : names) {
    std::error_code error;
    fs::copy_file(from / name, to / name, error);
    if (error) return absl::ResourceExhaustedError(absl::StrCat((to / name).string(), ": ", error.message()));
  }
  return absl::OkStatus();
}

// Base models often name another end token than the one that ends a turn of the template: what was tuned on turns would
// never stop. So every token that ends an answer ends generation.
absl::Status WriteGenerationConfig(const ModelToExport& model, const std::string& folder) {
  std::ifstream stream(model.base_folder + "/" + kGenerationConfigFile);
  json generation = json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (!generation.is_object()) generation = json::object();
  const json& before = generation.contains("eos_token_id") ? generation["eos_token_id"]
                                                           : model.config_json.value("eos_token_id", json());
  json ends = before.is_array() ? before : json::array();
  if (before.is_number()) ends.push_back(before);
  for (int32_t id : model.end_ids) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  }
  if (!ends.empty()) generation["eos_token_id"] = ends.size() == 1 ? ends[0] : ends;
  if (generation.empty()) return absl::OkStatus();
  return WriteFileDurably(folder + "/" + kGenerationConfigFile, generation.dump(2) + "\n");
}

// Whether `stored` holds these tensors as `type`, bit for bit.
absl::Status CompareBits(const NamedTensors& tensors, at::ScalarType type,
                         const std::map<std::string, TensorView>& stored, const std::string& path) {
  for (const auto& [name, tensor] : tensors) {
    const Tensor expected = tensor.detach().to(at::kCPU, type).contiguous();
    const std::span<const std::byte> bytes = ToWrite(name, expected).bytes;
    const auto found = stored.find(name);
    if (found == stored.end() || found->second.dtype != ToDtype(type) ||
        found->second.shape != expected.sizes().vec() || !std::ranges::equal(found->second.bytes, bytes)) {
      return absl::InternalError(absl::StrCat(path, ": ", name, " is not the trained one in ", DtypeName(ToDtype(type)),
                                              ", as it was written; the export is not published"));
    }
    ReleasePages(found->second);
  }
  return absl::OkStatus();
}

// At most kComparedTokens of `tokens`, spread evenly.
Tensor ComparedRows(int64_t tokens, at::Device device) {
  if (tokens <= kComparedTokens) return at::arange(tokens, at::kLong).to(device);
  const Tensor steps = at::arange(kComparedTokens, at::kLong) * (tokens - 1);
  return at::floor_divide(steps, kComparedTokens - 1).to(device);
}

}  // namespace

std::vector<int32_t> ProbeRows(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> by_length(lengths.size());
  std::iota(by_length.begin(), by_length.end(), 0);
  std::ranges::stable_sort(by_length, {}, [&](int32_t row) { return lengths[static_cast<size_t>(row)]; });
  std::vector<int32_t> rows;
  int64_t tokens = 0;
  const size_t last = lengths.size() - 1;
  for (const size_t place : std::set<size_t>{0, last / 2, last}) {
    const int32_t row = by_length[place];
    tokens += lengths[static_cast<size_t>(row)];
    if (place == last || tokens <= kProbeTokens) rows.push_back(row);
  }
  return rows;
}

TrainedModel::TrainedModel(const DecoderModel& model, const PackedBatch& probe)
    : model_(model), probe_(probe), rows_N_(ComparedRows(probe.size(), model.device())) {
  at::NoGradGuard no_grad;
  logits_NV_ = Logits(model, probe, rows_N_);
}

double TrainedModel::spread() const { return (logits_NV_.max() - logits_NV_.min()).item<double>(); }

absl::Status TrainedModel::Compare(DecoderModel& reloaded, double tolerance, const std::string& path,
                                   double share) const {
  at::NoGradGuard no_grad;
  reloaded.Configure(model_.compute());
  const Tensor differences_NV = (Logits(reloaded, probe_, rows_N_) - logits_NV_).abs();
  const Tensor ascending_N = std::get<0>(std::get<0>(differences_NV.max(1)).sort());  // NaN comes last
  const auto last = static_cast<int64_t>(std::ceil(share * static_cast<double>(ascending_N.size(0)))) - 1;
  const double difference = ascending_N[last].item<double>();
  if (difference <= tolerance && std::isfinite(ascending_N[-1].item<double>())) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(path,
                                          ": reloaded, the export computes other logits than the trained model (by ",
                                          difference, ", allowed ", tolerance, "); it is not published"));
}

absl::Status CompareWeights(const NamedTensors& weights, at::ScalarType stored_as, const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const WeightFolder files, WeightFolder::Open(folder));
  return CompareBits(weights, stored_as, files.tensors(), folder);
}

absl::Status CompareAdapter(const Adapter& adapter, const std::string& folder) {
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(folder + "/" + kAdapterWeightsFile));
  return CompareBits(adapter.tensors, at::kFloat, file.tensors(), folder);
}

absl::Status ExportAdapter(const Adapter& adapter, const NamedTensors& base, const ModelConfig& config,
                           const TrainedModel& trained, const std::string& folder) {
  return WriteExport(folder, [&](const std::string& unfinished) -> absl::Status {
    LUTHIER_RETURN_IF_ERROR(CreateFolders(unfinished));
    LUTHIER_RETURN_IF_ERROR(WriteAdapter(adapter, unfinished, SafetensorsMetadata()));
    LUTHIER_RETURN_IF_ERROR(CompareAdapter(adapter, unfinished));
    LUTHIER_ASSIGN_OR_RETURN(Adapter again, ReadAdapter(unfinished, config));
    MoveTo(trained.device(), again.tensors);
    LUTHIER_ASSIGN_OR_RETURN(const auto reloaded, MakeTunedModel(config, base, {&again}));
    return trained.Compare(*reloaded, kExactTolerance, folder);
  });
}

absl::Status ExportModel(const ModelToExport& model, const TrainedModel& trained, const std::string& folder,
                         int64_t max_shard_bytes) {
  LUTHIER_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(model.config_json));
  const at::ScalarType type = StoredType(config.dtype);
  const double spread = trained.spread(), reordered = std::max(kExactTolerance, kReorderedTolerance * spread);
  {
    LUTHIER_ASSIGN_OR_RETURN(const auto unrounded, MakeModel(config, model.weights, {}));
    LUTHIER_RETURN_IF_ERROR(trained.Compare(*unrounded, reordered, folder, ComparedShare(config)));
  }
  return WriteExport(folder, [&](const std::string& unfinished) -> absl::Status {
    LUTHIER_RETURN_IF_ERROR(CreateFolders(unfinished));
    LUTHIER_RETURN_IF_ERROR(WriteWeights(model.weights, type, max_shard_bytes, unfinished));
    LUTHIER_RETURN_IF_ERROR(WriteFileDurably(unfinished + "/" + kConfigFile, model.config_json.dump(2) + "\n"));
    LUTHIER_RETURN_IF_ERROR(CopyTextFiles(model.base_folder, unfinished));
    LUTHIER_RETURN_IF_ERROR(WriteGenerationConfig(model, unfinished));
    LUTHIER_RETURN_IF_ERROR(SyncFolder(unfinished));
    LUTHIER_RETURN_IF_ERROR(CompareWeights(model.weights, type, unfinished));
    LUTHIER_ASSIGN_OR_RETURN(const ModelConfig written, ReadModelConfig(unfinished));
    LUTHIER_ASSIGN_OR_RETURN(NamedTensors again, LoadWeights(unfinished, written, at::kFloat, WeightUse::kFrozen));
    MoveTo(trained.device(), again);
    LUTHIER_ASSIGN_OR_RETURN(const auto reloaded, MakeModel(written, again, {}));
    return trained.Compare(*reloaded, type == at::kFloat ? reordered : kRoundedTolerance * spread, folder,
                           ComparedShare(written));
  });
}

json MergedConfig(json config_json, const MergedModel& merged) {
  if (merged.untied) config_json["tie_word_embeddings"] = false;
  return config_json;
}

int64_t FolderBytes(const std::string& folder) {
  int64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

}  // namespace luthier
