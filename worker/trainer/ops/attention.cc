#include "worker/trainer/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace luthier::ops {
namespace {

// Documents whose lengths differ by less than this share one attention call, the shorter ones padded on the right.
constexpr double kMaxPadding = 1.25;

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

// True where query and key of a document may meet, [L, L].
Tensor VisibleKeys(int64_t length, int64_t window, at::Device device) {
  const Tensor visible_LL = at::ones({length, length}, at::TensorOptions(at::kBool).device(device)).tril();
  return window > 0 && window < length ? visible_LL.triu(1 - window) : visible_LL;
}

// The formula as it stands: softmax(cap(scale · q·kᵀ), masked) · v. SDPA has no soft-cap.
Tensor CappedAttention(const Tensor& q_BNLH, const Tensor& k_BNSH, const Tensor& v_BNSH, const Tensor& visible, const AttentionForm& form) {
  const Tensor scores_BNLS = at::matmul(q_BNLH, k_BNSH.transpose(2, 3)).to(at::kFloat) * form.scale;
  const Tensor capped_BNLS = at::tanh(scores_BNLS / form.softcap) * form.softcap;
  Tensor weights_BNLS = capped_BNLS.masked_fill(visible.logical_not(), -INFINITY).softmax(-1).to(v_BNSH.scalar_type());
  if (form.dropout > 0 && at::GradMode::is_enabled()) weights_BNLS = at::dropout(weights_BNLS, form.dropout, /*train=*/true);
  return at::matmul(weights_BNLS, v_BNSH);
}

// Attention of documents of one length.
Tensor CausalAttention(const Tensor& q_BNLH, const Tensor& k_BNLH, const Tensor& v_BNLH, const AttentionForm& form) {
  const int64_t length = q_BNLH.size(2);
  if (form.softcap > 0) return CappedAttention(q_BNLH, k_BNLH, v_BNLH, VisibleKeys(length, form.window, q_BNLH.device()), form);
  const double dropout = at::GradMode::is_enabled() ? form.dropout : 0;
  if (form.window == 0 || form.window >= length) {
    return at::scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, /*attn_mask=*/{}, dropout, /*is_causal=*/true, form.scale);
  }
  return at::scaled_dot_product_attention(q_BNLH, k_BNLH, v_BNLH, VisibleKeys(length, form.window, q_BNLH.device()), dropout,
                                          /*is_causal=*/false, form.scale);
}

}  // namespace

Tensor PackedAttention(const Tensor& q_TNH, const Tensor& k_TKH, const Tensor& v_TKH, const Documents& documents,
                       const AttentionForm& form) {
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
    const Tensor out_BNLH = CausalAttention(gather(q_TNH, heads), RepeatHeads(gather(k_TKH, kv_heads), heads / kv_heads),
                                            RepeatHeads(gather(v_TKH, kv_heads), heads / kv_heads), form);
    auto [padded, real] = RealRows(group, documents);
    outputs.push_back(out_BNLH.transpose(1, 2).reshape({batch * group.longest, heads, head_dim}).index_select(0, padded.to(q_TNH.device())));
    output_rows.push_back(real.to(q_TNH.device()));
  }
  // Back to token order: position i of `order` says where token i went.
  const Tensor order = at::argsort(at::cat(output_rows));
  return at::cat(outputs).index_select(0, order);
}

Tensor CachedAttention(const Tensor& q_BNH, const Tensor& keys_BKSH, const Tensor& values_BKSH, const Tensor& positions_B,
                       const AttentionForm& form) {
  at::NoGradGuard no_grad;
  const int64_t used = positions_B.max().item<int64_t>() + 1;
  const Tensor slots_S = at::arange(used, positions_B.options());
  const Tensor last_B1 = positions_B.unsqueeze(1);
  Tensor visible_BS = slots_S <= last_B1;
  if (form.window > 0) visible_BS = visible_BS.logical_and(slots_S > last_B1 - form.window);
  const Tensor visible_B11S = visible_BS.unsqueeze(1).unsqueeze(1);
  const int64_t queries_per_key = q_BNH.size(1) / keys_BKSH.size(1);
  const Tensor keys_BNSH = RepeatHeads(keys_BKSH.slice(2, 0, used), queries_per_key);
  const Tensor values_BNSH = RepeatHeads(values_BKSH.slice(2, 0, used), queries_per_key);
  const Tensor q_BN1H = q_BNH.unsqueeze(2);
  const Tensor out_BN1H = form.softcap > 0 ? CappedAttention(q_BN1H, keys_BNSH, values_BNSH, visible_B11S, form)
                                           : at::scaled_dot_product_attention(q_BN1H, keys_BNSH, values_BNSH, visible_B11S,
                                                                              /*dropout_p=*/0.0, /*is_causal=*/false, form.scale);
  return out_BN1H.squeeze(2);
}

}  // namespace luthier::ops
