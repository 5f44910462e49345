// SPDX-License-Identifier: Apache-2.0
// Fixed work for the kernels, to be counted in instructions by tools/kernel_counts.py: times move
// from run to run and machine to machine, counts do not.
//
//   kernel_counts         names the cases
//   kernel_counts CASE    does the case's work twice, the second time inside CountedKernel
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "cache/block_codec.h"
#include "measure/our_attention.h"
#include "rope/rotate.h"

// Callgrind is told to collect inside this function alone.
extern "C" __attribute__((noinline)) void CountedKernel(const std::function<void()>& work) {
  work();
}

namespace carousel {
namespace {

using Work = std::function<void()>;

AttentionLoad LoadOf(std::int64_t context, std::int64_t queries) {
  AttentionShape shape = DefaultAttentionShape();
  shape.context = context;
  shape.queries = queries;
  shape.layers = 1;
  return MakeAttentionLoad(shape, 0);
}

Work Attend(KvType type, std::int64_t context, std::int64_t queries, std::int64_t shifts) {
  const auto load = std::make_shared<const AttentionLoad>(LoadOf(context, queries));
  const auto attention =
      std::make_shared<OurAttention>(*load, std::make_shared<const OurCaches>(*load, type), shifts);
  return [load, attention] { attention->Run(); };
}

// A block's keys and values of one head, written and read back.
Work Code(KvType type) {
  constexpr std::int64_t kBlock = 32;
  constexpr std::int64_t kDim = 64;
  const auto load = std::make_shared<const AttentionLoad>(LoadOf(kBlock, 1));
  const auto stride = load->shape.layer.kv_heads * kDim;
  const BlockShape shape = {.block_size = kBlock,
                            .kv_heads = 1,
                            .key_dim = kDim,
                            .value_dim = kDim,
                            .key_type = type,
                            .value_type = type};
  const auto block = std::make_shared<std::vector<std::byte>>(shape.bytes());
  const auto read = std::make_shared<std::vector<float>>(kBlock * kDim);
  return [=] {
    const BlockCodec& codec = CodecFor(type);
    std::byte* keys = block->data() + shape.key_offset(0);
    std::byte* values = block->data() + shape.value_offset(0);
    codec.WriteKeys(keys, kBlock, kDim, 0, kBlock, load->k.data(), stride);
    codec.WriteValues(values, kBlock, kDim, 0, kBlock, load->v.data(), stride);
    codec.ReadKeys(keys, kBlock, kDim, read->data());
    codec.ReadValues(values, kBlock, kDim, read->data());
  };
}

Work RotateKeys() {
  const auto load = std::make_shared<AttentionLoad>(LoadOf(512, 1));
  const auto dim = load->shape.layer.key_dim;
  const auto table = std::make_shared<RotationTable>(
      LayerRope{.rotated_dims = dim, .frequencies = PlainFrequencies(1e5, dim)}, 32);
  table->Extend(1);
  return [=] {
    const std::int64_t delta = -1;
    float* const blocks[] = {load->k.data()};
    RotateKeyBlocks(*table, KeyLayout::kDimensionMajor, 16, dim, blocks,
                    {.multiples = {&delta, 1}, .columns = 1});
  };
}

std::map<std::string, std::function<Work()>> Cases() {
  std::map<std::string, std::function<Work()>> cases;
  for (const KvType type :
       {KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8, KvType::kInt4}) {
    const std::string name(Name(type));
    cases["decode/" + name] = [type] { return Attend(type, 1024, 1, kNoShifts); };
    cases["prompt/" + name] = [type] { return Attend(type, 512, 128, kNoShifts); };
    cases["codec/" + name] = [type] { return Code(type); };
  }
  cases["decode_shift_in_every_block/f16"] = [] {
    return Attend(KvType::kF16, 1024, 1, kShiftInEveryBlock);
  };
  cases["prompt_shift_in_every_block/f16"] = [] {
    return Attend(KvType::kF16, 512, 128, kShiftInEveryBlock);
  };
  cases["rotate_keys"] = [] { return RotateKeys(); };
  return cases;
}

int Main(int count, char** values) {
  SetThreadCount(1);  // then loops run in line
  const auto cases = Cases();
  if (count == 1) {
    for (const auto& [name, unused] : cases) fmt::print("{}\n", name);
    return 0;
  }
  const auto found = cases.find(values[1]);
  if (count != 2 || found == cases.end()) {
    fmt::print(stderr, "kernel_counts: there is no case '{}'\n", values[1]);
    return 2;
  }
  const Work work = found->second();
  work();  // what is allocated or looked up once
  CountedKernel(work);
  return 0;
}

}  // namespace
}  // namespace carousel

int main(int count, char** values) { return carousel::Main(count, values); }
