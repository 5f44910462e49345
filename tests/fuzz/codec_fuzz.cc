// SPDX-License-Identifier: Apache-2.0
// Bytes as a plane's shape, content and what is written into it: codecs stay inside memory that is
// exactly as large as they are promised, and every instruction set of this CPU gives the same
// codes and the same numbers.
#include <hwy/targets.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "base/check.h"
#include "cache/block_codec.h"
#include "cache/plane_layout.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

struct PlaneCase {
  KvType type = KvType::kF32;
  bool is_key = true;
  std::int64_t block_size = 0;
  std::int64_t dim = 0;
  std::int64_t first_slot = 0;
  std::int64_t tokens = 0;
  std::int64_t stride = 0;
  bool is_finite = true;
};

PlaneCase ReadCase(FuzzInput* input) {
  PlaneCase c;
  c.type = input->Choice<KvType>(5);
  c.is_key = input->Bits(1) % 2 == 0;
  c.block_size = KeyTokensMultiple(c.type) * (1 + input->Below(4));
  c.dim = ValueDimMultiple(c.type) * (1 + input->Below(80));
  c.first_slot = input->Below(c.block_size);
  c.tokens = 1 + input->Below(c.block_size - c.first_slot);
  if (c.is_key && KeysNeedWholeBlocks(c.type)) {
    c.first_slot = 0;
    c.tokens = c.block_size;
  }
  c.stride = c.dim + input->Below(5);
  return c;
}

// Numbers to write: of any bits, or finite ones of a size that f16 holds. Tight: the last row ends
// the memory.
std::vector<float> ReadNumbers(PlaneCase* c, FuzzInput* input) {
  std::vector<float> numbers(static_cast<std::size_t>((c->tokens - 1) * c->stride + c->dim));
  const bool is_raw = input->Bits(1) % 4 == 0;
  const std::uint64_t seed = input->Bits(4);
  std::uint64_t state = seed * 2 + 1;
  for (float& number : numbers) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    const std::uint64_t bits = input->empty() ? state >> 32U : input->Bits(4);
    number = is_raw ? std::bit_cast<float>(static_cast<std::uint32_t>(bits))
                    : static_cast<float>(static_cast<std::int32_t>(bits)) * 0x1p-24F;
    c->is_finite &= std::isfinite(number) && std::abs(number) < 60000.0F;
  }
  return numbers;
}

struct Outcome {
  std::vector<std::byte> plane;
  std::vector<float> read;
  std::vector<std::byte> rewritten;
};

std::size_t BytesOf(const PlaneCase& c) {
  return c.is_key ? KeyPlaneBytes(c.type, c.block_size, c.dim)
                  : ValuePlaneBytes(c.type, c.block_size, c.dim);
}

// new[] of exactly so many bytes has nothing behind it that may be touched.
Outcome Run(const PlaneCase& c, const std::vector<float>& numbers, std::uint8_t filler) {
  const std::size_t bytes = BytesOf(c);
  const auto plane = std::make_unique<std::byte[]>(bytes);
  std::fill_n(plane.get(), bytes, static_cast<std::byte>(filler));
  const auto from = std::make_unique<float[]>(numbers.size());
  std::copy(numbers.begin(), numbers.end(), from.get());
  const auto count = static_cast<std::size_t>(c.block_size * c.dim);
  const auto read = std::make_unique<float[]>(count);
  const BlockCodec& codec = CodecFor(c.type);
  Outcome outcome;
  if (c.is_key) {
    codec.WriteKeys(plane.get(), c.block_size, c.dim, c.first_slot, c.tokens, from.get(), c.stride);
    outcome.plane.assign(plane.get(), plane.get() + bytes);
    codec.ReadKeys(plane.get(), c.block_size, c.dim, read.get());
    codec.RewriteKeys(plane.get(), c.block_size, c.dim, read.get());
    outcome.rewritten.assign(plane.get(), plane.get() + bytes);
  } else {
    codec.WriteValues(plane.get(), c.block_size, c.dim, c.first_slot, c.tokens, from.get(),
                      c.stride);
    outcome.plane.assign(plane.get(), plane.get() + bytes);
    codec.ReadValues(plane.get(), c.block_size, c.dim, read.get());
  }
  outcome.read.assign(read.get(), read.get() + count);
  return outcome;
}

bool SameNumbers(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  }
  return true;
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (char type = 0; type < 5; ++type) {
    for (char side = 0; side < 2; ++side)
      seeds.push_back({type, side, 1, 0, 63, 0, 0, 0, 31, 0, 0, 0, 1, 5, 6, 7, 8});
  }
  return seeds;
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  FuzzInput input(data, size);
  PlaneCase c = ReadCase(&input);
  const auto filler = static_cast<std::uint8_t>(input.Bits(1));
  const std::vector<float> numbers = ReadNumbers(&c, &input);
  const std::vector<std::int64_t> targets = hwy::SupportedAndGeneratedTargets();
  bool is_first = true;
  Outcome want;
  for (const std::int64_t target : targets) {
    hwy::SetSupportedTargetsForTest(target);
    Outcome got = Run(c, numbers, filler);
    // Below AVX2, Highway's emulation of f16 truncates.
    if (!c.is_finite || target > HWY_AVX2) continue;
    if (is_first) {
      want = std::move(got);
      is_first = false;
      continue;
    }
    CAROUSEL_CHECK(got.plane == want.plane);
    CAROUSEL_CHECK(SameNumbers(got.read, want.read));
    CAROUSEL_CHECK(got.rewritten == want.rewritten);
  }
  hwy::SetSupportedTargetsForTest(0);
  return 0;
}
