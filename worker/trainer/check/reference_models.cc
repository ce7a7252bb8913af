#include "worker/trainer/check/reference_models.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/check/report.h"
#include "worker/trainer/device.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/train/adamw.h"
#include "worker/trainer/train/batch.h"

namespace luthier {
namespace {

using nlohmann::json;

// What may lie between the engine and the stored numbers.
struct Tolerances {
  double logits, loss, gradient, merged;
  double lora_curve_loss, lora_curve_norm, logits_after_lora, trained_adapter;
  double full_curve_loss, full_curve_norm, logits_after_full;
};

// fp32: suggested in the reference's README, "Tolerances", column "suggested".
constexpr Tolerances kFp32 = {1e-4, 1e-5, 1e-4, 1e-6, 1e-4, 2e-4, 1e-3, 1e-3, 5e-5, 1e-4, 3e-4};
// bf16 has 8 bits, and these models of a few dozen numbers a layer have nothing to average its errors away: about twice
// the worst of what a CPU gives, with its kernels and without (docs/performance.md, "GPUs").
constexpr Tolerances kBf16 = {0.7, 0.02, 0.25, 1e-6, 0.1, 0.1, 1.0, 0.1, 0.04, 0.04, 0.5};

// One reference case, opened.
struct Case {
  CheckSetting setting;
  Tolerances tolerances = kFp32;
  std::string name;
  std::string folder;
  json golden;
  NamedTensors tensors;
  ModelConfig config;
};

// What a folder lacks is said by name: CheckEach reports it.
const Tensor& Find(const NamedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) throw std::out_of_range(absl::StrCat("there is no tensor '", name, "'"));
  return found->second;
}

// In double, as the reference takes it: of a million numbers a sum in fp32 is off by more than a merged weight may be.
double Norm(const Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble).norm().item<double>(); }

double RelativeTo(double got, double expected) { return std::abs(got - expected) / (expected > 0 ? expected : 1); }

// What the README calls "norm of difference / norm".
double RelativeNorm(const Tensor& got, const Tensor& expected) {
  const double norm = Norm(expected);
  return Norm(got.to(at::kCPU) - expected) / (norm > 0 ? norm : 1);
}

double MaxAbsDiff(const Tensor& got, const Tensor& expected) {
  return (got.to(at::kCPU) - expected).abs().max().item<double>();
}

// What the case itself says of the noise of a figure: how far another order of the same sums is off. Where a recipe
// makes rounding grow from step to step, that is more than is suggested for the usual ones.
double NoiseOf(const Case& c, const std::string& figure) {
  const json noise = c.golden.value("tolerance", json::object());
  return noise.contains(figure) && noise.at(figure).is_number() ? noise.at(figure).get<double>() : 0;
}

double Allowed(const Case& c, const std::string& figure, double suggested) {
  constexpr double kTimes = 6;  // it is one sample; of the cases in shared/reference it widens nothing
  return std::max(suggested, kTimes * NoiseOf(c, figure));
}

absl::StatusOr<Case> OpenCase(const std::string& folder, const CheckSetting& setting) {
  Case out;
  out.setting = setting;
  if (setting.compute.type == at::kBFloat16) out.tolerances = kBf16;
  out.name = folder.substr(folder.find_last_of('/', folder.size() - 2) + 1);
  while (!out.name.empty() && out.name.back() == '/') out.name.pop_back();
  out.folder = folder;
  std::ifstream stream(folder + "/golden.json");
  out.golden = json::parse(stream, nullptr, /*allow_exceptions=*/false);
  if (out.golden.is_discarded())
    return absl::NotFoundError(absl::StrCat(folder, "/golden.json: missing or not valid JSON"));
  LUTHIER_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(folder + "/golden.safetensors"));
  for (const auto& [name, view] : file.tensors()) out.tensors[name] = ToTensor(view, ToScalarType(view.dtype));
  LUTHIER_ASSIGN_OR_RETURN(out.config, ReadModelConfig(folder + "/base"));
  out.config.attention_dropout = 0;  // the stored numbers are of models in evaluation, whatever their config.json says
  return out;
}

