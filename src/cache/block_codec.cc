// SPDX-License-Identifier: Apache-2.0
#include "cache/block_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "cache/plane_layout.h"

namespace carousel {
namespace {

// Elements of a plain type; `Convert` turns a run of floats into them.
template <typename Element, void (*Convert)(const float*, Element*, std::int64_t) noexcept,
          void (*ConvertBack)(const Element*, float*, std::int64_t) noexcept>
class PlainCodec final : public BlockCodec {
 public:
  void WriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                 std::int64_t first_slot, std::int64_t tokens, const float* from,
                 std::int64_t stride) const noexcept override {
    auto* to = reinterpret_cast<Element*>(plane) + first_slot;
    // A token's key is converted in runs that fit a small buffer, then scattered over the
    // dimensions.
    constexpr std::int64_t kRun = 64;
    std::array<Element, kRun> run;
    for (std::int64_t token = 0; token < tokens; ++token) {
      for (std::int64_t begin = 0; begin < dim; begin += kRun) {
        const std::int64_t count = std::min(kRun, dim - begin);
        Convert(from + token * stride + begin, run.data(), count);
        for (std::int64_t i = 0; i < count; ++i) {
          to[(begin + i) * block_size + token] = run[static_cast<std::size_t>(i)];
        }
      }
    }
  }

  void WriteValues(std::byte* plane, std::int64_t /*block_size*/, std::int64_t dim,
                   std::int64_t first_slot, std::int64_t tokens, const float* from,
                   std::int64_t stride) const noexcept override {
    auto* to = reinterpret_cast<Element*>(plane) + first_slot * dim;
    for (std::int64_t token = 0; token < tokens; ++token) {
      Convert(from + token * stride, to + token * dim, dim);
    }
  }

  void ReadKeys(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                float* to) const noexcept override {
    ConvertBack(reinterpret_cast<const Element*>(plane), to, block_size * dim);
  }
  void ReadValues(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                  float* to) const noexcept override {
    ConvertBack(reinterpret_cast<const Element*>(plane), to, block_size * dim);
  }

  void RewriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                   const float* from) const noexcept override {
    Convert(from, reinterpret_cast<Element*>(plane), block_size * dim);
  }
};

void CopyFloats(const float* from, float* to, std::int64_t count) noexcept {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}

// x within [low, high], rounded to the nearest whole number, ties to even; low where x is no
// number. |low| and |high| are below 2^22: adding 1.5 * 2^23 leaves no room for a fraction. A
// library call would be the most of a codec's time.
float Nearest(float x, float low, float high) {
  constexpr float kNoFractions = 0x1.8p23F;
  x = x > low ? x : low;
  x = x < high ? x : high;
  return (x + kNoFractions) - kNoFractions;
}

constexpr float kInt8Largest = 127.0F;

float InverseOf(float scale) { return scale > 0.0F ? 1.0F / scale : 0.0F; }

// One scale per token, symmetric about zero.
class Int8Codec final : public BlockCodec {
 public:
  void WriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                 std::int64_t first_slot, std::int64_t tokens, const float* from,
                 std::int64_t stride) const noexcept override {
    auto* codes = reinterpret_cast<std::int8_t*>(plane) + first_slot;
    float* scales = ScalesOfInt8(plane, block_size, dim) + first_slot;
    for (std::int64_t t = 0; t < tokens; ++t)
      scales[t] = WriteToken(from + t * stride, 1, dim, codes + t, block_size);
  }

  void WriteValues(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                   std::int64_t first_slot, std::int64_t tokens, const float* from,
                   std::int64_t stride) const noexcept override {
    auto* codes = reinterpret_cast<std::int8_t*>(plane) + first_slot * dim;
    float* scales = ScalesOfInt8(plane, block_size, dim) + first_slot;
    for (std::int64_t t = 0; t < tokens; ++t)
      scales[t] = WriteToken(from + t * stride, 1, dim, codes + t * dim, 1);
  }

  void ReadKeys(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                float* to) const noexcept override {
    const auto* codes = reinterpret_cast<const std::int8_t*>(plane);
    const float* scales = ScalesOfInt8(plane, block_size, dim);
    for (std::int64_t i = 0; i < block_size * dim; ++i) {
      to[i] = scales[i % block_size] * static_cast<float>(codes[i]);
    }
  }
  void ReadValues(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                  float* to) const noexcept override {
    const auto* codes = reinterpret_cast<const std::int8_t*>(plane);
    const float* scales = ScalesOfInt8(plane, block_size, dim);
    for (std::int64_t i = 0; i < block_size * dim; ++i) {
      to[i] = scales[i / dim] * static_cast<float>(codes[i]);
    }
  }

  void RewriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                   const float* from) const noexcept override {
    auto* codes = reinterpret_cast<std::int8_t*>(plane);
    float* scales = ScalesOfInt8(plane, block_size, dim);
    for (std::int64_t t = 0; t < block_size; ++t)
      scales[t] = WriteToken(from + t, block_size, dim, codes + t, block_size);
  }

 private:
  // The codes of one token, whose numbers lie `from_stride` and whose codes `to_stride` apart;
  // returns its scale.
  static float WriteToken(const float* from, std::int64_t from_stride, std::int64_t dim,
                          std::int8_t* to, std::int64_t to_stride) {
    float largest = 0.0F;
    for (std::int64_t d = 0; d < dim; ++d)
      largest = std::max(largest, std::abs(from[d * from_stride]));
    const float scale = largest / kInt8Largest;
    const float inverse = InverseOf(scale);
    for (std::int64_t d = 0; d < dim; ++d)
      to[d * to_stride] = static_cast<std::int8_t>(
          Nearest(from[d * from_stride] * inverse, -kInt8Largest, kInt8Largest));
    return scale;
  }
};

