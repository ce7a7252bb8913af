#include "worker/trainer/ops/ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace luthier::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of logits that exist at a time: 512 × 128k fp32 is 256 MiB, and larger products gain no speed.
constexpr int64_t kHeadChunkRows = 512;

// Documents whose lengths differ by less than this share one attention call, the shorter ones padded on the right.
constexpr double kMaxPadding = 1.25;

struct RmsNormFunction : Function<RmsNormFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TD, const Tensor& weight_D, double eps) {
    const Tensor inverse_rms_T1 = x_TD.to(at::kFloat).square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
    context->save_for_backward({x_TD, weight_D, inverse_rms_T1});
    return x_TD.to(at::kFloat).mul(inverse_rms_T1).to(x_TD.scalar_type()).mul_(weight_D);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor x_TD = saved[0].to(at::kFloat), weight_D = saved[1].to(at::kFloat), inverse_rms_T1 = saved[2];
    const Tensor dy_TD = grads[0].to(at::kFloat);
    const Tensor normed_TD = x_TD * inverse_rms_T1;
    const Tensor dn_TD = dy_TD * weight_D;
    const Tensor dx_TD = (dn_TD - normed_TD * (dn_TD * normed_TD).mean(-1, true)) * inverse_rms_T1;
    Tensor dweight_D;
    if (context->needs_input_grad(1)) dweight_D = (dy_TD * normed_TD).sum(0).to(saved[1].scalar_type());
    return {dx_TD.to(saved[0].scalar_type()), dweight_D, Tensor()};
  }
};

// Rotation by the table's angles; `direction` -1 is the inverse, which is also the transpose.
Tensor Rotate(const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP, double direction) {
  const int64_t pairs = x_TNH.size(-1) / 2;
  const Tensor x = x_TNH.to(at::kFloat);
  const Tensor first = x.slice(-1, 0, pairs), second = x.slice(-1, pairs);
  const Tensor cos = cos_TP.unsqueeze(1), sin = sin_TP.unsqueeze(1);
  Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
  Tensor out_first = out.slice(-1, 0, pairs), out_second = out.slice(-1, pairs);
  at::mul_out(out_first, first, cos).addcmul_(second, sin, -direction);
  at::mul_out(out_second, second, cos).addcmul_(first, sin, direction);
  return out.to(x_TNH.scalar_type());
}

struct RotaryFunction : Function<RotaryFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TNH, const Tensor& cos_TP, const Tensor& sin_TP) {
    context->save_for_backward({cos_TP, sin_TP});
    return Rotate(x_TNH, cos_TP, sin_TP, 1);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {Rotate(grads[0], saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

struct SwiGluFunction : Function<SwiGluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& gate_TF, const Tensor& up_TF) {
    context->save_for_backward({gate_TF, up_TF});
    return at::silu(gate_TF).mul_(up_TF);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor& gate_TF = saved[0];
    const Tensor& up_TF = saved[1];
    const Tensor dup_TF = at::silu(gate_TF).mul_(grads[0]);
    const Tensor dgate_TF = at::silu_backward(grads[0] * up_TF, gate_TF);
    return {dgate_TF, dup_TF};
  }
};

struct LoraLinearFunction : Function<LoraLinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI,
                        const Tensor& b_OR, double scale, double dropout) {
    Tensor keep_TI;  // 0 where dropped, 1/(1-p) elsewhere; undefined without dropout
    if (dropout > 0) keep_TI = at::empty_like(x_TI).bernoulli_(1 - dropout).div_(1 - dropout);
    const Tensor adapter_x_TI = keep_TI.defined() ? x_TI * keep_TI : x_TI;
    const Tensor down_TR = at::linear(adapter_x_TI.to(a_RI.scalar_type()), a_RI);
    context->save_for_backward({x_TI, weight_OI, a_RI, b_OR, down_TR, keep_TI});
    context->saved_data["scale"] = scale;
    Tensor y_TO = at::linear(x_TI, weight_OI);
    if (y_TO.scalar_type() == b_OR.scalar_type()) return y_TO.addmm_(down_TR, b_OR.t(), 1, scale);
    return y_TO.add_(at::linear(down_TR, b_OR).mul_(scale));
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x_TI = saved[0], &weight_OI = saved[1], &a_RI = saved[2], &b_OR = saved[3], &down_TR = saved[4],
                 &keep_TI = saved[5];
    const double scale = context->saved_data["scale"].toDouble();
    const Tensor dy_TO = grads[0].to(b_OR.scalar_type());
    const Tensor ddown_TR = at::mm(dy_TO, b_OR).mul_(scale);
    const Tensor adapter_x_TI = keep_TI.defined() ? x_TI * keep_TI : x_TI;
    const Tensor da_RI = at::mm(ddown_TR.t(), adapter_x_TI.to(a_RI.scalar_type()));
    const Tensor db_OR = at::mm(dy_TO.t(), down_TR).mul_(scale);
    Tensor dx_TI;
    if (context->needs_input_grad(0)) {
      dx_TI = at::mm(grads[0], weight_OI);
      Tensor adapter_dx_TI = at::mm(ddown_TR, a_RI);
      if (keep_TI.defined()) adapter_dx_TI.mul_(keep_TI);
      dx_TI.add_(adapter_dx_TI);
    }
    return {dx_TI, Tensor(), da_RI, db_OR, Tensor(), Tensor()};
  }
};

