// SPDX-License-Identifier: Apache-2.0
// Rows of scores on their way from dot products to weights: soft cap, ALiBi, mask, exponential.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_SCORE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_SCORE_ROWS_INL_H_
#undef CAROUSEL_ATTENTION_SCORE_ROWS_INL_H_
#else
#define CAROUSEL_ATTENTION_SCORE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention/exponential-inl.h"
#include "attention/paged_attention.h"
#include "attention/work.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Soft cap, then ALiBi, on a row of one block's scores. `distance` is the query's from the block's
// first token.
inline void AdjustScores(const AttentionLayerSpec& layer, std::int64_t head, std::int64_t distance,
                         std::int64_t tokens, float* scores) {
  if (layer.soft_cap > 0.0F) {
    for (std::int64_t t = 0; t < tokens; ++t) {
      scores[t] = layer.soft_cap * std::tanh(scores[t] / layer.soft_cap);
    }
  }
  if (!layer.alibi_slopes.empty()) {
    const float slope = layer.alibi_slopes[static_cast<std::size_t>(head)];
    for (std::int64_t t = 0; t < tokens; ++t) scores[t] -= slope * static_cast<float>(distance - t);
  }
}

// Hides what a row may not see of one block: slots outside the query's visible range get -infinity.
inline void MaskScores(const AttentionInput& input, const WorkItem& item,
                       const AttentionBlock& block, std::int64_t stride, float* scores) {
  const AttentionLayerSpec& layer = *input.layer;
  const std::int64_t group = GroupOf(layer);
  const bool adjust = layer.soft_cap > 0.0F || !layer.alibi_slopes.empty();
  const std::int64_t block_size = input.block_size;
  for (std::int64_t row = item.first_row; row < item.last_row; ++row) {
    const std::int64_t query = row / group;
    float* row_scores = scores + (row - item.first_row) * stride;
    if (adjust) {
      AdjustScores(layer, (input.first_kv_head + item.kv_head) * group + row % group,
                   (input.first_query_attention + query) - block.attention, block.tokens,
                   row_scores);
    }
    const VisibleSlots visible = SlotsVisibleTo(layer, block, input.first_query_logical + query);
    for (std::int64_t t = 0; t < visible.begin; ++t)
      row_scores[t] = -std::numeric_limits<float>::infinity();
    for (std::int64_t t = visible.end; t < block_size; ++t) {
      row_scores[t] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Raises *largest to the largest of scores[i, columns), as far as whole vectors reach; returns the
// first not seen.
template <class D>
HWY_INLINE std::int64_t LargestOf(D d, const float* scores, std::int64_t i, std::int64_t columns,
                                  float* largest) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest_lanes = hn::Set(d, *largest);
  auto others = largest_lanes;  // so that one maximum need not wait for the one before
  for (; i + 2 * lanes <= columns; i += 2 * lanes) {
    largest_lanes = hn::Max(largest_lanes, hn::LoadU(d, scores + i));
    others = hn::Max(others, hn::LoadU(d, scores + i + lanes));
  }
  largest_lanes = hn::Max(largest_lanes, others);
  for (; i + lanes <= columns; i += lanes) {
    largest_lanes = hn::Max(largest_lanes, hn::LoadU(d, scores + i));
  }
  *largest = hn::GetLane(hn::MaxOfLanes(d, largest_lanes));
  return i;
}

// scores <- exp(scores - largest), likewise, and adds them to *sum.
template <class D>
HWY_INLINE std::int64_t ExponentiateLanes(D d, float largest, float* scores, std::int64_t i,
                                          std::int64_t columns, float* sum) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, -largest * kBinaryDigits);
  auto sums = hn::Zero(d);
  for (; i + lanes <= columns; i += lanes) {
    const auto weight = ExponentialOfDifference(d, hn::LoadU(d, scores + i), shift);
    hn::StoreU(weight, d, scores + i);
    sums = hn::Add(sums, weight);
  }
  *sum += hn::GetLane(hn::SumOfLanes(d, sums));
  return i;
}

// Turns a row of scores into exp(score - largest), in place, and returns the state of the softmax.
// `columns` is a multiple of 8.
inline SoftmaxState Exponentiate(float* scores, std::int64_t columns) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> eight;
  SoftmaxState state;
  std::int64_t i = LargestOf(full, scores, 0, columns, &state.largest);
  LargestOf(eight, scores, i, columns, &state.largest);
  if (state.largest == -std::numeric_limits<float>::infinity()) {  // nothing is visible
    std::memset(scores, 0, static_cast<std::size_t>(columns) * sizeof(float));
    return state;
  }
  i = ExponentiateLanes(full, state.largest, scores, 0, columns, &state.sum);
  ExponentiateLanes(eight, state.largest, scores, i, columns, &state.sum);
  return state;
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
