// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "cache/block_codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cache/half.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

void FloatToHalf(const float* from, std::uint16_t* to, std::int64_t count) {
  const hn::ScalableTag<float> f32;
  const hn::Rebind<hwy::float16_t, decltype(f32)> f16;
  auto* half = reinterpret_cast<hwy::float16_t*>(to);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(f32));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::DemoteTo(f16, hn::LoadU(f32, from + i)), f16, half + i);
  }
  const hn::CappedTag<float, 1> one_f32;
  const hn::Rebind<hwy::float16_t, decltype(one_f32)> one_f16;
  for (; i < count; ++i) {
    hn::StoreU(hn::DemoteTo(one_f16, hn::LoadU(one_f32, from + i)), one_f16, half + i);
  }
}

void HalfToFloat(const std::uint16_t* from, float* to, std::int64_t count) {
  const hn::ScalableTag<float> f32;
  const hn::Rebind<hwy::float16_t, decltype(f32)> f16;
  const auto* half = reinterpret_cast<const hwy::float16_t*>(from);
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(f32));
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::PromoteTo(f32, hn::LoadU(f16, half + i)), f32, to + i);
  }
  const hn::CappedTag<float, 1> one_f32;
  const hn::Rebind<hwy::float16_t, decltype(one_f32)> one_f16;
  for (; i < count; ++i) {
    hn::StoreU(hn::PromoteTo(one_f32, hn::LoadU(one_f16, half + i)), one_f32, to + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace carousel {
HWY_EXPORT(FloatToHalf);
HWY_EXPORT(HalfToFloat);

void FloatToHalf(const float* from, std::uint16_t* to, std::int64_t count) noexcept {
  HWY_DYNAMIC_DISPATCH(FloatToHalf)(from, to, count);
}
void HalfToFloat(const std::uint16_t* from, float* to, std::int64_t count) noexcept {
  HWY_DYNAMIC_DISPATCH(HalfToFloat)(from, to, count);
}
}  // namespace carousel
#endif