struct SumCrossEntropyFunction : Function<SumCrossEntropyFunction> {
  // Which inputs need a gradient is an argument: inside forward recording is off and the context cannot tell.
  static Tensor forward(AutogradContext* context, const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T,
                        bool any_gradient, bool head_trains) {
    Tensor dh_TD, dhead_VD;
    if (any_gradient) dh_TD = at::empty_like(h_TD);
    if (head_trains) dhead_VD = at::zeros_like(head_VD);
    Tensor sum = at::zeros({}, h_TD.options().dtype(at::kDouble));
    int64_t begin = 0;
    for (const auto& [h_CD, labels_C] : HeadChunks(h_TD, labels_T)) {
      const Tensor labels_C1 = labels_C.unsqueeze(1);
      Tensor dh_CD = any_gradient ? dh_TD.slice(0, begin, begin + h_CD.size(0)) : Tensor();
      begin += h_CD.size(0);
      Tensor logits_CV = at::linear(h_CD, head_VD).to(at::kFloat);
      const Tensor log_sum_C1 = at::logsumexp(logits_CV, {1}, /*keepdim=*/true);
      sum += (log_sum_C1 - logits_CV.gather(1, labels_C1)).sum(at::kDouble);
      if (!any_gradient) continue;
      logits_CV.sub_(log_sum_C1).exp_();  // now probabilities; minus one at the label they are d(loss)/d(logits)
      logits_CV.scatter_add_(1, labels_C1, at::full_like(log_sum_C1, -1.0));
      const Tensor dlogits_CV = logits_CV.to(h_TD.scalar_type());
      at::mm_out(dh_CD, dlogits_CV, head_VD);
      if (head_trains) dhead_VD.addmm_(dlogits_CV.t(), h_CD);
    }
    context->save_for_backward({dh_TD, dhead_VD});
    return sum.to(at::kFloat);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    Tensor dh_TD, dhead_VD;
    if (saved[0].defined()) dh_TD = saved[0] * grads[0].to(saved[0].scalar_type());
    if (saved[1].defined()) dhead_VD = saved[1] * grads[0].to(saved[1].scalar_type());
    return {dh_TD, dhead_VD, Tensor(), Tensor(), Tensor()};
  }
};

// Documents of similar length, to be attended in one call.
struct LengthGroup {
  std::vector<size_t> documents;
  int64_t longest = 0;
};

std::vector<LengthGroup> GroupByLength(const Documents& documents) {
  std::vector<size_t> order(documents.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto length = [&](size_t i) { return documents[i].second - documents[i].first; };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return length(a) > length(b); });
  std::vector<LengthGroup> groups;
  for (size_t document : order) {
    if (groups.empty() || static_cast<double>(groups.back().longest) > kMaxPadding * static_cast<double>(length(document))) {
      groups.push_back({{}, length(document)});
    }
    groups.back().documents.push_back(document);
  }
  return groups;
}

// Row of each (document, position) of a group: padding repeats the document's first row, whose result is never read.
Tensor PaddedRows(const LengthGroup& group, const Documents& documents) {
  std::vector<int64_t> rows;
  rows.reserve(group.documents.size() * static_cast<size_t>(group.longest));
  for (size_t document : group.documents) {
    const auto [begin, end] = documents[document];
    for (int64_t offset = 0; offset < group.longest; ++offset) rows.push_back(begin + offset < end ? begin + offset : begin);
  }
  return at::tensor(rows, at::kLong);
}

