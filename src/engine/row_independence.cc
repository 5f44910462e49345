// SPDX-License-Identifier: Apache-2.0
#include "engine/row_independence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "carousel/error.h"
#include "rope/rope_probe.h"

namespace carousel {
namespace {

// What a pass computed for one row: queries, keys and values layer by layer, then logits.
using RowResult = std::vector<float>;

// Attention of tokens whose context is themselves: each gets its own value.
class RowRecorder final : public AttentionCallback {
 public:
  RowRecorder(const ModelSpec& spec, std::int64_t rows)
      : spec_(spec), results_(static_cast<std::size_t>(rows)) {}

  void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k, const float* v,
              float* out) override {
    CAROUSEL_CHECK_GE(rows, std::ssize(results_));
    const AttentionLayerSpec& spec = spec_.layers.at(static_cast<std::size_t>(layer));
    for (RowResult& result : results_) {
      Record(&q, spec.query_heads * spec.key_dim, &result);
      Record(&k, spec.kv_heads * spec.key_dim, &result);
      const float* const values = v;
      Record(&v, spec.kv_heads * spec.value_dim, &result);
      for (std::int64_t head = 0; head < spec.query_heads; ++head) {
        const std::int64_t kv_head = head / (spec.query_heads / spec.kv_heads);
        out = std::copy_n(values + kv_head * spec.value_dim, spec.value_dim, out);
      }
    }
  }

  // `logits` [rows, vocabulary_size] are the pass's.
  std::vector<RowResult> Finish(std::span<const float> logits) {
    const float* row = logits.data();
    CAROUSEL_CHECK_EQ(std::ssize(logits), std::ssize(results_) * spec_.vocabulary_size);
    for (RowResult& result : results_) Record(&row, spec_.vocabulary_size, &result);
    return std::move(results_);
  }

 private:
  // The row's `count` numbers; `*from` is the next row's then.
  static void Record(const float** from, std::int64_t count, RowResult* result) {
    result->insert(result->end(), *from, *from + count);
    *from += count;
  }

  const ModelSpec& spec_;
  std::vector<RowResult> results_;  // [rows]
};

// `tokens`, of [0, kInvariantRows), in the order of their rows. Each stands at a place of its own.
std::vector<RowResult> RunRows(Model& model, const std::vector<std::int64_t>& tokens) {
  const ModelSpec& spec = model.spec();
  const std::int64_t window = spec.trained_window > 0 ? spec.trained_window : kUnknownTrainedWindow;
  std::vector<TokenId> ids;
  std::vector<std::int64_t> positions;
  std::vector<std::int64_t> rows;
  std::vector<RowRange> sequences;
  for (const std::int64_t token : tokens) {
    ids.push_back(static_cast<TokenId>(token * spec.vocabulary_size / kInvariantRows));
    positions.push_back(token * window / kInvariantRows);
    rows.push_back(std::ssize(rows));
    sequences.push_back({.first_row = rows.back(), .rows = 1});
  }
  RowRecorder recorder(spec, std::ssize(tokens));
  const std::span<const float> logits = model.Forward({.token_ids = ids,
                                                       .position_ids = positions,
                                                       .logit_rows = rows,
                                                       .sequences = sequences,
                                                       .least_rows = kInvariantRows},
                                                      recorder);
  return recorder.Finish(logits);
}

// The layer that number `index` of a RowResult is of.
std::string PlaceOf(const ModelSpec& spec, std::int64_t index) {
  for (const AttentionLayerSpec& layer : spec.layers) {
    index -= (layer.query_heads + layer.kv_heads) * layer.key_dim;
    index -= layer.kv_heads * layer.value_dim;
    if (index < 0) return fmt::format("at {}", layer.name);
  }
  return "in its logits";
}

void RequireSame(const ModelSpec& spec, const RowResult& expected, const RowResult& found) {
  CAROUSEL_CHECK_EQ(expected.size(), found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (std::memcmp(&expected[i], &found[i], sizeof(float)) == 0) continue;
    throw Error(ErrorCode::kInvalidArgument, "batch_invariant",
                fmt::format("cannot be had: {} this model, as it is computed here, gives a token "
                            "{} or {}, by the rows beside it; turn it off, or compute in another "
                            "precision",
                            PlaceOf(spec, static_cast<std::int64_t>(i)), expected[i], found[i]));
  }
}

}  // namespace

void RequireIndependentRows(Model& model) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(kInvariantRows));
  for (std::int64_t i = 0; i < kInvariantRows; ++i) tokens[static_cast<std::size_t>(i)] = i;
  const std::vector<RowResult> expected = RunRows(model, tokens);
  std::reverse(tokens.begin(), tokens.end());
  for (const std::vector<std::int64_t>& others : {tokens, {3, 0}, {2}}) {
    const std::vector<RowResult> found = RunRows(model, others);
    for (std::size_t row = 0; row < others.size(); ++row)
      RequireSame(model.spec(), expected[static_cast<std::size_t>(others[row])], found[row]);
  }
}

}  // namespace carousel
