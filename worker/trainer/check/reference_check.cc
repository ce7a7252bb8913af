// reference-check logits …: writes the logits of given tokens, for comparison in another framework.
// reference-check text DIR…: compares tokenizers, templates and masks with what transformers wrote (reference_text.h).
// reference-check models DIR…: compares the engine with stored numbers of transformers + PEFT (shared/reference/models,
// README there). One JSON line a case and check; exit code 0 only if every check is ok.
#include <CLI/CLI.hpp>

#include <cmath>
#include <fstream>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/trainer/check/reference_text.h"
#include "worker/trainer/device.h"
#include "worker/trainer/lora/lora.h"
#include "worker/trainer/models/weights.h"
#include "worker/trainer/ops/place.h"
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

// How a case is computed.
struct Setting {
  at::Device device = at::kCPU;
  ComputeOptions compute;
  Tolerances tolerances = kFp32;
};
Setting setting;

// One reference case, opened.
struct Case {
  std::string name;
  std::string folder;
  json golden;
  NamedTensors tensors;
  ModelConfig config;
};

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

class Report {
 public:
  explicit Report(std::string name) : case_(std::move(name)) {}

  void Check(const std::string& check, double difference, double tolerance) {
    const bool ok = difference <= tolerance;  // false for NaN
    all_ok_ = all_ok_ && ok;
    std::cout
        << json{{"case", case_}, {"check", check}, {"max_abs_diff", difference}, {"tolerance", tolerance}, {"ok", ok}}
               .dump()
        << "\n";
  }

  void Fail(const std::string& check, absl::string_view reason) {
    all_ok_ = false;
    std::cout << json{{"case", case_},        {"check", check}, {"max_abs_diff", nullptr},
                      {"tolerance", nullptr}, {"ok", false},    {"reason", std::string(reason)}}
                     .dump()
              << "\n";
  }

  bool all_ok() const { return all_ok_; }

 private:
  std::string case_;
  bool all_ok_ = true;
};

absl::StatusOr<Case> OpenCase(const std::string& folder) {
  Case out;
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
  const Tensor &ids = c.tensors.at("packed.input_ids"), &labels = c.tensors.at("packed.labels"),
               &document_ids = c.tensors.at("packed.document_ids");
  std::vector<Example> documents;
  for (int64_t t = 0; t < ids.size(1); ++t) {
    if (t == 0 || document_ids[0][t].item<int64_t>() != document_ids[0][t - 1].item<int64_t>())
      documents.emplace_back();
    documents.back().ids.push_back(ids[0][t].item<int32_t>());
    documents.back().trained.push_back(labels[0][t].item<int64_t>() != -100);
  }
  return documents;
}

PackedBatch Batch(const std::vector<Example>& documents) {
  std::vector<const Example*> pointers;
  for (const Example& document : documents) pointers.push_back(&document);
  return MakePackedBatch(pointers, setting.device);
}

PackedBatch MainBatch(const Case& c) {
  return Batch(
      Rows(c.tensors.at("batch.input_ids"), c.tensors.at("batch.attention_mask"), c.tensors.at("batch.labels")));
}

PackedBatch AccumulationBatch(const Case& c, int64_t i) {
  const std::string prefix = absl::StrCat("micro.", i, ".");
  return Batch(Rows(c.tensors.at(prefix + "input_ids"), c.tensors.at(prefix + "attention_mask"),
                    c.tensors.at(prefix + "labels")));
}

void RequireGradients(const NamedTensors& parameters) {
  for (const auto& [name, parameter] : parameters) {
    parameter.set_requires_grad(true);
    parameter.mutable_grad() = Tensor();
  }
}

double GradientNorm(const NamedTensors& parameters, const std::string& name) {
  const Tensor& gradient = parameters.at(name).grad();
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
  const auto count = static_cast<int64_t>(c.golden["accum"]["micro_loss_tokens"].size());
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
  const json& golden = c.golden["accum"][method];
  const double loss = AccumulatedLossAndGradient(c, model, parameters);
  report.Check("accum." + method + ".loss", std::abs(loss - golden["loss"].get<double>()), setting.tolerances.loss);
  report.Check("accum." + method + ".global_grad_norm",
               RelativeTo(GlobalGradientNorm(parameters), golden["global_grad_norm"]), setting.tolerances.gradient);
  CheckGradients("accum." + method + ".grad", parameters, c.tensors, "accum." + method + ".grad.",
                 golden.value("grad_norm", json::object()), setting.tolerances.gradient, report);
}

