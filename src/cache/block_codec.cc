// SPDX-License-Identifier: Apache-2.0
#include "cache/block_codec.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"

namespace carousel {
namespace {

// Elements of a plain type; `Convert` turns a run of floats into them.
template <typename Element, void (*Convert)(const float*, Element*, std::int64_t),
          void (*ConvertBack)(const Element*, float*, std::int64_t)>
class PlainCodec final : public BlockCodec {
 public:
  std::size_t PlaneBytes(std::int64_t block_size, std::int64_t dim) const noexcept override {
    return static_cast<std::size_t>(block_size * dim) * sizeof(Element);
  }

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

  void ReadPlane(const std::byte* plane, std::int64_t block_size, std::int64_t dim,
                 float* to) const noexcept override {
    ConvertBack(reinterpret_cast<const Element*>(plane), to, block_size * dim);
  }

  void WritePlane(std::byte* plane, std::int64_t block_size, std::int64_t dim,
                  const float* from) const noexcept override {
    Convert(from, reinterpret_cast<Element*>(plane), block_size * dim);
  }
};

void CopyFloats(const float* from, float* to, std::int64_t count) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
}
void ToHalf(const float* from, std::uint16_t* to, std::int64_t count) {
  FloatToHalf(from, to, count);
}
void FromHalf(const std::uint16_t* from, float* to, std::int64_t count) {
  HalfToFloat(from, to, count);
}

}  // namespace

const BlockCodec& CodecFor(KvType type) {
  static const PlainCodec<float, CopyFloats, CopyFloats> f32;
  static const PlainCodec<std::uint16_t, ToHalf, FromHalf> f16;
  switch (type) {
    case KvType::kF32:
      return f32;
    case KvType::kF16:
      return f16;
  }
  CAROUSEL_CHECK(false);
}

}  // namespace carousel