constexpr float kInt4Largest = 15.0F;
constexpr float kHalfLargest = 65504.0F;

// The f16 scale and offset of a group, and its codes: x = scale * code + offset.
class Int4Group {
 public:
  // Sixteen even steps over the group's range.
  static Int4Group OverRange(const float* from, std::int64_t count) {
    float smallest = from[0];
    float largest = from[0];
    for (std::int64_t i = 1; i < count; ++i) {
      smallest = std::min(smallest, from[i]);
      largest = std::max(largest, from[i]);
    }
    Int4Group group;
    // The largest is met from where the offset lies once it has been rounded.
    const float offset = Line(0.0F, smallest).offset;
    group.line_ = Line((largest - offset) / kInt4Largest, offset);
    return group;
  }

  // Begins with the range; then the line of least squares through the codes that it gave, and
  // again, as long as the squared error falls. Extremes are met less well and the rest better,
  // which on keys costs a sixth less of perplexity, and on values more.
  static Int4Group Fitted(const float* from, std::int64_t count) {
    Int4Group group = OverRange(from, count);
    float error = SquaredError(group.line_, from, count);
    for (int round = 0; round < kFits; ++round) {
      const Line next = Fit(group.line_, from, count);
      const float next_error = SquaredError(next, from, count);
      if (!(next_error < error)) break;
      group.line_ = next;
      error = next_error;
    }
    return group;
  }

  std::uint16_t scale_bits() const { return line_.scale_bits; }
  std::uint16_t offset_bits() const { return line_.offset_bits; }
  std::uint8_t Code(float x) const { return static_cast<std::uint8_t>(line_.Code(x)); }

 private:
  static constexpr int kFits = 3;

  // Numbers as they are kept, rounded to f16: codes are made with these.
  struct Line {
    std::uint16_t scale_bits = 0;
    std::uint16_t offset_bits = 0;
    float scale = 0.0F;
    float offset = 0.0F;
    float inverse = 0.0F;

    Line() = default;
    Line(float wanted_scale, float wanted_offset) {
      wanted_scale = std::clamp(wanted_scale, 0.0F, kHalfLargest);
      wanted_offset = std::clamp(wanted_offset, -kHalfLargest, kHalfLargest);
      FloatToHalf(&wanted_scale, &scale_bits, 1);
      FloatToHalf(&wanted_offset, &offset_bits, 1);
      HalfToFloat(&scale_bits, &scale, 1);
      HalfToFloat(&offset_bits, &offset, 1);
      inverse = InverseOf(scale);
    }
    float Code(float x) const { return Nearest((x - offset) * inverse, 0.0F, kInt4Largest); }
  };

  static float SquaredError(const Line& line, const float* from, std::int64_t count) {
    float sum = 0.0F;
    for (std::int64_t i = 0; i < count; ++i) {
      const float error = line.scale * line.Code(from[i]) + line.offset - from[i];
      sum += error * error;
    }
    return sum;
  }

  static Line Fit(const Line& line, const float* from, std::int64_t count) {
    float codes = 0.0F;
    float values = 0.0F;
    float squares = 0.0F;
    float products = 0.0F;
    for (std::int64_t i = 0; i < count; ++i) {
      const float code = line.Code(from[i]);
      const float value = from[i] - line.offset;
      codes += code;
      values += value;
      squares += code * code;
      products += code * value;
    }
    const auto n = static_cast<float>(count);
    const float spread = n * squares - codes * codes;
    if (!(spread > 0.0F)) return line;
    const float scale = (n * products - codes * values) / spread;
    return {scale, line.offset + (values - scale * codes) / n};
  }

  Line line_;
};

// Codes of a row of `count` numbers, in one group for each half.
void PackRow(const float* from, std::int64_t count, const Int4Group& low, const Int4Group& high,
             std::uint8_t* to) {
  const std::int64_t half = count / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    to[i] = static_cast<std::uint8_t>(low.Code(from[i]) | high.Code(from[half + i]) << 4);
  }
}

void UnpackHalf(const std::uint8_t* from, std::int64_t half, int shift, std::uint16_t scale_bits,
                std::uint16_t offset_bits, float* to) {
  float scale = 0.0F;
  float offset = 0.0F;
  HalfToFloat(&scale_bits, &scale, 1);
  HalfToFloat(&offset_bits, &offset, 1);
  for (std::int64_t i = 0; i < half; ++i) {
    to[i] = scale * static_cast<float>(from[i] >> shift & 15) + offset;
  }
}

