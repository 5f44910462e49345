// SPDX-License-Identifier: Apache-2.0
// The rotation of one vector as Highway code, for every translation unit that wants it inlined into
// a dispatched kernel of its own (rotate.cc and attention). Include it after hwy/foreach_target.h,
// between "hwy/highway.h" and HWY_BEFORE_NAMESPACE(); call
// carousel::HWY_NAMESPACE::RotateVectorInl.

// Included once per target: the guard flips with HWY_TARGET_TOGGLE.
#if defined(CAROUSEL_ROPE_ROTATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ROPE_ROTATE_INL_H_
#undef CAROUSEL_ROPE_ROTATE_INL_H_
#else
#define CAROUSEL_ROPE_ROTATE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "rope/rope_spec.h"
#include "rope/rotation_table.h"

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// (x, y) <- (x cos - y sin, x sin + y cos), lane by lane.
template <class V>
HWY_INLINE void RotatePair(V cos, V sin, V& x, V& y) {
  const V rotated_x = hn::NegMulAdd(y, sin, hn::Mul(x, cos));
  y = hn::MulAdd(x, sin, hn::Mul(y, cos));
  x = rotated_x;
}

// Rotates pairs [pair, pairs) as far as whole vectors of `d` reach; returns the first pair not
// done. Pair i is (from[i], from[i + pairs]).
template <class D>
HWY_INLINE std::size_t RotateHalves(D d, std::size_t pair, std::size_t pairs, const float* cos,
                                    const float* sin, const float* from, float* to) {
  const std::size_t lanes = hn::Lanes(d);
  for (; pair + lanes <= pairs; pair += lanes) {
    auto x = hn::LoadU(d, from + pair);
    auto y = hn::LoadU(d, from + pairs + pair);
    RotatePair(hn::LoadU(d, cos + pair), hn::LoadU(d, sin + pair), x, y);
    hn::StoreU(x, d, to + pair);
    hn::StoreU(y, d, to + pairs + pair);
  }
  return pair;
}

// The same where pair i is (from[2 i], from[2 i + 1]).
template <class D>
HWY_INLINE std::size_t RotateNeighbours(D d, std::size_t pair, std::size_t pairs, const float* cos,
                                        const float* sin, const float* from, float* to) {
  const std::size_t lanes = hn::Lanes(d);
  for (; pair + lanes <= pairs; pair += lanes) {
    hn::Vec<D> x;
    hn::Vec<D> y;
    hn::LoadInterleaved2(d, from + 2 * pair, x, y);
    RotatePair(hn::LoadU(d, cos + pair), hn::LoadU(d, sin + pair), x, y);
    hn::StoreInterleaved2(x, y, d, to + 2 * pair);
  }
  return pair;
}

// As RotateVector in rotate.h. `rope.rotated_dims / 2` pairs of any number: the native width first,
// then four lanes, then one, all by the same code, so that a tail rounds as the rest does.
HWY_INLINE void RotateVectorInl(const LayerRope& rope, const RotationRow& row,
                                std::int64_t head_dim, const float* from, float* to) {
  const std::size_t first = static_cast<std::size_t>(rope.first_dim);
  const std::size_t rotated = static_cast<std::size_t>(rope.rotated_dims);
  const std::size_t end = first + rotated;
  const std::size_t dims = static_cast<std::size_t>(head_dim);
  if (from != to && rotated < dims) {
    if (first > 0) std::memcpy(to, from, first * sizeof(float));
    if (end < dims) std::memcpy(to + end, from + end, (dims - end) * sizeof(float));
  }
  const hn::ScalableTag<float> native;
  const hn::CappedTag<float, 4> four;
  const hn::CappedTag<float, 1> one;
  const std::size_t pairs = rotated / 2;
  const float* cos = row.cos.data();
  const float* sin = row.sin.data();
  from += first;
  to += first;
  if (rope.pairing == Pairing::kHalves) {
    std::size_t pair = RotateHalves(native, 0, pairs, cos, sin, from, to);
    pair = RotateHalves(four, pair, pairs, cos, sin, from, to);
    RotateHalves(one, pair, pairs, cos, sin, from, to);
  } else {
    std::size_t pair = RotateNeighbours(native, 0, pairs, cos, sin, from, to);
    pair = RotateNeighbours(four, pair, pairs, cos, sin, from, to);
    RotateNeighbours(one, pair, pairs, cos, sin, from, to);
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // CAROUSEL_ROPE_ROTATE_INL_H_
