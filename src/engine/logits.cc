// SPDX-License-Identifier: Apache-2.0
#include "engine/logits.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/logits.cc"
#include <hwy/foreach_target.h>
// Highway's own headers come after foreach_target.
#include <hwy/highway.h>

#include "attention/exponential-inl.h"

#ifndef CAROUSEL_ENGINE_LOGITS_CC_
#define CAROUSEL_ENGINE_LOGITS_CC_
namespace carousel {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct BlockFigures {
  float largest = -kInfinity;
  bool has_numbers = true;  // none is NaN or +infinity
};

struct RowFigures {
  float largest = -kInfinity;
  std::int64_t block_of_largest = 0;  // the first, by its first word
  double sum = 0.0;                   // of exp(logit - largest)
  bool has_numbers = true;
};

}  // namespace
}  // namespace carousel
#endif  // CAROUSEL_ENGINE_LOGITS_CC_

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;

// The last `count` values, fewer than a vector holds, behind which nothing may be read.
HWY_INLINE hn::Vec<Floats> LoadRest(Floats d, const float* values, std::int64_t count) {
  HWY_ALIGN float rest[hn::MaxLanes(d)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i)
    rest[i] = static_cast<std::int64_t>(i) < count ? values[i] : -kInfinity;
  return hn::Load(d, rest);
}

BlockFigures ReadBlock(const float* values, std::int64_t count) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto infinity = hn::Set(d, kInfinity);
  auto even = hn::Set(d, -kInfinity);
  auto odd = even;
  auto numbers = hn::Eq(even, even);
  std::int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    const auto a = hn::LoadU(d, values + i);
    const auto b = hn::LoadU(d, values + i + lanes);
    numbers = hn::And(numbers, hn::And(hn::Lt(a, infinity), hn::Lt(b, infinity)));  // false for NaN
    even = hn::Max(even, a);
    odd = hn::Max(odd, b);
  }
  for (; i < count; i += lanes) {
    const auto x =
        i + lanes <= count ? hn::LoadU(d, values + i) : LoadRest(d, values + i, count - i);
    numbers = hn::And(numbers, hn::Lt(x, infinity));
    even = hn::Max(even, x);
  }
  return {.largest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(even, odd))),
          .has_numbers = hn::AllTrue(d, numbers)};
}

// Runs of vectors are added in four sums side by side, and those in double, so that a large
// vocabulary loses nothing. `scale` is 1 / (temperature ln 2).
double SumPowersBelow(const float* values, std::int64_t count, float largest, float scale,
                      float below) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr std::int64_t kRun = 16;  // of four vectors
  const auto top = hn::Set(d, largest);
  const auto factor = hn::Set(d, scale);
  const auto limit = hn::Set(d, below);
  const auto power = [&](hn::Vec<Floats> x) HWY_ATTR {
    return hn::IfThenElseZero(hn::Lt(x, limit), PowerOfTwo(d, hn::Mul(hn::Sub(x, top), factor)));
  };
  double total = 0.0;
  std::int64_t i = 0;
  while (i + 4 * lanes <= count) {
    auto a = hn::Zero(d), b = a, c = a, e = a;
    for (std::int64_t run = 0; run < kRun && i + 4 * lanes <= count; ++run, i += 4 * lanes) {
      a = hn::Add(a, power(hn::LoadU(d, values + i)));
      b = hn::Add(b, power(hn::LoadU(d, values + i + lanes)));
      c = hn::Add(c, power(hn::LoadU(d, values + i + 2 * lanes)));
      e = hn::Add(e, power(hn::LoadU(d, values + i + 3 * lanes)));
    }
    const auto sum = hn::Add(hn::Add(a, b), hn::Add(c, e));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  for (; i < count; i += lanes) {
    const auto x =
        i + lanes <= count ? hn::LoadU(d, values + i) : LoadRest(d, values + i, count - i);
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, power(x))));
  }
  return total;
}

