// SPDX-License-Identifier: Apache-2.0
#include "engine/recall_chooser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "cache/block_codec.h"
#include "engine/tiny_model.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlock = 8;
constexpr std::int64_t kStored = 200;  // more than are all judged by their keys
constexpr std::int64_t kDim = 16;

EngineSettings SettingsOf(const ModelSpec& spec, PositionPolicy positions) {
  EngineConfig config;
  config.cache = {.block_size = kBlock, .key_type = KvType::kF32, .value_type = KvType::kF32};
  config.chunk_size = kBlock;
  config.eviction = EvictionConfig{.start_size = 8, .recent_size = 8, .max_cache_size = 32};
  config.eviction->positions = positions;
  config.recall = {.blocks = 2, .kv_type = KvType::kF32};
  RopeProbeResult probe;
  probe.verdict = RopeVerdict::kRotates;
  LayerRopeFinding layer;
  layer.verdict = RopeVerdict::kRotates;
  layer.rope = {.rotated_dims = kDim, .frequencies = PlainFrequencies(1000.0, kDim)};
  probe.layers.assign(spec.layers.size(), layer);
  return Settle(spec, config, probe);
}

// One layer of one KV head, many stored blocks of zeros, and one whose keys are what the query
// looks for: as it was written, or at the far end, whichever the positions say.
class StoredBlocks {
 public:
  explicit StoredBlocks(PositionPolicy positions)
      : model_({.layers = 1, .query_heads = 1, .kv_heads = 1, .trained_window = 4096}),
        settings_(SettingsOf(model_.spec(), positions)),
        tier_({.lanes = settings_.recall_lanes}),
        state_(settings_, model_.spec().layers, &tier_),
        tables_(1, kBlock, settings_.rules),
        pools_(settings_.shapes, 0),
        rotation_(settings_.rope.layers[0], kBlock),
        q_(kDim, 0.0F) {
    q_[0] = q_[kDim / 2] = 30.0F;
  }

  // `key` is the same for all tokens of the wanted block, as the model wrote it.
  void Fill(std::int64_t wanted, std::span<const float> key) {
    const BlockShape& shape = settings_.shapes[0];
    AlignedBuffer<std::byte> data(shape.bytes());
    for (std::int64_t i = 0; i < kStored + 1; ++i) {
      tables_.BeginStep(kBlock);
      const Position at = tables_.next_written();
      tables_.Append(kBlock, pools_);
      if (i == kStored) break;  // the query's own block
      std::vector<float> keys(static_cast<std::size_t>(kBlock * kDim), 0.0F);
      for (std::int64_t t = 0; t < kBlock && i == wanted; ++t)
        std::copy(key.begin(), key.end(), keys.begin() + t * kDim);
      CodecFor(KvType::kF32).WriteKeys(data.data(), kBlock, kDim, 0, kBlock, keys.data(), kDim);
      state_.Store(settings_.groups[0],
                   {.written = at, .logical = Position{i * kBlock}, .tokens = kBlock}, data.data(),
                   shape, &rotation_);
      const std::int64_t first = 0;
      tables_.Evict(0, {&first, 1}, pools_.of(0));
    }
  }

  std::vector<std::int64_t> Candidates() {
    const std::vector<AttentionBlock> blocks(1);
    const AttentionTask task{
        .input = {.layer = model_.spec().layers.data(),
                  .kv_heads = 1,
                  .block_size = kBlock,
                  .rotation = &rotation_,
                  .blocks = blocks,
                  .queries = 1,
                  .first_query_attention = tables_.NextAttentionPosition(0) + -1,
                  .first_query_logical = tables_.logical_length() + -1,
                  .q = q_.data()},
        .output = {}};
    const RecallLayer layer{.tables = &tables_,
                            .groups = settings_.groups,
                            .tasks = {&task, 1},
                            .rotation = &rotation_};
    rotation_.Extend(2 * kStored);
    RecallPart part{.queries = 1, .chooses = true};
    FindCandidates(state_, layer, &part);
    std::vector<std::int64_t> logical;
    for (const std::int64_t slot : part.candidates)
      logical.push_back(state_.store().slots(0)[static_cast<std::size_t>(slot)].logical.value);
    return logical;
  }

  std::span<const float> q() const { return q_; }
  const LayerRope& rope() const { return settings_.rope.layers[0]; }

 private:
  TinyModel model_;
  EngineSettings settings_;
  TierPools tier_;
  RecallState state_;
  SequenceTables tables_;
  BlockPools pools_;
  RotationTable rotation_;
  std::vector<float> q_;
};

