// Shape suffix S: the ranks of all adapters one after the other.
#include "worker/trainer/ops/lora_linear.h"

#include "worker/trainer/ops/dropout.h"
#include "worker/trainer/ops/linear.h"

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Which layers have an adapter, and of those the rank and the scale.
struct Adapters {
  std::vector<int64_t> layers, ranks;
  std::vector<double> scales;

  // The part of each adapter.
  variable_list Split(const Tensor& of_all, int64_t dim) const { return of_all.split_with_sizes(ranks, dim); }
};

Tensor Joined(const variable_list& parts, int64_t dim) { return parts.size() == 1 ? parts[0] : at::cat(parts, dim); }

// Scale and A of all adapters.
Tensor Scaled(at::TensorList a_RI, const std::vector<double>& scales) {
  variable_list scaled_RI;
  for (size_t i = 0; i < a_RI.size(); ++i) scaled_RI.push_back(a_RI[i] * scales[i]);
  return Joined(scaled_RI, 0);
}

// Where x is bf16 the adapters' products are computed as the base's are, and their fp32 weights are rounded for them,
// as under PEFT's autocast; the gradients of these weights are fp32 again.
struct LoraLinearsFunction : Function<LoraLinearsFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& x_TI, at::TensorList weights_OI,
                               at::TensorList a_RI, at::TensorList b_OR, const std::vector<int64_t>& adapted,
                               const std::vector<double>& scales, double dropout) {
    Adapters adapters = {adapted, {}, scales};
    for (const Tensor& a : a_RI) adapters.ranks.push_back(a.size(0));
    const int64_t seed = dropout > 0 ? DrawMaskSeed() : 0;
    const Tensor down_TS = TimesTransposed(Dropped(x_TI, seed, dropout), Scaled(a_RI, scales), x_TI.scalar_type());
    variable_list saved = {x_TI, down_TS};
    for (const at::TensorList of_layers : {weights_OI, a_RI, b_OR})
      saved.insert(saved.end(), of_layers.begin(), of_layers.end());
    Save(context, adapters, dropout, seed, saved);

    const variable_list downs_TR = adapters.Split(down_TS, 1);
    std::vector<std::vector<Addend>> of_adapters(weights_OI.size());
    for (size_t i = 0; i < adapted.size(); ++i) of_adapters[static_cast<size_t>(adapted[i])] = {{downs_TR[i], b_OR[i]}};
    variable_list y_TO;
    for (size_t layer = 0; layer < weights_OI.size(); ++layer)
      y_TO.push_back(TimesTransposed(x_TI, weights_OI[layer], x_TI.scalar_type(), of_adapters[layer]));
    return y_TO;
  }

  static variable_list backward(AutogradContext* context, variable_list dy_TO) {
    const variable_list saved = context->get_saved_variables();
    const Adapters adapters = Saved(context);
    const Tensor &x_TI = saved[0], &down_TS = saved[1];
    const at::TensorList weights_OI = at::TensorList(saved).slice(2, dy_TO.size()),
                         a_RI = at::TensorList(saved).slice(2 + dy_TO.size(), adapters.layers.size()),
                         b_OR = at::TensorList(saved).slice(2 + dy_TO.size() + adapters.layers.size());
    const double dropout = context->saved_data["dropout"].toDouble();
    const int64_t seed = context->saved_data["seed"].toInt();
    const auto type = x_TI.scalar_type();

    const variable_list downs_TR = adapters.Split(down_TS, 1);
    variable_list ddowns_TR, db_OR;
    for (size_t i = 0; i < adapters.layers.size(); ++i) {
      const Tensor& dy = dy_TO[static_cast<size_t>(adapters.layers[i])];
      ddowns_TR.push_back(Times(dy, b_OR[i], type));
      db_OR.push_back(WeightGradient(dy, downs_TR[i], at::kFloat));
    }
    const Tensor ddown_TS = Joined(ddowns_TR, 1);
    variable_list da_RI = adapters.Split(WeightGradient(ddown_TS, Dropped(x_TI, seed, dropout), at::kFloat), 0);
    for (size_t i = 0; i < da_RI.size(); ++i) da_RI[i].mul_(adapters.scales[i]);

    variable_list gradients(1 + dy_TO.size());
    if (context->needs_input_grad(0)) {
      const Addend of_adapters = {ddown_TS, Scaled(a_RI, adapters.scales)};
      std::vector<Addend> others;
      for (size_t layer = 1; layer < dy_TO.size(); ++layer) others.push_back({dy_TO[layer], weights_OI[layer]});
      if (dropout == 0) others.push_back(of_adapters);
      gradients[0] = Times(dy_TO[0], weights_OI[0], type, others);
      if (dropout > 0) gradients[0].add_(Dropped(Times(of_adapters.left, of_adapters.right, type), seed, dropout));
    }
    gradients.insert(gradients.end(), da_RI.begin(), da_RI.end());
    gradients.insert(gradients.end(), db_OR.begin(), db_OR.end());
    gradients.resize(gradients.size() + 3);  // what is no tensor
    return gradients;
  }

 private:
  static void Save(AutogradContext* context, const Adapters& adapters, double dropout, int64_t seed,
                   const variable_list& tensors) {
    context->save_for_backward(tensors);
    context->saved_data["layers"] = adapters.layers;
    context->saved_data["ranks"] = adapters.ranks;
    context->saved_data["scales"] = adapters.scales;
    context->saved_data["dropout"] = dropout;
    context->saved_data["seed"] = seed;
  }

  static Adapters Saved(AutogradContext* context) {
    return {context->saved_data["layers"].toIntVector(), context->saved_data["ranks"].toIntVector(),
            context->saved_data["scales"].toDoubleVector()};
  }
};

}  // namespace

std::vector<Tensor> LoraLinears(const Tensor& x_TI, const std::vector<LoraLayer>& layers, double dropout) {
  variable_list weights_OI, a_RI, b_OR;
  std::vector<int64_t> adapted;
  std::vector<double> scales;
  for (const LoraLayer& layer : layers) {
    if (layer.a_RI.defined()) {
      adapted.push_back(static_cast<int64_t>(weights_OI.size()));
      a_RI.push_back(layer.a_RI);
      b_OR.push_back(layer.b_OR);
      scales.push_back(layer.scale);
    }
    weights_OI.push_back(layer.weight_OI);
  }
  return LoraLinearsFunction::apply(x_TI, at::TensorList(weights_OI), at::TensorList(a_RI), at::TensorList(b_OR),
                                    adapted, scales, dropout);
}

}  // namespace luthier::ops
