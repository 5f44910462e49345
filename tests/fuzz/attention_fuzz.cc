// SPDX-License-Identifier: Apache-2.0
// Bytes as a layer, its blocks and a step's queries: attention stays inside memory that is exactly
// as large as it is promised, whatever the codes, and every instruction set of this CPU gives the
// same to rounding.
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "attention/paged_attention.h"
#include "base/aligned_buffer.h"
#include "base/check.h"
#include "cache/block_codec.h"
#include "cache/plane_layout.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

struct Step {
  AttentionLayerSpec layer;
  BlockShape shape;
  BlockShape open_shape;  // f32, of a last block that keys cannot be coded into yet
  std::optional<RotationTable> rotation;
  std::vector<AlignedBuffer<std::byte>> memory;  // one piece per block
  std::vector<AttentionBlock> blocks;
  std::int64_t queries = 0;
  std::int64_t counted = 0;
  Position first_query;
  std::vector<float> q;
  bool is_finite = true;  // no block holds bytes that are no numbers
};

class Noise {
 public:
  explicit Noise(std::uint64_t seed) : state_(seed * 2 + 1) {}
  std::uint32_t Bits() {
    state_ = state_ * 6364136223846793005U + 1442695040888963407U;
    return static_cast<std::uint32_t>(state_ >> 32U);
  }
  float Number() { return static_cast<float>(static_cast<std::int32_t>(Bits())) * 0x1p-30F; }

 private:
  std::uint64_t state_;
};

void ReadLayer(FuzzInput* input, Step* step) {
  AttentionLayerSpec& layer = step->layer;
  layer.kv_heads = 1 + input->Below(3);
  layer.query_heads = layer.kv_heads * (1 + input->Below(5));
  layer.key_dim = 1 + input->Below(96);
  layer.value_dim = 1 + input->Below(96);
  step->shape = {.kv_heads = layer.kv_heads,
                 .key_type = input->Choice<KvType>(5),
                 .value_type = input->Choice<KvType>(5)};
  step->shape.block_size = KeyTokensMultiple(step->shape.key_type) * (1 + input->Below(4));
  layer.value_dim *= ValueDimMultiple(step->shape.value_type);
  layer.scale = 0.3F;
  const std::uint64_t options = input->Bits(1);
  if ((options & 1U) != 0) layer.sliding_window = 1 + input->Below(70);
  if ((options & 2U) != 0) layer.soft_cap = 4.0F;
  const auto heads = static_cast<std::size_t>(layer.query_heads);
  if ((options & 4U) != 0) layer.alibi_slopes.assign(heads, 0.05F);
  if ((options & 8U) != 0) layer.sinks.assign(heads, 0.5F);
  step->is_finite = (options & 0x30U) != 0;
  step->shape.key_dim = layer.key_dim;
  step->shape.value_dim = layer.value_dim;
  step->open_shape = step->shape;
  step->open_shape.key_type = step->open_shape.value_type = KvType::kF32;
  if ((options & 0x40U) != 0 && layer.key_dim % 2 == 0) {
    const LayerRope rope = {
        .pairing = (options & 0x80U) != 0 ? Pairing::kNeighbours : Pairing::kHalves,
        .rotated_dims = layer.key_dim,
        .frequencies = PlainFrequencies(10000.0, layer.key_dim)};
    step->rotation.emplace(rope, step->shape.block_size).Extend(4);
  }
}

void FillBlock(const BlockShape& shape, bool is_finite, Noise* noise, std::byte* to) {
  if (!is_finite) {
    for (std::size_t i = 0; i < shape.bytes(); ++i) to[i] = static_cast<std::byte>(noise->Bits());
    return;
  }
  std::vector<float> keys(static_cast<std::size_t>(shape.block_size * shape.key_dim));
  std::vector<float> values(static_cast<std::size_t>(shape.block_size * shape.value_dim));
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    for (float& key : keys) key = noise->Number();
    for (float& value : values) value = noise->Number();
    CodecFor(shape.key_type)
        .RewriteKeys(to + shape.key_offset(head), shape.block_size, shape.key_dim, keys.data());
    CodecFor(shape.value_type)
        .WriteValues(to + shape.value_offset(head), shape.block_size, shape.value_dim, 0,
                     shape.block_size, values.data(), shape.value_dim);
  }
}

