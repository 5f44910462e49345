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

inline constexpr float kBinaryDigits = 1.44269504F;  // 1 / ln 2

// 2^t for t that is not positive; 0 from t = -127 down and for -infinity. Relative error below 3e-7
// beside that of t; what comes out below 1.2e-38 may be off by as much.
//
// 2^t = 2^n 2^r with n the whole number nearest to t. 2^r on [-1/2, 1/2] is a polynomial of degree
// 5 that is 1 at 0 and else has the least largest relative error (9.1e-8, found by reweighted least
// squares); 2^n is added to the exponent's bits, and 1 with n = -127 is then 0. Added to 1.5 *
// 2^23, a small number is rounded to a whole one that stands in the lowest bits of the sum: two
// instructions in place of a dozen.
template <class D, class V>
HWY_INLINE V PowerOfTwo(D d, V t) {
  const hn::RebindToSigned<D> whole_numbers;
  const auto to_whole = hn::Set(d, 0x1.8p23F);
  const auto clamped = hn::Max(t, hn::Set(d, -127.0F));
  const auto rounded = hn::Add(clamped, to_whole);
  const auto r = hn::Sub(clamped, hn::Sub(rounded, to_whole));
  auto power = hn::MulAdd(hn::Set(d, 0x1.5bba14p-10F), r, hn::Set(d, 0x1.3cea88p-7F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.c6b752p-5F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.ebf9bcp-3F));
  power = hn::MulAdd(power, r, hn::Set(d, 0x1.62e42ap-1F));
  power = hn::MulAdd(power, r, hn::Set(d, 1.0F));
  // What the sum holds above its lowest bits is shifted out.
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(whole_numbers, rounded));
  return hn::BitCast(d, hn::Add(hn::BitCast(whole_numbers, power), exponent));
}

// exp(x - largest), x <= largest, where `shift` is -largest / ln 2: 0 from 88.1 below and for
// -infinity. Relative error below 3e-7 + 7.5e-8 |x - largest|, the power's and that of a difference
// rounded to float32, and 1.2e-7 |largest|, that of the shift, which is the same for all x of a
// row; the latter two are twice as large where the CPU rounds between multiplication and addition.
template <class D, class V>
HWY_INLINE V ExponentialOfDifference(D d, V x, V shift) {
  return PowerOfTwo(d, hn::MulAdd(x, hn::Set(d, kBinaryDigits), shift));
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
