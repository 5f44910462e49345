// SPDX-License-Identifier: Apache-2.0
// exp(x) where x is not positive: what a softmax takes of each score. Two thirds of the
// instructions of a function for any x.
//
// Per-target include guard, as Highway asks of code that is compiled once per instruction set.
#if defined(CAROUSEL_ATTENTION_EXPONENTIAL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CAROUSEL_ATTENTION_EXPONENTIAL_INL_H_
#undef CAROUSEL_ATTENTION_EXPONENTIAL_INL_H_
#else
#define CAROUSEL_ATTENTION_EXPONENTIAL_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// exp(x) for x <= 0; 0 below -87 and for -infinity. Relative error below 3e-7 + 7.5e-8 |x|: the
// polynomial, then x / ln 2 rounded to float32 and 1 / ln 2 before it.
//
// exp(x) = 2^n 2^r with n the whole number nearest to x / ln 2. 2^r on [-1/2, 1/2] is a polynomial
// of degree 5 with the least largest relative error (7.5e-8, found by reweighted least squares);
// 2^n is added to the exponent's bits. Added to 1.5 * 2^23, a small number is rounded to a whole
// one that stands in the lowest bits of the sum: two instructions in place of a dozen.
template <class D, class V>
HWY_INLINE V ExponentialOfNegative(D d, V x) {
  const hn::RebindToSigned<D> whole_numbers;
  const auto t = hn::Mul(x, hn::Set(d, 1.44269504F));
  const auto least = hn::Set(d, -126.0F);
  const auto to_whole = hn::Set(d, 0x1.8p23F);
  const auto clamped = hn::Max(t, least);
  const auto rounded = hn::Add(clamped, to_whole);
  const auto r = hn::Sub(clamped, hn::Sub(rounded, to_whole));
  auto power = hn::MulAdd(hn::Set(d, 0x1.5c08e6p-10F), r, hn::Set(d, 0x1.3d0c52p-7F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.c6b6e4p-5F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.ebf918p-3F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.62e428p-1F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.000002p+0F));
  // What the sum holds above its lowest bits is shifted out.
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(whole_numbers, rounded));
  const auto scaled = hn::BitCast(d, hn::Add(hn::BitCast(whole_numbers, power), exponent));
  return hn::IfThenElseZero(hn::Gt(t, least), scaled);
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