// A scale and an offset for half a row: keys have a row for each channel, values for each token.
class Int4Codec final : public BlockCodec {
 public:
  void WriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                 std::int64_t first_slot, std::int64_t tokens, const float* from,
                 std::int64_t stride) const noexcept override {
    CAROUSEL_CHECK_EQ(first_slot, 0);
    CAROUSEL_CHECK_EQ(tokens, block_size);
    std::array<float, kLargestBlock> channel;
    for (std::int64_t d = 0; d < dim; ++d) {
      for (std::int64_t t = 0; t < tokens; ++t)
        channel[static_cast<std::size_t>(t)] = from[t * stride + d];
      WriteChannel(plane, block_size, dim, d, channel.data());
    }
  }

  void WriteValues(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                   std::int64_t first_slot, std::int64_t tokens, const float* from,
                   std::int64_t stride) const noexcept override {
    auto* codes = reinterpret_cast<std::uint8_t*>(plane);
    std::uint16_t* scales = ScalesOfInt4(plane, block_size, dim);
    std::uint16_t* offsets = scales + 2 * block_size;
    const std::int64_t half = dim / 2;
    for (std::int64_t token = 0; token < tokens; ++token) {
      const float* value = from + token * stride;
      const std::int64_t slot = first_slot + token;
      const Int4Group low = Int4Group::OverRange(value, half);
      const Int4Group high = Int4Group::OverRange(value + half, half);
      PackRow(value, dim, low, high, codes + slot * half);
      scales[slot] = low.scale_bits();
      scales[block_size + slot] = high.scale_bits();
      offsets[slot] = low.offset_bits();
      offsets[block_size + slot] = high.offset_bits();
    }
  }

  void ReadKeys(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                float* to) const noexcept override {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    const std::uint16_t* scales = ScalesOfInt4(plane, block_size, dim);
    const std::uint16_t* offsets = scales + 2 * dim;
    const std::int64_t half = block_size / 2;
    for (std::int64_t d = 0; d < dim; ++d) {
      for (int high = 0; high < 2; ++high) {
        UnpackHalf(codes + d * half, half, 4 * high, scales[high * dim + d],
                   offsets[high * dim + d], to + d * block_size + high * half);
      }
    }
  }
  void ReadValues(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                  float* to) const noexcept override {
    const auto* codes = reinterpret_cast<const std::uint8_t*>(plane);
    const std::uint16_t* scales = ScalesOfInt4(plane, block_size, dim);
    const std::uint16_t* offsets = scales + 2 * block_size;
    const std::int64_t half = dim / 2;
    for (std::int64_t slot = 0; slot < block_size; ++slot) {
      for (int high = 0; high < 2; ++high) {
        UnpackHalf(codes + slot * half, half, 4 * high, scales[high * block_size + slot],
                   offsets[high * block_size + slot], to + slot * dim + high * half);
      }
    }
  }

  void RewriteKeys(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                   const float* from) const noexcept override {
    for (std::int64_t d = 0; d < dim; ++d) {
      WriteChannel(plane, block_size, dim, d, from + d * block_size);
    }
  }

 private:
  static constexpr std::size_t kLargestBlock = 256;

  static void WriteChannel(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                           std::int64_t d, const float* channel) {
    std::uint16_t* scales = ScalesOfInt4(plane, block_size, dim);
    std::uint16_t* offsets = scales + 2 * dim;
    const std::int64_t half = block_size / 2;
    const Int4Group low = Int4Group::Fitted(channel, half);
    const Int4Group high = Int4Group::Fitted(channel + half, half);
    PackRow(channel, block_size, low, high, reinterpret_cast<std::uint8_t*>(plane) + d * half);
    scales[d] = low.scale_bits();
    scales[dim + d] = high.scale_bits();
    offsets[d] = low.offset_bits();
    offsets[dim + d] = high.offset_bits();
  }
};

}  // namespace

void FloatToBfloat16(const float* from, std::uint16_t* to, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(from[i]);
    const std::uint32_t rounded = bits + 0x7fffU + (bits >> 16 & 1U);
    const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
    to[i] = static_cast<std::uint16_t>(is_nan ? bits >> 16 | 0x40U : rounded >> 16);
  }
}

void Bfloat16ToFloat(const std::uint16_t* from, float* to, std::int64_t count) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    to[i] = std::bit_cast<float>(static_cast<std::uint32_t>(from[i]) << 16);
  }
}

const BlockCodec& CodecFor(KvType type) {
  static const PlainCodec<float, CopyFloats, CopyFloats> f32;
  static const PlainCodec<std::uint16_t, FloatToHalf, HalfToFloat> f16;
  static const PlainCodec<std::uint16_t, FloatToBfloat16, Bfloat16ToFloat> bf16;
  static const Int8Codec int8;
  static const Int4Codec int4;
  switch (type) {
    case KvType::kF32:
      return f32;
    case KvType::kF16:
      return f16;
    case KvType::kBf16:
      return bf16;
    case KvType::kInt8:
      return int8;
    case KvType::kInt4:
      return int4;
  }
  CAROUSEL_CHECK(false);
}

}  // namespace carousel