// Where tokens keep their positions, a query meets keys as they were written, and sketches say so:
// a block that it looks for there is found wherever it stands, and one whose keys point the other
// way is not.
TEST(FindCandidates, JudgesBlocksThatKeepTheirPositionsWhereTheyStand) {
  for (const std::int64_t wanted : {0, 17, 100, 150, 199}) {
    StoredBlocks found(PositionPolicy::kKeep);
    found.Fill(wanted, found.q());
    EXPECT_THAT(found.Candidates(), ::testing::Contains(wanted * kBlock)) << wanted;

    StoredBlocks not_found(PositionPolicy::kKeep);
    std::vector<float> opposite(found.q().begin(), found.q().end());
    for (float& number : opposite) number = -number;
    not_found.Fill(wanted, opposite);
    EXPECT_THAT(not_found.Candidates(), ::testing::Not(::testing::Contains(wanted * kBlock)))
        << wanted;
  }
}

// A block that moves into the cache and is evicted again while the choice of it still holds.
TEST(RecallState, FindsAChosenBlockThatIsBackInAnotherSlot) {
  const TinyModel model({.layers = 1, .query_heads = 1, .kv_heads = 1, .trained_window = 4096});
  const EngineSettings settings = SettingsOf(model.spec(), PositionPolicy::kKeep);
  TierPools tier({.lanes = settings.recall_lanes});
  RecallState state(settings, model.spec().layers, &tier);
  const BlockShape& shape = settings.shapes[0];
  AlignedBuffer<std::byte> data(shape.bytes());
  std::fill_n(data.data(), shape.bytes(), std::byte{0});
  const auto store = [&](Position at) {
    state.Store(settings.groups[0], {.written = at, .logical = at, .tokens = kBlock}, data.data(),
                shape, nullptr);
  };
  const Position chosen{0};
  store(chosen);
  const RecallChoice choice{.slot = state.store().Find(0, chosen), .logical = chosen};
  EXPECT_EQ(state.SlotOf(0, choice), choice.slot);
  state.Remove(settings.groups[0], chosen);
  EXPECT_EQ(state.SlotOf(0, choice), -1);
  store(Position{kBlock});  // where the chosen one lay
  ASSERT_EQ(state.store().Find(0, Position{kBlock}), choice.slot);
  EXPECT_EQ(state.SlotOf(0, choice), -1);
  store(chosen);
  EXPECT_EQ(state.SlotOf(0, choice), state.store().Find(0, chosen));
  EXPECT_NE(state.SlotOf(0, choice), -1);
}

TEST(RankCandidates, TakesTheHeaviestAndOfEqualOnesTheNewer) {
  RecallPart part;
  part.candidates = {5, 6, 7};
  for (const std::int64_t index : {0, 1, 2}) {
    part.placements.push_back({.index = index, .recalled = true});
    part.blocks.push_back({.logical = Position{index * 2}});
  }
  part.placements.push_back({.index = 0});
  part.blocks.push_back({.logical = Position{9}});
  part.mass = {0.5F, 0.0F, 0.25F, 0.25F, 1.0F, 0.0F, 8.0F, 8.0F};
  std::vector<WeighedBlock> ranked;
  RankCandidates(part, 2, 3, &ranked);
  ASSERT_EQ(ranked.size(), 3U);
  EXPECT_EQ(ranked[0].choice.slot, 7);
  EXPECT_EQ(ranked[1].choice.slot, 6);
  EXPECT_EQ(ranked[2].choice.slot, 5);
}

TEST(GainOver, IsWhatTheFormerChoiceWouldHaveLost) {
  const std::vector<WeighedBlock> all = {
      {0.5F, {1, Position{1}}}, {0.25F, {2, Position{2}}}, {0.125F, {3, Position{3}}}};
  const auto kept = std::span(all).first(2);
  const std::vector<RecallChoice> former = {{2, Position{2}}, {3, Position{3}}};
  EXPECT_DOUBLE_EQ(GainOver(former, kept, all), 0.5 + 0.25 - 0.25 - 0.125);
  EXPECT_DOUBLE_EQ(GainOver({}, kept, all), 0.75);
  EXPECT_DOUBLE_EQ(
      GainOver(std::vector<RecallChoice>{{1, Position{1}}, {2, Position{2}}}, kept, all), 0.0);
}

}  // namespace
}  // namespace carousel
