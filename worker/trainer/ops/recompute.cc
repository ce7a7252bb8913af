#include "worker/trainer/ops/recompute.h"

#include <ATen/CPUGeneratorImpl.h>

#include <utility>

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using LayerFunction = std::function<Tensor(const Tensor&)>;

// Carries the function from one pass to the other.
struct Capsule : torch::CustomClassHolder {
  explicit Capsule(LayerFunction f) : function(std::move(f)) {}
  LayerFunction function;
};

// f(x) with gradients recorded from `x` on. Both passes call it this way, since what acts in training only (dropout)
// asks whether gradients are recorded.
Tensor Record(const LayerFunction& f, const Tensor& x) {
  at::AutoGradMode record(true);
  return f(x);
}

struct RecomputedFunction : Function<RecomputedFunction> {
  // `anchor` needs a gradient, so that the backward pass comes here even if `x` needs none.
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& /*anchor*/, const LayerFunction& f) {
    context->save_for_backward({x});
    context->saved_data["function"] = at::IValue::make_capsule(c10::make_intrusive<Capsule>(f));
    context->saved_data["generator"] = at::detail::getDefaultCPUGenerator().get_state();
    return Record(f, x.detach()).detach();
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const Tensor saved = context->get_saved_variables()[0];
    const Tensor x = saved.detach().set_requires_grad(saved.requires_grad());
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    const Tensor now = generator.get_state();
    generator.set_state(context->saved_data["generator"].toTensor());
    const auto capsule = context->saved_data["function"].toCapsule();
    const Tensor y = Record(static_cast<const Capsule&>(*capsule).function, x);
    generator.set_state(now);
    if (y.requires_grad()) torch::autograd::backward({y}, {grads[0]});
    return {x.grad(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor Recomputed(const LayerFunction& f, const Tensor& x) {
  if (!at::GradMode::is_enabled()) return f(x);
  const Tensor anchor = at::empty({0}, x.options().dtype(at::kFloat)).set_requires_grad(true);
  return RecomputedFunction::apply(x, anchor, f);
}

}  // namespace luthier::ops
