#include "worker/trainer/ops/attention.h"

#include <algorithm>
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

}  // namespace

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

}  // namespace luthier::ops
