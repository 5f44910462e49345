// SPDX-License-Identifier: Apache-2.0
// Query rotation writes nothing: after a thousand evictions, one after another, the cache holds and
// attention gives, to the last bit, what one eviction of the same tokens leaves.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "attention/paged_attention.h"
#include "cache/block_codec.h"
#include "cache/block_pools.h"
#include "cache/block_table.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 16;
constexpr std::int64_t kBlocks = 1013;
constexpr std::int64_t kKept = 12;
constexpr std::int64_t kEvictions = kBlocks - kKept;

// One layer's cache in a stream whose plain keys and values depend on the token alone.
class Stream {
 public:
  explicit Stream(KvType type)
      : shape_{.block_size = kBlock,
               .kv_heads = 2,
               .key_dim = 32,
               .value_dim = 32,
               .key_type = type,
               .value_type = type},
        pools_(std::vector<BlockShape>{shape_}, 0),
        tables_(1, kBlock,
                {.policy = PositionPolicy::kCompact,
                 .rotation = Rotation::kQuery,
                 .trained_window = 2 * kBlocks * kBlock,
                 .max_step_tokens = kBlock}),
        rope_{.rotated_dims = 32, .frequencies = PlainFrequencies(10000.0, 32)},
        rotation_(rope_, kBlock) {}

  void AppendBlock() {
    tables_.BeginStep(kBlock);
    const Position written = tables_.next_written();
    const Position logical = tables_.logical_length();
    tables_.Append(kBlock, pools_);
    std::byte* data = pools_.of(0).data(tables_.table(0).entries().back().block);
    for (std::int64_t t = 0; t < kBlock; ++t) {
      std::mt19937 generator(static_cast<unsigned>((logical + t).value));
      std::normal_distribution<double> normal;
      for (std::int64_t head = 0; head < shape_.kv_heads; ++head) {
        std::vector<double> key(32);
        std::vector<double> rotated(32);
        std::vector<float> value(32);
        for (double& x : key) x = normal(generator);
        for (float& x : value) x = static_cast<float>(normal(generator));
        RotateVectorReference(rope_, static_cast<double>((written + t).value), 32, key.data(),
                              rotated.data());
        const std::vector<float> as_float(rotated.begin(), rotated.end());
        CodecFor(shape_.key_type)
            .WriteKeys(data + shape_.key_offset(head), kBlock, 32, t, 1, as_float.data(), 32);
        CodecFor(shape_.value_type)
            .WriteValues(data + shape_.value_offset(head), kBlock, 32, t, 1, value.data(), 32);
      }
    }
  }

  void Evict(const std::vector<std::int64_t>& entries) {
    tables_.Evict(0, entries, pools_.of(0));
    tables_.CheckIntegrity();
  }

  std::span<const TableEntry> entries() const { return tables_.table(0).entries(); }
  std::vector<std::byte> Bytes(std::int64_t entry) {
    const std::byte* data = pools_.of(0).data(entries()[static_cast<std::size_t>(entry)].block);
    return {data, data + shape_.bytes()};
  }

  // Of the last block's tokens as queries.
  std::vector<float> Attend() {
    const AttentionLayerSpec layer{
        .query_heads = 4, .kv_heads = 2, .key_dim = 32, .value_dim = 32, .scale = 0.2F};
    rotation_.Extend(2 * kBlocks);
    std::vector<AttentionBlock> blocks;
    for (std::int64_t i = 0; i < std::ssize(entries()); ++i) {
      const TableEntry& entry = entries()[static_cast<std::size_t>(i)];
      blocks.push_back({.data = pools_.of(0).data(entry.block),
                        .shape = &shape_,
                        .tokens = entry.tokens,
                        .shift_blocks = tables_.ShiftOf(0, i) / kBlock,
                        .attention = tables_.AttentionPosition(0, i),
                        .logical = entry.logical});
    }
    std::mt19937 generator(99);
    std::normal_distribution<float> normal;
    std::vector<float> q(kBlock * 4 * 32);
    for (float& x : q) x = normal(generator);
    std::vector<float> out(q.size());
    PagedAttention().Run({{.layer = &layer,
                           .kv_heads = 2,
                           .block_size = kBlock,
                           .rotation = &rotation_,
                           .blocks = blocks,
                           .queries = kBlock,
                           .first_query_attention = tables_.NextAttentionPosition(0) + -kBlock,
                           .first_query_logical = tables_.logical_length() + -kBlock,
                           .q = q.data()},
                          {.out = out.data()}});
    return out;
  }

 private:
  BlockShape shape_;
  BlockPools pools_;
  SequenceTables tables_;
  LayerRope rope_;
  RotationTable rotation_;
};

class ThousandEvictions : public ::testing::TestWithParam<KvType> {};

TEST_P(ThousandEvictions, LeaveWhatOneLeaves) {
  Stream one_by_one(GetParam());
  std::mt19937 generator(4);
  std::vector<std::vector<std::byte>> written;  // each block's bytes when it was full
  std::int64_t evictions = 0;
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    one_by_one.AppendBlock();
    const std::int64_t entries = std::ssize(one_by_one.entries());
    written.push_back(one_by_one.Bytes(entries - 1));
    if (entries <= kKept) continue;
    // The first and the last block stay, as in the engine.
    one_by_one.Evict({1 + static_cast<std::int64_t>(generator() % (entries - 2))});
    ++evictions;
  }
  ASSERT_EQ(evictions, kEvictions);

  std::vector<bool> kept(kBlocks, false);
  for (std::int64_t i = 0; i < kKept; ++i) {
    const std::int64_t block =
        one_by_one.entries()[static_cast<std::size_t>(i)].logical.value / kBlock;
    kept[static_cast<std::size_t>(block)] = true;
    EXPECT_EQ(one_by_one.Bytes(i), written[static_cast<std::size_t>(block)]) << "block " << block;
  }
  Stream at_once(GetParam());
  std::vector<std::int64_t> victims;
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    at_once.AppendBlock();
    if (!kept[static_cast<std::size_t>(i)]) victims.push_back(i);
  }
  at_once.Evict(victims);
  for (std::int64_t i = 0; i < kKept; ++i)
    EXPECT_EQ(at_once.Bytes(i), one_by_one.Bytes(i)) << "entry " << i;
  EXPECT_EQ(at_once.Attend(), one_by_one.Attend());
}

INSTANTIATE_TEST_SUITE_P(EveryType, ThousandEvictions,
                         ::testing::Values(KvType::kF16, KvType::kInt8),
                         [](const auto& test) { return std::string(Name(test.param)); });

}  // namespace
}  // namespace carousel