// Positions within the padded group that hold tokens, and the tokens they hold.
std::pair<Tensor, Tensor> RealRows(const LengthGroup& group, const Documents& documents) {
  std::vector<int64_t> padded, rows;
  for (size_t i = 0; i < group.documents.size(); ++i) {
    const auto [begin, end] = documents[group.documents[i]];
    for (int64_t row = begin; row < end; ++row) {
      padded.push_back(static_cast<int64_t>(i) * group.longest + row - begin);
      rows.push_back(row);
    }
  }
  return {at::tensor(padded, at::kLong), at::tensor(rows, at::kLong)};
}

Tensor RepeatHeads(const Tensor& x_BKLH, int64_t queries_per_key) {
  return queries_per_key == 1 ? x_BKLH : x_BKLH.repeat_interleave(queries_per_key, 1);
}

}  // namespace

Tensor RmsNorm(const Tensor& x_TD, const Tensor& weight_D, double eps) { return RmsNormFunction::apply(x_TD, weight_D, eps); }

Tensor Rotary(const Tensor& x_TNH, const RotaryTable& table) {
  return RotaryFunction::apply(x_TNH, table.cos_TP, table.sin_TP);
}

Tensor SwiGlu(const Tensor& gate_TF, const Tensor& up_TF) { return SwiGluFunction::apply(gate_TF, up_TF); }

Tensor LoraLinear(const Tensor& x_TI, const Tensor& weight_OI, const Tensor& a_RI, const Tensor& b_OR, double scale,
                  double dropout) {
  return LoraLinearFunction::apply(x_TI, weight_OI, a_RI, b_OR, scale, dropout);
}

Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents) {
  const int64_t heads = q_TNH.size(1), kv_heads = k_TKH.size(1), head_dim = q_TNH.size(2);
  std::vector<Tensor> outputs;
  std::vector<Tensor> output_rows;
  for (const LengthGroup& group : GroupByLength(documents)) {
    const auto batch = static_cast<int64_t>(group.documents.size());
    const Tensor rows = PaddedRows(group, documents).to(q_TNH.device());
    const auto gather = [&](const Tensor& x, int64_t x_heads) {
      return x.index_select(0, rows).view({batch, group.longest, x_heads, head_dim}).transpose(1, 2);
    };
    // Causal masking alone keeps padding out: padded keys come after every real query of their document.
    const Tensor out_BNLH = at::scaled_dot_product_attention(
        gather(q_TNH, heads), RepeatHeads(gather(k_TKH, kv_heads), heads / kv_heads),
        RepeatHeads(gather(v_TKH, kv_heads), heads / kv_heads), /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true);
    auto [padded, real] = RealRows(group, documents);
    outputs.push_back(out_BNLH.transpose(1, 2).reshape({batch * group.longest, heads, head_dim}).index_select(0, padded.to(q_TNH.device())));
    output_rows.push_back(real.to(q_TNH.device()));
  }
  // Back to token order: position i of `order` says where token i went.
  const Tensor order = at::argsort(at::cat(output_rows));
  return at::cat(outputs).index_select(0, order);
}

std::vector<std::pair<Tensor, Tensor>> HeadChunks(const Tensor& h_TD, const Tensor& labels_T) {
  std::vector<std::pair<Tensor, Tensor>> chunks;
  for (int64_t begin = 0; begin < h_TD.size(0); begin += kHeadChunkRows) {
    const int64_t end = std::min(begin + kHeadChunkRows, h_TD.size(0));
    chunks.emplace_back(h_TD.slice(0, begin, end), labels_T.slice(0, begin, end));
  }
  return chunks;
}

Tensor SumCrossEntropy(const Tensor& h_TD, const Tensor& head_VD, const Tensor& labels_T) {
  const bool head_trains = at::GradMode::is_enabled() && head_VD.requires_grad();
  const bool any_gradient = head_trains || (at::GradMode::is_enabled() && h_TD.requires_grad());
  return SumCrossEntropyFunction::apply(h_TD, head_VD, labels_T, any_gradient, head_trains);
}

}  // namespace luthier::ops