void CheckPacked(const std::string& method, const Case& c, const DecoderModel& model, const NamedTensors& parameters,
                 Report& report) {
  const std::string prefix = method == "full" ? "" : "lora_";
  const json& golden = c.golden["packed"];
  const std::vector<Example> documents = PackedDocuments(c);
  RequireGradients(parameters);
  const double loss = MeanLossAndGradient(model, Batch(documents));
  report.Check("packed." + method + ".loss", std::abs(loss - golden[prefix + "loss"].get<double>()),
               setting.tolerances.loss);
  report.Check("packed." + method + ".global_grad_norm",
               RelativeTo(GlobalGradientNorm(parameters), golden[method + "_global_grad_norm"]),
               setting.tolerances.gradient);
  at::NoGradGuard no_grad;
  double worst = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    const double sum = SumLoss(model, Batch({documents[i]})).item<double>();
    const double expected = golden[prefix + "document_loss_sum"][i];
    worst = std::max(worst, std::abs(sum - expected) / std::max(1.0, std::abs(expected)));
  }
  report.Check("packed." + method + ".document_loss_sum", worst, setting.tolerances.loss);
}

// Ten or five optimizer steps, one micro-batch each, as README "Training curves" defines them.
void CheckCurve(const std::string& method, const Case& c, const DecoderModel& model, const NamedTensors& parameters,
                double loss_tolerance, double norm_tolerance, Report& report) {
  const json& golden = c.golden["train_" + method];
  AdamW::Options options{golden["betas"][0], golden["betas"][1], golden["eps"], golden["weight_decay"], {}};
  for (const json& name : golden["no_decay"]) options.no_decay.insert(name);
  RequireGradients(parameters);
  AdamW optimizer(parameters, options);
  double worst_loss = 0, worst_norm = 0;
  for (size_t step = 0; step < golden["loss"].size(); ++step) {
    optimizer.ZeroGradients();
    const double loss = MeanLossAndGradient(model, AccumulationBatch(c, golden["micro_of_step"][step]));
    const double norm = GlobalGradientNorm(parameters);
    optimizer.Step(golden["lr"][step], ClipFactor(norm, golden["clip"]));
    worst_loss = std::max(worst_loss, std::abs(loss - golden["loss"][step].get<double>()));
    worst_norm = std::max(worst_norm, RelativeTo(norm, golden["grad_norm"][step]));
  }
  report.Check("train_" + method + ".loss", worst_loss, loss_tolerance);
  report.Check("train_" + method + ".grad_norm", worst_norm, norm_tolerance);
  at::NoGradGuard no_grad;
  const PackedBatch batch = MainBatch(c);
  const double after = SumLoss(model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  report.Check("train_" + method + ".batch_loss_after", std::abs(after - golden["batch_loss_after"].get<double>()),
               loss_tolerance);
}

// Rows within the length of pre-training, where longrope has other frequencies.
void CheckShort(const Case& c, const DecoderModel& model, Report& report) {
  if (!c.golden.contains("short")) return;
  at::NoGradGuard no_grad;
  const PackedBatch batch =
      Batch(Rows(c.tensors.at("short.input_ids"), c.tensors.at("short.attention_mask"), c.tensors.at("short.labels")));
  report.Check("short.logits", MaxAbsDiff(Logits(model, batch), c.tensors.at("short.logits")),
               setting.tolerances.logits);
  const double loss = SumLoss(model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  report.Check("short.loss", std::abs(loss - c.golden["short"]["loss"].get<double>()), setting.tolerances.loss);
}

absl::Status CheckFull(const Case& c, Report& report) {
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights,
                           LoadWeights(c.folder + "/base", c.config, at::kFloat, WeightUse::kTrained));
  MoveTo(setting.device, weights);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeModel(c.config, weights, {}));
  model->Configure(setting.compute);
  const PackedBatch batch = MainBatch(c);
  {
    at::NoGradGuard no_grad;
    report.Check("batch.logits", MaxAbsDiff(Logits(*model, batch), c.tensors.at("batch.logits")),
                 setting.tolerances.logits);
    report.Check("packed.logits", MaxAbsDiff(Logits(*model, Batch(PackedDocuments(c))), c.tensors.at("packed.logits")),
                 setting.tolerances.logits);
  }
  CheckShort(c, *model, report);
  RequireGradients(weights);
  const double loss = MeanLossAndGradient(*model, batch);
  report.Check("batch.loss", std::abs(loss - c.golden["batch"]["loss"].get<double>()), setting.tolerances.loss);
  report.Check("full.global_grad_norm", RelativeTo(GlobalGradientNorm(weights), c.golden["full"]["global_grad_norm"]),
               setting.tolerances.gradient);
  CheckGradients("full.grad", weights, c.tensors, "full.grad.", c.golden["full"]["grad_norm"],
                 setting.tolerances.gradient, report);
  CheckAccumulation("full", c, *model, weights, report);
  CheckPacked("full", c, *model, weights, report);
  CheckCurve("full", c, *model, weights, setting.tolerances.full_curve_loss, setting.tolerances.full_curve_norm,
             report);

  at::NoGradGuard no_grad;
  double worst = 0;
  for (const auto& [name, norm] : c.golden["train_full"]["weight_norm_after"].items()) {
    worst = std::max(worst, RelativeTo(Norm(weights.at(name)), norm));
  }
  report.Check("train_full.weight_norm_after", worst, setting.tolerances.full_curve_norm);
  std::vector<int64_t> last_rows;
  for (const auto& [begin, end] : batch.documents) last_rows.push_back(end - 1);
  const Tensor last_logits = Logits(*model, batch).to(at::kCPU).index_select(0, at::tensor(last_rows, at::kLong));
  report.Check("full.logits_final_last_token", MaxAbsDiff(last_logits, c.tensors.at("full.logits_final_last_token")),
               setting.tolerances.logits_after_full);
  return absl::OkStatus();
}

