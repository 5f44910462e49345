// SPDX-License-Identifier: Apache-2.0
#include "cache/block_codec.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
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

TEST(Bfloat16, RoundsToNearestEvenAndKeepsWhatIsNoNumber) {
  // Halfway cases go to the even code; above and below them, to the nearer one.
  const std::vector<float> values = {1.0F,      1.00390625F, 1.01171875F, 1.00390637F,
                                     -2.5e-40F, 3.3e38F,     -0.0F,       65280.0F};
  const std::vector<std::uint16_t> codes = {0x3f80, 0x3f80, 0x3f82, 0x3f81,
                                            0x8003, 0x7f78, 0x8000, 0x477f};
  std::vector<std::uint16_t> written(values.size());
  FloatToBfloat16(values.data(), written.data(), static_cast<std::int64_t>(values.size()));
  EXPECT_EQ(written, codes);
  const std::vector<float> odd = {std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> back(2);
  FloatToBfloat16(odd.data(), written.data(), 2);
  Bfloat16ToFloat(written.data(), back.data(), 2);
  EXPECT_EQ(back[0], odd[0]);
  EXPECT_TRUE(std::isnan(back[1]));
}

// How far a number may be from what is read back, when it shares its scale with `group`.
float Tolerance(KvType type, const std::vector<float>& group) {
  const auto [least, most] = std::minmax_element(group.begin(), group.end());
  const float largest = std::max(std::abs(*least), std::abs(*most));
  switch (type) {
    case KvType::kF32:
      return 0.0F;
    case KvType::kF16:
      return largest * 0x1.0p-11F;
    case KvType::kBf16:
      return largest * 0x1.0p-8F;
    case KvType::kInt8:
      return largest / 127.0F * 0.5001F;
    case KvType::kInt4:  // extremes may be given up for the rest: see ExpectFitted
      return (*most - *least) / 15.0F * 1.5F + largest * 0x1.0p-9F;
  }
  return 0.0F;
}

// The squared error of int4 is no larger than that of sixteen even steps over the group's range.
void ExpectFitted(const std::vector<float>& group, const std::vector<float>& read) {
  const auto [least, most] = std::minmax_element(group.begin(), group.end());
  const float step = (*most - *least) / 15.0F;
  double plain = 0.0;
  double ours = 0.0;
  for (std::size_t i = 0; i < group.size(); ++i) {
    const float code = step > 0.0F ? std::nearbyint((group[i] - *least) / step) : 0.0F;
    plain += std::pow(*least + step * code - group[i], 2.0);
    ours += std::pow(read[i] - group[i], 2.0);
  }
  const double largest = std::max(std::abs(*least), std::abs(*most));
  // What rounding scale and offset to f16 may cost.
  const double rounding = largest * 0x1.0p-9;
  EXPECT_LE(std::sqrt(ours / static_cast<double>(group.size())),
            std::sqrt(plain / static_cast<double>(group.size())) + rounding);
}

// Random vectors with an outlying channel, written in runs, and read back.
struct Written {
  Written(KvType type, std::int64_t block, std::int64_t width, std::mt19937* generator)
      : block_size(block), dim(width), stride(width + 3) {
    std::normal_distribution<float> normal;
    from.resize(static_cast<std::size_t>(block_size * stride));
    for (float& x : from) x = normal(*generator);
    for (std::int64_t t = 0; t < block_size; ++t)
      from[static_cast<std::size_t>(t * stride)] *= 50.0F;
    keys.assign(KeyPlaneBytes(type, block_size, dim) + 16, std::byte{0xAB});
    values.assign(ValuePlaneBytes(type, block_size, dim) + 16, std::byte{0xAB});
    const BlockCodec& codec = CodecFor(type);
    for (std::int64_t slot = 0; slot < block_size;) {
      const std::int64_t run = std::min<std::int64_t>(block_size - slot, 1 + slot % 5);
      if (!KeysNeedWholeBlocks(type))
        codec.WriteKeys(keys.data(), block_size, dim, slot, run, Row(slot), stride);
      codec.WriteValues(values.data(), block_size, dim, slot, run, Row(slot), stride);
      slot += run;
    }
    if (KeysNeedWholeBlocks(type))
      codec.WriteKeys(keys.data(), block_size, dim, 0, block_size, Row(0), stride);
    read_keys.resize(static_cast<std::size_t>(block_size * dim));
    read_values.resize(read_keys.size());
    codec.ReadKeys(keys.data(), block_size, dim, read_keys.data());
    codec.ReadValues(values.data(), block_size, dim, read_values.data());
  }

  const float* Row(std::int64_t slot) const { return from.data() + slot * stride; }
  float At(std::int64_t t, std::int64_t d) const { return Row(t)[d]; }
  // Half a block of a channel, from token `first` on.
  std::vector<float> Channel(std::int64_t d, std::int64_t first) const {
    std::vector<float> channel;
    for (std::int64_t t = first; t < first + block_size / 2; ++t) channel.push_back(At(t, d));
    return channel;
  }
  std::vector<float> Token(std::int64_t t, std::int64_t begin, std::int64_t end) const {
    return {Row(t) + begin, Row(t) + end};
  }

  std::int64_t block_size, dim, stride;
  std::vector<float> from, read_keys, read_values;
  std::vector<std::byte> keys, values;
};

class Codec : public testing::TestWithParam<KvType> {};

// What is written token by token, in any order of runs, reads back in the documented layout within
// half a step, and no byte outside the plane changes.
TEST_P(Codec, WritesLandInTheirSlots) {
  const KvType type = GetParam();
  std::mt19937 generator(5);
  for (const std::int64_t block_size : {8, 16, 32, 48}) {
    if (block_size % KeyTokensMultiple(type) != 0) continue;
    for (const std::int64_t dim : {1, 2, 16, 65, 80, 130}) {
      if (dim % ValueDimMultiple(type) != 0) continue;
      const Written written(type, block_size, dim, &generator);
      const bool is_int4 = type == KvType::kInt4;
      const bool is_plain = !is_int4 && type != KvType::kInt8;
      for (std::int64_t t = 0; t < block_size; ++t) {
        for (std::int64_t d = 0; d < dim; ++d) {
          const float x = written.At(t, d);
          const std::vector<float> key_group =
              is_plain  ? std::vector<float>{x}
              : is_int4 ? written.Channel(d, t < block_size / 2 ? 0 : block_size / 2)
                        : written.Token(t, 0, dim);
          const std::int64_t half = dim / 2;
          const std::vector<float> value_group =
              is_plain  ? std::vector<float>{x}
              : is_int4 ? written.Token(t, d < half ? 0 : half, d < half ? half : dim)
                        : key_group;
          ASSERT_NEAR(written.read_keys[static_cast<std::size_t>(d * block_size + t)], x,
                      Tolerance(type, key_group));
          ASSERT_NEAR(written.read_values[static_cast<std::size_t>(t * dim + d)], x,
                      Tolerance(type, value_group));
        }
      }
      for (std::int64_t d = 0; is_int4 && d < dim; ++d) {
        for (const std::int64_t first : {std::int64_t{0}, block_size / 2}) {
          const auto* read = written.read_keys.data() + d * block_size + first;
          ExpectFitted(written.Channel(d, first), {read, read + block_size / 2});
        }
      }
      for (std::size_t i = 0; i < 16; ++i) {
        ASSERT_EQ(written.keys[written.keys.size() - 1 - i], std::byte{0xAB});
        ASSERT_EQ(written.values[written.values.size() - 1 - i], std::byte{0xAB});
      }
    }
  }
}

// Rewriting what was read changes no code, save where int4 rounds its scale once more.
TEST_P(Codec, RewritingIsTheInverseOfReading) {
  const KvType type = GetParam();
  std::mt19937 generator(6);
  const Written written(type, 32, 64, &generator);
  std::vector<std::byte> again(written.keys.size() - 16);
  std::vector<float> read(written.read_keys.size());
  CodecFor(type).RewriteKeys(again.data(), 32, 64, written.read_keys.data());
  CodecFor(type).ReadKeys(again.data(), 32, 64, read.data());
  for (std::size_t i = 0; i < read.size(); ++i) {
    const float tolerance = type == KvType::kInt4   ? 0.02F
                            : type == KvType::kInt8 ? std::abs(written.read_keys[i]) * 1e-6F
                                                    : 0.0F;
    ASSERT_NEAR(read[i], written.read_keys[i], tolerance * (i < 32 ? 50.0F : 1.0F));
  }
}

// Nothing that memory can hold makes writing or reading leave its plane or trap.
TEST_P(Codec, AcceptsNumbersThatAreNone) {
  const KvType type = GetParam();
  const std::vector<float> odd = {std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN(),
                                  std::numeric_limits<float>::max(),
                                  std::numeric_limits<float>::denorm_min(),
                                  -0.0F,
                                  1.0F};
  std::vector<float> from(32 * 16);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = odd[i % odd.size()];
  std::vector<std::byte> plane(
      std::max(KeyPlaneBytes(type, 32, 16), ValuePlaneBytes(type, 32, 16)));
  std::vector<float> to(from.size());
  CodecFor(type).WriteKeys(plane.data(), 32, 16, 0, 32, from.data(), 16);
  CodecFor(type).ReadKeys(plane.data(), 32, 16, to.data());
  CodecFor(type).WriteValues(plane.data(), 32, 16, 0, 32, from.data(), 16);
  CodecFor(type).ReadValues(plane.data(), 32, 16, to.data());
  // Zeros have no scale, and stay zeros.
  std::fill(from.begin(), from.end(), 0.0F);
  CodecFor(type).RewriteKeys(plane.data(), 32, 16, from.data());
  CodecFor(type).ReadKeys(plane.data(), 32, 16, to.data());
  EXPECT_EQ(to, from);
}

INSTANTIATE_TEST_SUITE_P(All, Codec,
                         testing::Values(KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8,
                                         KvType::kInt4));

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