// Rows of a padded batch as documents: padding (attention_mask 0) dropped, labels -100 not trained.
std::vector<Example> Rows(const Tensor& ids_BT, const Tensor& mask_BT, const Tensor& labels_BT) {
  std::vector<Example> documents;
  for (int64_t b = 0; b < ids_BT.size(0); ++b) {
    Example document;
    for (int64_t t = 0; t < ids_BT.size(1) && mask_BT[b][t].item<int64_t>() != 0; ++t) {
      document.ids.push_back(ids_BT[b][t].item<int32_t>());
      document.trained.push_back(labels_BT[b][t].item<int64_t>() != -100);
    }
    documents.push_back(std::move(document));
  }
  return documents;
}

// The documents of the packed row; a new one starts where the document id changes.
std::vector<Example> PackedDocuments(const Case& c) {
  const Tensor &ids = Find(c.tensors, "packed.input_ids"), &labels = Find(c.tensors, "packed.labels"),
               &document_ids = Find(c.tensors, "packed.document_ids");
  std::vector<Example> documents;
  for (int64_t t = 0; t < ids.size(1); ++t) {
    if (t == 0 || document_ids[0][t].item<int64_t>() != document_ids[0][t - 1].item<int64_t>())
      documents.emplace_back();
    documents.back().ids.push_back(ids[0][t].item<int32_t>());
    documents.back().trained.push_back(labels[0][t].item<int64_t>() != -100);
  }
  return documents;
}

PackedBatch Batch(const Case& c, const std::vector<Example>& documents) {
  std::vector<const Example*> pointers;
  for (const Example& document : documents) pointers.push_back(&document);
  return MakePackedBatch(pointers, c.setting.device);
}

PackedBatch MainBatch(const Case& c) {
  return Batch(c, Rows(Find(c.tensors, "batch.input_ids"), Find(c.tensors, "batch.attention_mask"),
                       Find(c.tensors, "batch.labels")));
}

PackedBatch AccumulationBatch(const Case& c, int64_t i) {
  const std::string prefix = absl::StrCat("micro.", i, ".");
  return Batch(c, Rows(Find(c.tensors, prefix + "input_ids"), Find(c.tensors, prefix + "attention_mask"),
                       Find(c.tensors, prefix + "labels")));
}

void RequireGradients(const NamedTensors& parameters) {
  for (const auto& [name, parameter] : parameters) {
    parameter.set_requires_grad(true);
    parameter.mutable_grad() = Tensor();
  }
}

double GradientNorm(const NamedTensors& parameters, const std::string& name) {
  const Tensor& gradient = Find(parameters, name).grad();
  return gradient.defined() ? Norm(gradient) : 0;
}

// Mean loss over the batch; leaves its gradient in the trained parameters.
double MeanLossAndGradient(const DecoderModel& model, const PackedBatch& batch) {
  const Tensor loss = SumLoss(model, batch) / static_cast<double>(batch.trained_tokens());
  loss.backward();
  return loss.item<double>();
}

// Compares the gradients that are stored whole by their relative norm, and every other one by its norm.
void CheckGradients(const std::string& check, const NamedTensors& parameters, const NamedTensors& golden,
                    const std::string& stored_prefix, const json& norms, double tolerance, Report& report) {
  // A gradient that is zero, as that of a bias on keys that are not rotated, is what rounding leaves of it on both
  // sides, and one such rest relative to another says nothing.
  constexpr double kRest = 1e-3;
  const double rest = kRest * tolerance * GlobalGradientNorm(parameters);
  const auto are_rests = [&](double got, double expected) { return got <= rest && expected <= rest; };
  double worst = 0, worst_norm = 0;
  for (const auto& [name, parameter] : parameters) {
    const auto stored = golden.find(stored_prefix + name);
    if (stored == golden.end()) continue;
    const Tensor gradient = parameter.grad().defined() ? parameter.grad() : at::zeros_like(parameter);
    if (are_rests(Norm(gradient), Norm(stored->second))) continue;
    worst = std::max(worst, RelativeNorm(gradient, stored->second));
  }
  for (const auto& [name, norm] : norms.items()) {
    const double got = GradientNorm(parameters, name), expected = norm.get<double>();
    if (!are_rests(got, expected)) worst_norm = std::max(worst_norm, RelativeTo(got, expected));
  }
  report.Check(check + ".tensors", worst, tolerance);
  if (!norms.empty()) report.Check(check + ".norms", worst_norm, tolerance);
}

