// SPDX-License-Identifier: Apache-2.0
#include "eviction/query_form.h"

#include "base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "eviction/query_form.cc"
#include <hwy/foreach_target.h>
// Highway's own header comes after foreach_target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Rows of the form whose products with a vector of keys are summed side by side, so that no
// multiply-add waits for the one before it.
inline constexpr std::int64_t kRows = 4;

// values[0, lanes) for a vector of keys.
template <class D>
HWY_INLINE void EvaluateLanes(D d, const float* linear, const float* quadratic, std::int64_t dim,
                              const float* keys, std::int64_t stride, float* values) {
  auto total = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + kRows <= dim; i += kRows) {
    const float* row = quadratic + i * dim;
    auto a = hn::Set(d, linear[i]);
    auto b = hn::Set(d, linear[i + 1]);
    auto c = hn::Set(d, linear[i + 2]);
    auto e = hn::Set(d, linear[i + 3]);
    for (std::int64_t j = 0; j < dim; ++j) {
      const auto key = hn::LoadU(d, keys + j * stride);
      a = hn::MulAdd(hn::Set(d, row[j]), key, a);
      b = hn::MulAdd(hn::Set(d, row[dim + j]), key, b);
      c = hn::MulAdd(hn::Set(d, row[2 * dim + j]), key, c);
      e = hn::MulAdd(hn::Set(d, row[3 * dim + j]), key, e);
    }
    total = hn::MulAdd(a, hn::LoadU(d, keys + i * stride), total);
    total = hn::MulAdd(b, hn::LoadU(d, keys + (i + 1) * stride), total);
    total = hn::MulAdd(c, hn::LoadU(d, keys + (i + 2) * stride), total);
    total = hn::MulAdd(e, hn::LoadU(d, keys + (i + 3) * stride), total);
  }
  for (; i < dim; ++i) {
    auto a = hn::Set(d, linear[i]);
    for (std::int64_t j = 0; j < dim; ++j)
      a = hn::MulAdd(hn::Set(d, quadratic[i * dim + j]), hn::LoadU(d, keys + j * stride), a);
    total = hn::MulAdd(a, hn::LoadU(d, keys + i * stride), total);
  }
  hn::StoreU(total, d, values);
}

void EvaluateKeys(const float* linear, const float* quadratic, std::int64_t dim, const float* keys,
                  std::int64_t count, float* values) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 8> eight;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  const auto eight_lanes = static_cast<std::int64_t>(hn::Lanes(eight));
  std::int64_t t = 0;
  for (; t + lanes <= count; t += lanes)
    EvaluateLanes(full, linear, quadratic, dim, keys + t, count, values + t);
  for (; t + eight_lanes <= count; t += eight_lanes)
    EvaluateLanes(eight, linear, quadratic, dim, keys + t, count, values + t);
  for (; t < count; ++t) EvaluateLanes(one, linear, quadratic, dim, keys + t, count, values + t);
}

// products[kRows, dim] = the sums over rows r of row_r[i + n] * row_r, for n in [0, kRows).
template <class D>
HWY_INLINE void SumProducts(D d, const float* rows, std::int64_t count, std::int64_t dim,
                            std::int64_t i, std::int64_t j, float* products) {
  auto a = hn::Zero(d);
  auto b = hn::Zero(d);
  auto c = hn::Zero(d);
  auto e = hn::Zero(d);
  for (std::int64_t r = 0; r < count; ++r) {
    const float* row = rows + r * dim;
    const auto other = hn::LoadU(d, row + j);
    a = hn::MulAdd(hn::Set(d, row[i]), other, a);
    b = hn::MulAdd(hn::Set(d, row[i + 1]), other, b);
    c = hn::MulAdd(hn::Set(d, row[i + 2]), other, c);
    e = hn::MulAdd(hn::Set(d, row[i + 3]), other, e);
  }
  hn::StoreU(a, d, products + j);
  hn::StoreU(b, d, products + dim + j);
  hn::StoreU(c, d, products + 2 * dim + j);
  hn::StoreU(e, d, products + 3 * dim + j);
}

void AddProducts(const float* rows, std::int64_t count, std::int64_t dim, float* scratch,
                 double* sums) {
  const hn::ScalableTag<float> full;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(full));
  std::int64_t i = 0;
  for (; i + kRows <= dim; i += kRows) {
    std::int64_t j = 0;
    for (; j + lanes <= dim; j += lanes) SumProducts(full, rows, count, dim, i, j, scratch);
    for (; j < dim; ++j) SumProducts(one, rows, count, dim, i, j, scratch);
    for (j = 0; j < kRows * dim; ++j) sums[i * dim + j] += static_cast<double>(scratch[j]);
  }
  for (; i < dim; ++i) {
    for (std::int64_t j = 0; j < dim; ++j) {
      for (std::int64_t r = 0; r < count; ++r)
        sums[i * dim + j] +=
            static_cast<double>(rows[r * dim + i]) * static_cast<double>(rows[r * dim + j]);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {

HWY_EXPORT(EvaluateKeys);
HWY_EXPORT(AddProducts);

void EvaluateForm(const QueryForm& form, std::span<const float> keys, std::span<float> values) {
  const std::size_t dim = form.linear.size();
  CAROUSEL_CHECK_EQ(form.quadratic.size(), dim * dim);
  CAROUSEL_CHECK_EQ(keys.size(), dim * values.size());
  HWY_DYNAMIC_DISPATCH(EvaluateKeys)
  (form.linear.data(), form.quadratic.data(), static_cast<std::int64_t>(dim), keys.data(),
   static_cast<std::int64_t>(values.size()), values.data());
}

void AddOuterProducts(std::span<const float> rows, std::size_t dim, std::span<double> sums) {
  CAROUSEL_CHECK_EQ(sums.size(), dim * dim);
  CAROUSEL_CHECK_EQ(rows.size() % dim, 0U);
  thread_local std::vector<float> scratch;
  scratch.resize(4 * dim);
  HWY_DYNAMIC_DISPATCH(AddProducts)
  (rows.data(), static_cast<std::int64_t>(rows.size() / dim), static_cast<std::int64_t>(dim),
   scratch.data(), sums.data());
}

void EvaluateFormReference(const QueryForm& form, std::span<const float> keys,
                           std::span<double> values) {
  const std::size_t dim = form.linear.size();
  const std::size_t count = values.size();
  for (std::size_t t = 0; t < count; ++t) {
    values[t] = 0.0;
    for (std::size_t i = 0; i < dim; ++i) {
      auto row = static_cast<double>(form.linear[i]);
      for (std::size_t j = 0; j < dim; ++j)
        row += static_cast<double>(form.quadratic[i * dim + j]) *
               static_cast<double>(keys[j * count + t]);
      values[t] += row * static_cast<double>(keys[i * count + t]);
    }
  }
}

}  // namespace carousel
#endif