absl::Status CheckMerge(const Case& c, const NamedTensors& base, const Adapter& final_adapter, Report& report) {
  at::NoGradGuard no_grad;
  LUTHIER_ASSIGN_OR_RETURN(const MergedModel merged, MergeAdapter(c.config, base, final_adapter));
  double worst = 0, worst_norm = 0;
  for (const json& name : c.golden["merge"]["stored"]) {
    worst = std::max(
        worst, MaxAbsDiff(merged.weights.at(name), c.tensors.at(absl::StrCat("merged.", name.get<std::string>()))));
  }
  for (const auto& [name, norm] : c.golden["merge"]["changed"].items()) {
    worst_norm = std::max(worst_norm, RelativeTo(Norm(merged.weights.at(name)), norm));
  }
  report.Check("merge.tensors", worst, setting.tolerances.merged);
  report.Check("merge.norms", worst_norm, setting.tolerances.merged);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeMergedModel(c.config, merged));
  model->Configure(setting.compute);
  const PackedBatch batch = MainBatch(c);
  const double loss = SumLoss(*model, batch).item<double>() / static_cast<double>(batch.trained_tokens());
  report.Check("merge.batch_loss", std::abs(loss - c.golden["merge"]["batch_loss"].get<double>()),
               setting.tolerances.loss);
  report.Check("merge.logits", MaxAbsDiff(Logits(*model, batch), c.tensors.at("lora.logits_final")),
               setting.tolerances.logits);
  return absl::OkStatus();
}

