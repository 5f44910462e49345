// SPDX-License-Identifier: Apache-2.0
#include "cache/block_codec.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cache/block_shape.h"

namespace carousel {
namespace {

// IEEE 754 binary16 by the book: the slow twin of HalfToFloat.
float HalfByTheBook(std::uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const int mantissa = half & 1023;
  const double magnitude = exponent == 31
                               ? (mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                                                : std::numeric_limits<double>::infinity())
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return static_cast<float>((half & 0x8000) != 0 ? -magnitude : magnitude);
}

TEST(Half, EveryCodeConvertsOnEveryTarget) {
  std::vector<std::uint16_t> codes(65536);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint16_t>(i);
  std::vector<float> floats(codes.size());
  std::vector<std::uint16_t> back(codes.size());
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    // Highway's emulation below AVX2 truncates and knows no infinities; it runs, but promises no
    // more.
    if (target > HWY_AVX2) continue;
    hwy::SetSupportedTargetsForTest(target);
    HalfToFloat(codes.data(), floats.data(), static_cast<std::int64_t>(codes.size()));
    FloatToHalf(floats.data(), back.data(), static_cast<std::int64_t>(codes.size()));
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const float expected = HalfByTheBook(codes[i]);
      if (std::isnan(expected)) continue;
      ASSERT_EQ(floats[i], expected) << hwy::TargetName(target) << " code " << i;
      ASSERT_EQ(back[i], codes[i]) << hwy::TargetName(target);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(Half, RoundsToNearest) {
  std::mt19937 generator(3);
  std::uniform_real_distribution<float> uniform(-100.0F, 100.0F);
  for (const std::int64_t count : {1, 3, 8, 17, 64, 1001}) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = uniform(generator);
    std::vector<std::uint16_t> halves(values.size());
    FloatToHalf(values.data(), halves.data(), count);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double error =
          std::abs(static_cast<double>(HalfByTheBook(halves[i])) - static_cast<double>(values[i]));
      EXPECT_LE(error, std::abs(static_cast<double>(values[i])) * 0x1.0p-11);
    }
  }
}

class Codec : public testing::TestWithParam<KvType> {};

// What is written token by token, in any order of runs, reads back in the documented layout, and no
// byte outside the plane changes.
TEST_P(Codec, WritesLandInTheirSlots) {
  const BlockCodec& codec = CodecFor(GetParam());
  std::mt19937 generator(5);
  std::uniform_int_distribution<int> small(-64, 64);  // exact in half precision
  for (const std::int64_t block_size : {8, 32}) {
    for (const std::int64_t dim : {1, 16, 65, 80, 130}) {
      const std::size_t bytes = codec.PlaneBytes(block_size, dim);
      std::vector<std::byte> keys(bytes + 16, std::byte{0xAB});
      std::vector<std::byte> values(bytes + 16, std::byte{0xAB});
      const std::int64_t stride = dim + 3;
      std::vector<float> from(static_cast<std::size_t>(block_size * stride));
      for (float& x : from) x = static_cast<float>(small(generator));
      for (std::int64_t slot = 0; slot < block_size;) {
        const std::int64_t run = std::min<std::int64_t>(block_size - slot, 1 + slot % 5);
        codec.WriteKeys(keys.data(), block_size, dim, slot, run, from.data() + slot * stride,
                        stride);
        codec.WriteValues(values.data(), block_size, dim, slot, run, from.data() + slot * stride,
                          stride);
        slot += run;
      }
      std::vector<float> read_keys(static_cast<std::size_t>(block_size * dim));
      std::vector<float> read_values(read_keys.size());
      codec.ReadPlane(keys.data(), block_size, dim, read_keys.data());
      codec.ReadPlane(values.data(), block_size, dim, read_values.data());
      for (std::int64_t t = 0; t < block_size; ++t) {
        for (std::int64_t d = 0; d < dim; ++d) {
          const float expected = from[static_cast<std::size_t>(t * stride + d)];
          ASSERT_EQ(read_keys[static_cast<std::size_t>(d * block_size + t)], expected);
          ASSERT_EQ(read_values[static_cast<std::size_t>(t * dim + d)], expected);
        }
      }
      for (std::size_t i = bytes; i < keys.size(); ++i) {
        ASSERT_EQ(keys[i], std::byte{0xAB});
        ASSERT_EQ(values[i], std::byte{0xAB});
      }
      std::vector<std::byte> again(bytes);
      codec.WritePlane(again.data(), block_size, dim, read_keys.data());
      EXPECT_EQ(std::memcmp(again.data(), keys.data(), bytes), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Codec, testing::Values(KvType::kF32, KvType::kF16));

TEST(BlockShape, PlanesAreAlignedAndDoNotOverlap) {
  const BlockShape shape{.block_size = 8,
                         .kv_heads = 3,
                         .key_dim = 10,
                         .value_dim = 7,
                         .key_type = KvType::kF16,
                         .value_type = KvType::kF32};
  EXPECT_EQ(shape.key_plane_bytes(), 192U);    // 8 * 10 * 2 = 160, rounded up
  EXPECT_EQ(shape.value_plane_bytes(), 256U);  // 8 * 7 * 4 = 224
  EXPECT_EQ(shape.key_offset(2), 384U);
  EXPECT_EQ(shape.value_offset(0), 576U);
  EXPECT_EQ(shape.bytes(), 576U + 3 * 256U);
}

}  // namespace
}  // namespace carousel