void ReadBlocks(FuzzInput* input, Step* step) {
  const std::int64_t size = step->shape.block_size;
  const std::int64_t count = 1 + input->Below(9);
  const std::int64_t last_tokens = 1 + input->Below(size);
  Noise noise(input->Bits(4));
  std::int64_t logical = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const bool is_last = i + 1 == count;
    const bool is_open = is_last && last_tokens < size && KeysNeedWholeBlocks(step->shape.key_type);
    const BlockShape& shape = is_open ? step->open_shape : step->shape;
    step->memory.emplace_back(shape.bytes());
    FillBlock(shape, step->is_finite, &noise, step->memory.back().data());
    step->blocks.push_back({.data = step->memory.back().data(),
                            .shape = &shape,
                            .tokens = is_last ? last_tokens : size,
                            .shift_blocks = step->rotation ? input->Below(5) : 0,
                            .attention = Position{i * size},
                            .logical = Position{logical}});
    // Some blocks between them were evicted.
    logical += is_last ? last_tokens : size * (1 + input->Below(3));
  }
  // The step's own tokens are the last ones, side by side in the stream.
  std::int64_t newest = last_tokens;
  for (std::size_t i = step->blocks.size() - 1;
       i > 0 && step->blocks[i].logical - step->blocks[i - 1].logical == size; --i)
    newest += size;
  step->queries = 1 + input->Below(std::min<std::int64_t>(newest, 60));
  step->counted = std::min(step->queries, input->Below(10));
  step->first_query = Position{logical - step->queries};
  step->q.resize(
      static_cast<std::size_t>(step->queries * step->layer.query_heads * step->layer.key_dim));
  for (float& x : step->q) x = noise.Number();
}

struct Outcome {
  std::vector<float> out;
  std::vector<float> mass;
};

Outcome Run(const Step& step) {
  Outcome outcome;
  const auto width = step.layer.query_heads * step.layer.value_dim;
  // Of exactly these sizes, and with nothing behind them.
  const auto out = std::make_unique<float[]>(static_cast<std::size_t>(step.queries * width));
  const std::size_t slots =
      step.counted == 0 ? 0 : step.blocks.size() * static_cast<std::size_t>(step.shape.block_size);
  const auto mass = std::make_unique<float[]>(slots);
  PagedAttention attention;
  attention.Run({{.layer = &step.layer,
                  .kv_heads = step.layer.kv_heads,
                  .block_size = step.shape.block_size,
                  .rotation = step.rotation ? &*step.rotation : nullptr,
                  .blocks = step.blocks,
                  .queries = step.queries,
                  .first_query_attention = step.first_query,
                  .first_query_logical = step.first_query,
                  .q = step.q.data(),
                  .counted_queries = step.counted},
                 {.out = out.get(), .token_mass = {mass.get(), slots}}});
  outcome.out.assign(out.get(), out.get() + step.queries * width);
  outcome.mass.assign(mass.get(), mass.get() + slots);
  return outcome;
}

void CheckNear(const std::vector<float>& got, const std::vector<float>& want, float tolerance) {
  for (std::size_t i = 0; i < got.size(); ++i)
    CAROUSEL_CHECK_LE(std::abs(got[i] - want[i]), tolerance);
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  std::vector<std::string> seeds;
  for (char type = 0; type < 5; ++type) {
    for (const char options : {'\x10', '\x5F', '\0', '\x54'}) {
      std::string seed = {2, 0, 2, 0, 63, 0, 63, 0, type, type, 3, 0, options, 5, 0, 7, 0};
      seed += std::string("\x20\x30\x40\x50\x01\x00\x02\x00\x00\x00\x03\x00", 12);
      seeds.push_back(seed);
    }
  }
  return seeds;
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  FuzzInput input(data, size);
  Step step;
  ReadLayer(&input, &step);
  ReadBlocks(&input, &step);
  std::optional<Outcome> want;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    Outcome got = Run(step);
    // Below AVX2, Highway's emulation of f16 knows no subnormals.
    if (!step.is_finite || target > HWY_AVX2) continue;
    if (want) {
      // Values are below 2, so outputs are; mass sums probabilities over heads and queries. Whether
      // rows are rounded to 16 bits before they meet int8 codes depends on a target's vectors; a
      // score is then off by 1e-4 (one standard deviation, of queries and keys below 2).
      const bool rounds =
          step.shape.key_type == KvType::kInt8 || step.shape.value_type == KvType::kInt8;
      CheckNear(got.out, want->out, rounds ? 2e-3F : 1e-4F);
      CheckNear(
          got.mass, want->mass,
          (rounds ? 1e-3F : 1e-5F) *
              static_cast<float>(step.layer.query_heads * std::max<std::int64_t>(1, step.counted)));
    } else {
      want = std::move(got);
    }
  }
  hwy::SetSupportedTargetsForTest(0);
  return 0;
}