absl::Status CheckLora(const Case& c, Report& report) {
  LUTHIER_ASSIGN_OR_RETURN(NamedTensors weights,
                           LoadWeights(c.folder + "/base", c.config, at::kFloat, WeightUse::kFrozen));
  LUTHIER_ASSIGN_OR_RETURN(Adapter adapter, ReadAdapter(c.folder + "/adapter_init", c.config, &weights));
  LUTHIER_ASSIGN_OR_RETURN(Adapter final_adapter, ReadAdapter(c.folder + "/adapter_final", c.config, &weights));
  adapter.config.dropout = final_adapter.config.dropout = 0;  // as with the base's
  for (NamedTensors* tensors : {&weights, &adapter.tensors, &final_adapter.tensors}) MoveTo(setting.device, *tensors);
  LUTHIER_ASSIGN_OR_RETURN(const auto model, MakeTunedModel(c.config, weights, {&adapter}));
  LUTHIER_ASSIGN_OR_RETURN(const auto final_model, MakeTunedModel(c.config, weights, {&final_adapter}));
  model->Configure(setting.compute);
  final_model->Configure(setting.compute);
  const PackedBatch batch = MainBatch(c);
  {
    at::NoGradGuard no_grad;
    report.Check("lora.logits_init", MaxAbsDiff(Logits(*model, batch), c.tensors.at("lora.logits_init")),
                 setting.tolerances.logits);
    report.Check("lora.logits_final", MaxAbsDiff(Logits(*final_model, batch), c.tensors.at("lora.logits_final")),
                 setting.tolerances.logits);
  }
  RequireGradients(adapter.tensors);
  const double loss = MeanLossAndGradient(*model, batch);
  report.Check("lora.loss", std::abs(loss - c.golden["lora"]["loss"].get<double>()), setting.tolerances.loss);
  report.Check("lora.global_grad_norm",
               RelativeTo(GlobalGradientNorm(adapter.tensors), c.golden["lora"]["global_grad_norm"]),
               setting.tolerances.gradient);
  CheckGradients("lora.grad", adapter.tensors, c.tensors, "lora.grad.", json::object(), setting.tolerances.gradient,
                 report);
  CheckAccumulation("lora", c, *model, adapter.tensors, report);
  CheckPacked("lora", c, *model, adapter.tensors, report);
  CheckCurve("lora", c, *model, adapter.tensors, setting.tolerances.lora_curve_loss, setting.tolerances.lora_curve_norm,
             report);

  at::NoGradGuard no_grad;
  report.Check("train_lora.logits_after", MaxAbsDiff(Logits(*model, batch), c.tensors.at("lora.logits_final")),
               setting.tolerances.logits_after_lora);
  double worst = 0;
  for (const auto& [name, tensor] : final_adapter.tensors)
    worst = std::max(worst, RelativeNorm(adapter.tensors.at(name), tensor.to(at::kCPU)));
  report.Check("train_lora.adapter_after", worst, setting.tolerances.trained_adapter);
  return CheckMerge(c, weights, final_adapter, report);
}

bool CheckCase(const std::string& folder) {
  absl::StatusOr<Case> opened = OpenCase(folder);
  Report report(opened.ok() ? opened->name : folder);
  if (!opened.ok()) {
    report.Fail("open", opened.status().message());
    return false;
  }
  if (absl::Status status = CheckFull(*opened, report); !status.ok()) report.Fail("full", status.message());
  if (absl::Status status = CheckLora(*opened, report); !status.ok()) report.Fail("lora", status.message());
  return report.all_ok();
}

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
    if (!ok.ok()) Report(folder).Fail("open", std::string(ok.status().message()));
    all_ok = all_ok && ok.ok() && *ok;
  }
  return all_ok;
}

int Main(int argc, char** argv) {
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
  if (device == "cuda") {
    const absl::StatusOr<at::Device> gpu = DeviceOfRank(0);
    if (!gpu.ok() || gpu->is_cpu()) {
      std::cerr << "error: --device cuda: " << (gpu.ok() ? "there is no GPU" : gpu.status().message()) << "\n";
      return 1;
    }
    setting.device = *gpu;
  }
  if (dtype == "bf16") {
    setting.compute.type = at::kBFloat16;
    setting.tolerances = kBf16;
  }
  std::optional<ops::WithoutKernels> without_kernels;
  if (composed) without_kernels.emplace();
  return CheckEach(folders, [](const std::string& folder) -> absl::StatusOr<bool> { return CheckCase(folder); }) ? 0
                                                                                                                 : 1;
}

}  // namespace
}  // namespace luthier

int main(int argc, char** argv) { return luthier::Main(argc, argv); }