// Sum of micro-batch losses over the whole effective batch's trained tokens, and its gradient: what the trainer
// accumulates.
double AccumulatedLossAndGradient(const Case& c, const DecoderModel& model, const NamedTensors& parameters) {
  double sum = 0;
  int64_t tokens = 0;
  const auto count = static_cast<int64_t>(c.golden.at("accum").at("micro_loss_tokens").size());
  for (int64_t i = 0; i < count; ++i) {
    const PackedBatch batch = AccumulationBatch(c, i);
    const Tensor loss = SumLoss(model, batch);
    loss.backward();
    sum += loss.item<double>();
    tokens += batch.trained_tokens();
  }
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) parameter.mutable_grad().mul_(1.0 / static_cast<double>(tokens));
  }
  return sum / static_cast<double>(tokens);
}

void CheckAccumulation(const std::string& method, const Case& c, const DecoderModel& model,
                       const NamedTensors& parameters, Report& report) {
  RequireGradients(parameters);
  const json& golden = c.golden.at("accum").at(method);
  const double loss = AccumulatedLossAndGradient(c, model, parameters);
  report.Check("accum." + method + ".loss", std::abs(loss - golden.at("loss").get<double>()), c.tolerances.loss);
  report.Check("accum." + method + ".global_grad_norm",
               RelativeTo(GlobalGradientNorm(parameters), golden.at("global_grad_norm")), c.tolerances.gradient);
  CheckGradients("accum." + method + ".grad", parameters, c.tensors, "accum." + method + ".grad.",
                 golden.value("grad_norm", json::object()), c.tolerances.gradient, report);
}

void CheckPacked(const std::string& method, const Case& c, const DecoderModel& model, const NamedTensors& parameters,
                 Report& report) {
  const std::string prefix = method == "full" ? "" : "lora_";
  const json& golden = c.golden.at("packed");
  const std::vector<Example> documents = PackedDocuments(c);
  RequireGradients(parameters);
  const double loss = MeanLossAndGradient(model, Batch(c, documents));
  report.Check("packed." + method + ".loss", std::abs(loss - golden.at(prefix + "loss").get<double>()),
               c.tolerances.loss);
  report.Check("packed." + method + ".global_grad_norm",
               RelativeTo(GlobalGradientNorm(parameters), golden.at(method + "_global_grad_norm")),
               c.tolerances.gradient);
  at::NoGradGuard no_grad;
  double worst = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    const double sum = SumLoss(model, Batch(c, {documents[i]})).item<double>();
    const double expected = golden.at(prefix + "document_loss_sum").at(i);
    worst = std::max(worst, std::abs(sum - expected) / std::max(1.0, std::abs(expected)));
  }
  report.Check("packed." + method + ".document_loss_sum", worst, c.tolerances.loss);
}