// Each block is read from memory once, and summed against the largest so far while it is near.
RowFigures ReadRow(const float* values, std::int64_t count, float* block_largest) {
  RowFigures row;
  for (std::int64_t begin = 0; begin < count; begin += kLogitsBlock) {
    const std::int64_t size = std::min(kLogitsBlock, count - begin);
    const BlockFigures block = ReadBlock(values + begin, size);
    if (!block.has_numbers) {
      row.has_numbers = false;
      return row;
    }
    if (block_largest != nullptr) block_largest[begin / kLogitsBlock] = block.largest;
    if (block.largest == -kInfinity) continue;
    if (block.largest > row.largest) {
      row.sum *= std::exp(static_cast<double>(row.largest) - static_cast<double>(block.largest));
      row.largest = block.largest;
      row.block_of_largest = begin;
    }
    row.sum += SumPowersBelow(values + begin, size, row.largest, kBinaryDigits, kInfinity);
  }
  return row;
}

std::int64_t FindBetween(const float* values, std::int64_t count, float at_least, float below,
                         std::int32_t* found) {
  const Floats d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto least = hn::Set(d, at_least);
  const auto limit = hn::Set(d, below);
  std::int64_t number = 0;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const std::int64_t end = std::min(i + lanes, count);
    if (i + lanes <= count) {
      const auto x = hn::LoadU(d, values + i);
      if (hn::AllFalse(d, hn::And(hn::Ge(x, least), hn::Lt(x, limit)))) continue;
    }
    for (std::int64_t j = i; j < end; ++j) {
      found[number] = static_cast<std::int32_t>(j);
      if (values[j] >= at_least && values[j] < below) ++number;
    }
  }
  return number;
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {
HWY_EXPORT(ReadBlock);
HWY_EXPORT(ReadRow);
HWY_EXPORT(SumPowersBelow);
HWY_EXPORT(FindBetween);

namespace {

std::int64_t SizeOf(std::span<const float> logits) {
  return static_cast<std::int64_t>(logits.size());
}

double LogSumExpOf(const RowFigures& row) {
  if (!row.has_numbers || row.largest == -kInfinity)
    return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(row.largest) + std::log(row.sum);
}

}  // namespace

void Summarise(std::span<const float> logits, LogitsSummary* summary) {
  summary->block_largest.resize(
      static_cast<std::size_t>((SizeOf(logits) + kLogitsBlock - 1) / kLogitsBlock));
  const RowFigures row =
      HWY_DYNAMIC_DISPATCH(ReadRow)(logits.data(), SizeOf(logits), summary->block_largest.data());
  summary->log_sum_exp = LogSumExpOf(row);
  summary->largest = row.largest;
  const auto first = std::find(logits.begin() + row.block_of_largest, logits.end(), row.largest);
  summary->likeliest = static_cast<TokenId>(first - logits.begin());
}

double LogSumExp(std::span<const float> logits) noexcept {
  return LogSumExpOf(HWY_DYNAMIC_DISPATCH(ReadRow)(logits.data(), SizeOf(logits), nullptr));
}

float Largest(std::span<const float> logits) noexcept {
  return HWY_DYNAMIC_DISPATCH(ReadBlock)(logits.data(), SizeOf(logits)).largest;
}

TokenId ArgMax(std::span<const float> logits) noexcept {
  const auto first = std::find(logits.begin(), logits.end(), Largest(logits));
  return first == logits.end() ? 0 : static_cast<TokenId>(first - logits.begin());
}

double SumExpBelow(std::span<const float> logits, float largest, double temperature,
                   float below) noexcept {
  // A temperature too small for a float's inverse leaves nothing below the largest.
  const double scale = std::min(std::numbers::log2e / temperature,
                                static_cast<double>(std::numeric_limits<float>::max()));
  return HWY_DYNAMIC_DISPATCH(SumPowersBelow)(logits.data(), SizeOf(logits), largest,
                                              static_cast<float>(scale), below);
}

std::int64_t FindLogits(std::span<const float> logits, float at_least, float below,
                        std::int32_t* found) noexcept {
  return HWY_DYNAMIC_DISPATCH(FindBetween)(logits.data(), SizeOf(logits), at_least, below, found);
}

}  // namespace carousel
#endif