// Ten or five optimizer steps, one micro-batch each, as README "Training curves" defines them.
void CheckCurve(const std::string& method, const Case& c, const DecoderModel& model, const NamedTensors& parameters,
                double loss_tolerance, double norm_tolerance, Report& report) {
  const json& golden = c.golden.at("train_" + method);
  AdamW::Options options{
      golden.at("betas").at(0), golden.at("betas").at(1), golden.at("eps"), golden.at("weight_decay"), {}};
  for (const json& name : golden.at("no_decay")) options.no_decay.insert(name);
  RequireGradients(parameters);
  AdamW optimizer(parameters, options);
  double worst_loss = 0, worst_norm = 0;
  for (size_t step = 0; step < golden.at("loss").size(); ++step) {
    optimizer.ZeroGradients();
    const double loss = MeanLossAndGradient(model, AccumulationBatch(c, golden.at("micro_of_step").at(step)));
    const double norm = GlobalGradientNorm(parameters);
    optimizer.Step(golden.at("lr").at(step), ClipFactor(norm, golden.at("clip")));
    worst_loss = std::max(worst_loss, std::abs(loss - golden.at("loss").at(step).get<double>()));
    worst_norm = std::max(worst_norm, RelativeTo(norm, golden.at("grad_norm").at(step)));
  }
  const std::string curve = "train_" + method;
  report.Check(curve + ".loss", worst_loss, Allowed(c, curve + "_loss", loss_tolerance));
  report.Check(curve + ".grad_norm", worst_norm, Allowed(c, curve + "_grad_norm_relative", norm_tolerance));
  at::NoGradGuard no_grad;
  const PackedBatch batch = MainBatch(c);
  const double after = SumLoss(model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  const double of_logits = NoiseOf(c, method == "lora" ? "logits_final" : "full_logits_final");
  constexpr double kOfLoss = 0.25;  // a mean moves less than the logit that moves most
  report.Check(curve + ".batch_loss_after", std::abs(after - golden.at("batch_loss_after").get<double>()),
               std::max(loss_tolerance, kOfLoss * of_logits));
}

// Rows within the length of pre-training, where longrope has other frequencies.
void CheckShort(const Case& c, const DecoderModel& model, Report& report) {
  if (!c.golden.contains("short")) return;
  at::NoGradGuard no_grad;
  const PackedBatch batch = Batch(c, Rows(Find(c.tensors, "short.input_ids"), Find(c.tensors, "short.attention_mask"),
                                          Find(c.tensors, "short.labels")));
  report.Check("short.logits", MaxAbsDiff(Logits(model, batch), Find(c.tensors, "short.logits")), c.tolerances.logits);
  const double loss = SumLoss(model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  report.Check("short.loss", std::abs(loss - c.golden.at("short").at("loss").get<double>()), c.tolerances.loss);
}

absl::Status CheckFull(const Case& c, Report& report) {
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights,
                           LoadWeights(c.folder + "/base", c.config, at::kFloat, WeightUse::kTrained));
  MoveTo(c.setting.device, weights);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeModel(c.config, weights, {}));
  model->Configure(c.setting.compute);
  const PackedBatch batch = MainBatch(c);
  {
    at::NoGradGuard no_grad;
    report.Check("batch.logits", MaxAbsDiff(Logits(*model, batch), Find(c.tensors, "batch.logits")),
                 Allowed(c, "logits_sdpa_vs_eager", c.tolerances.logits));
    report.Check("packed.logits",
                 MaxAbsDiff(Logits(*model, Batch(c, PackedDocuments(c))), Find(c.tensors, "packed.logits")),
                 c.tolerances.logits);
  }
  CheckShort(c, *model, report);
  RequireGradients(weights);
  const double loss = MeanLossAndGradient(*model, batch);
  report.Check("batch.loss", std::abs(loss - c.golden.at("batch").at("loss").get<double>()), c.tolerances.loss);
  report.Check("full.global_grad_norm",
               RelativeTo(GlobalGradientNorm(weights), c.golden.at("full").at("global_grad_norm")),
               c.tolerances.gradient);
  CheckGradients("full.grad", weights, c.tensors, "full.grad.", c.golden.at("full").at("grad_norm"),
                 c.tolerances.gradient, report);
  CheckAccumulation("full", c, *model, weights, report);
  CheckPacked("full", c, *model, weights, report);
  CheckCurve("full", c, *model, weights, c.tolerances.full_curve_loss, c.tolerances.full_curve_norm, report);

  at::NoGradGuard no_grad;
  double worst = 0;
  for (const auto& [name, norm] : c.golden.at("train_full").at("weight_norm_after").items()) {
    worst = std::max(worst, RelativeTo(Norm(Find(weights, name)), norm));
  }
  report.Check("train_full.weight_norm_after", worst, c.tolerances.full_curve_norm);
  std::vector<int64_t> last_rows;
  for (const auto& [begin, end] : batch.documents) last_rows.push_back(end - 1);
  const Tensor last_logits = Logits(*model, batch).to(at::kCPU).index_select(0, at::tensor(last_rows, at::kLong));
  report.Check("full.logits_final_last_token", MaxAbsDiff(last_logits, Find(c.tensors, "full.logits_final_last_token")),
               Allowed(c, "full_logits_final", c.tolerances.logits_after_full));
  return absl::OkStatus();
}

absl::Status CheckMerge(const Case& c, const NamedTensors& base, const Adapter& final_adapter, Report& report) {
  at::NoGradGuard no_grad;
  LUTHIER_ASSIGN_OR_RETURN(const MergedModel merged, MergeAdapter(c.config, base, final_adapter));
  double worst = 0, worst_norm = 0;
  for (const json& name : c.golden.at("merge").at("stored")) {
    worst = std::max(worst, MaxAbsDiff(Find(merged.weights, name),
                                       Find(c.tensors, absl::StrCat("merged.", name.get<std::string>()))));
  }
  for (const auto& [name, norm] : c.golden.at("merge").at("changed").items()) {
    worst_norm = std::max(worst_norm, RelativeTo(Norm(Find(merged.weights, name)), norm));
  }
  report.Check("merge.tensors", worst, c.tolerances.merged);
  report.Check("merge.norms", worst_norm, c.tolerances.merged);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeMergedModel(c.config, merged));
  model->Configure(c.setting.compute);
  const PackedBatch batch = MainBatch(c);
  const double loss = SumLoss(*model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  report.Check("merge.batch_loss", std::abs(loss - c.golden.at("merge").at("batch_loss").get<double>()),
               c.tolerances.loss);
  report.Check("merge.logits", MaxAbsDiff(Logits(*model, batch), Find(c.tensors, "lora.logits_final")),
               Allowed(c, "logits_merged_vs_adapter", c.tolerances.logits));
  return absl::OkStatus();
}

absl::Status CheckLora(const Case& c, Report& report) {
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights,
                           LoadWeights(c.folder + "/base", c.config, at::kFloat, WeightUse::kFrozen));
  LUTHIER_ASSIGN_OR_RETURN(Adapter adapter, ReadAdapter(c.folder + "/adapter_init", c.config, &weights));
  LUTHIER_ASSIGN_OR_RETURN(Adapter final_adapter, ReadAdapter(c.folder + "/adapter_final", c.config, &weights));
  adapter.config.dropout = final_adapter.config.dropout = 0;  // as with the base's
  for (NamedTensors* tensors : {&weights, &adapter.tensors, &final_adapter.tensors}) MoveTo(c.setting.device, *tensors);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeTunedModel(c.config, weights, {&adapter}));
  LUTHIER_ASSIGN_OR_RETURN(const auto final_model, MakeTunedModel(c.config, weights, {&final_adapter}));
  model->Configure(c.setting.compute);
  final_model->Configure(c.setting.compute);
  const PackedBatch batch = MainBatch(c);
  {
    at::NoGradGuard no_grad;
    report.Check("lora.logits_init", MaxAbsDiff(Logits(*model, batch), Find(c.tensors, "lora.logits_init")),
                 c.tolerances.logits);
    report.Check("lora.logits_final", MaxAbsDiff(Logits(*final_model, batch), Find(c.tensors, "lora.logits_final")),
                 Allowed(c, "logits_merged_vs_adapter", c.tolerances.logits));
  }
  RequireGradients(adapter.tensors);
  const double loss = MeanLossAndGradient(*model, batch);
  report.Check("lora.loss", std::abs(loss - c.golden.at("lora").at("loss").get<double>()), c.tolerances.loss);
  report.Check("lora.global_grad_norm",
               RelativeTo(GlobalGradientNorm(adapter.tensors), c.golden.at("lora").at("global_grad_norm")),
               c.tolerances.gradient);
  CheckGradients("lora.grad", adapter.tensors, c.tensors, "lora.grad.", json::object(), c.tolerances.gradient, report);
  CheckAccumulation("lora", c, *model, adapter.tensors, report);
  CheckPacked("lora", c, *model, adapter.tensors, report);
  CheckCurve("lora", c, *model, adapter.tensors, c.tolerances.lora_curve_loss, c.tolerances.lora_curve_norm, report);

  at::NoGradGuard no_grad;
  report.Check("train_lora.logits_after", MaxAbsDiff(Logits(*model, batch), Find(c.tensors, "lora.logits_final")),
               Allowed(c, "logits_final", c.tolerances.logits_after_lora));
  double worst = 0, farthest = 0;
  for (const auto& [name, tensor] : final_adapter.tensors) {
    const Tensor &got = Find(adapter.tensors, name), expected = tensor.to(at::kCPU);
    worst = std::max(worst, RelativeNorm(got, expected));
    farthest = std::max(farthest, MaxAbsDiff(got, expected));
  }
  // The case measures its noise in the largest element, and the tolerance is of norms.
  const double allowed = Allowed(c, "adapter_final", c.tolerances.trained_adapter);
  const bool noisy = allowed > c.tolerances.trained_adapter;
  report.Check("train_lora.adapter_after", noisy ? farthest : worst, allowed);
  return CheckMerge(c, weights, final_adapter, report);
}

}  // namespace

absl::StatusOr<bool> CheckModel(const std::string& folder, const CheckSetting& setting, std::ostream& out) {
  LUTHIER_ASSIGN_OR_RETURN(const Case opened, OpenCase(folder, setting));
  Report report(opened.name, out);
  if (absl::Status status = CheckFull(opened, report); !status.ok()) report.Fail("full", status.message());
  if (absl::Status status = CheckLora(opened, report); !status.ok()) report.Fail("lora", status.message());
  return report.all_ok();
}

}  // namespace luthier
