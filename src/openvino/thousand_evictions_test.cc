// SPDX-License-Identifier: Apache-2.0
// On real weights: after a thousand evictions, one a step, every block that is left holds the codes
// that it was written with, in every layer, and the next tokens' likelihoods are to the last bit
// those of a cache out of which everything else went at once.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attention/paged_attention.h"
#include "engine/layer_attention.h"
#include "engine/logits.h"
#include "engine/sequence.h"
#include "engine/settings.h"
#include "engine/shared_cache.h"
#include "openvino/openvino_model.h"
#include "testing/default_model.h"

namespace carousel {
namespace {

using ::carousel::testing::DefaultModelDirectory;

constexpr std::int64_t kBlock = 8;
constexpr std::int64_t kSteps = 1040;
constexpr std::int64_t kLeastEvictions = 1000;

// A stream that repeats itself now and then and otherwise wanders through the vocabulary.
std::vector<TokenId> Tokens(std::int64_t count, std::int64_t vocabulary) {
  std::vector<TokenId> tokens;
  std::uint64_t state = 1;
  for (std::int64_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    tokens.push_back(
        i > 64 && (state >> 60) < 8
            ? tokens[static_cast<std::size_t>(i - 64)]
            : static_cast<TokenId>((state >> 33) % static_cast<std::uint64_t>(vocabulary)));
  }
  return tokens;
}

using Bytes = std::vector<std::byte>;

// Attends to copies of blocks that stand where one eviction of all the others leaves them.
class AttentionAfterOne : public AttentionCallback {
 public:
  // `blocks` [layers][block's place in the stream], the step's own among them.
  AttentionAfterOne(const Sequence& cache, const EngineSettings& settings,
                    const std::vector<AttentionLayerSpec>& layers, const StepPlan& plan,
                    const std::vector<std::map<std::int64_t, Bytes>>& blocks)
      : cache_(cache), settings_(settings), layers_(layers), plan_(plan), blocks_(blocks) {
    for (const LayerRope& rope : settings.rope.layers) rotations_.emplace_back(rope, kBlock);
  }

  void Attend(std::int64_t layer, std::int64_t tokens, const float* q, const float* /*k*/,
              const float* /*v*/, float* out) override {
    const auto index = static_cast<std::size_t>(layer);
    const auto entries = cache_.tables().table(layer).entries();
    const auto kept = std::ssize(entries);
    // Positions are counted anew: the i-th block left stands at i * block_size, the step's at the
    // end.
    const std::int64_t first_query = (kept - 1) * kBlock;
    std::vector<AttentionBlock> blocks;
    for (std::int64_t i = 0; i < kept; ++i) {
      const TableEntry& entry = entries[static_cast<std::size_t>(i)];
      const std::int64_t shift =
          (first_query - i * kBlock) - (plan_.position_ids.front() - entry.written.value);
      rotations_[index].Extend(std::abs(shift) / kBlock);
      blocks.push_back({.data = blocks_[index].at(entry.logical.value).data(),
                        .shape = &settings_.shapes[index],
                        .tokens = kBlock,
                        .shift_blocks = shift / kBlock,
                        .attention = Position{i * kBlock},
                        .logical = entry.logical});
    }
    attention_.Run({{.layer = &layers_[index],
                     .kv_heads = layers_[index].kv_heads,
                     .block_size = kBlock,
                     .rotation = &rotations_[index],
                     .blocks = blocks,
                     .queries = tokens,
                     .first_query_attention = Position{first_query},
                     .first_query_logical = plan_.first_query_logical,
                     .q = q},
                    {.out = out}});
  }

 private:
  const Sequence& cache_;
  const EngineSettings& settings_;
  const std::vector<AttentionLayerSpec>& layers_;
  const StepPlan& plan_;
  const std::vector<std::map<std::int64_t, Bytes>>& blocks_;
  std::vector<RotationTable> rotations_;
  PagedAttention attention_;
};

TEST(ThousandEvictionsOfTheDefaultModel, LeaveWhatOneLeaves) {
  if (!std::filesystem::exists(DefaultModelDirectory()))
    GTEST_SKIP() << "there is no model at " << DefaultModelDirectory();
  const std::unique_ptr<Model> model = LoadOpenVinoModel({.directory = DefaultModelDirectory()});
  EngineConfig config;
  config.cache = {.block_size = kBlock, .key_type = KvType::kInt8, .value_type = KvType::kInt8};
  config.chunk_size = kBlock;
  config.eviction->start_size = kBlock;
  config.eviction->recent_size = 2 * kBlock;
  config.eviction->max_cache_size = 16 * kBlock;
  config.eviction->policy = "snapkv";
  config.eviction->positions = PositionPolicy::kCompact;
  const EngineSettings settings = Settle(*model, config);
  ASSERT_EQ(settings.rules.rotation, Rotation::kQuery);
  const auto& layers = model->spec().layers;
  const auto layer_count = layers.size();
  ASSERT_EQ(settings.groups.size(), layer_count);
  CacheMemory memory(layers, 0);
  SharedCache shared(settings, &memory);
  Sequence cache(&shared);
  LayerAttention attention(&memory);
  const std::vector<TokenId> tokens = Tokens(kSteps * kBlock, model->spec().vocabulary_size);
  const std::vector<std::int64_t> all_rows = {0, 1, 2, 3, 4, 5, 6, 7};

  std::vector<std::map<std::int64_t, Bytes>> written(layer_count);
  std::int64_t evictions = 0;
  const StepPlan* plan = nullptr;
  std::vector<float> logits;
  for (std::int64_t step = 0; step < kSteps; ++step) {
    plan = &cache.Plan({.tokens = kBlock, .is_prompt = true, .prompt_left = kBlock});
    if (plan->evicted_tokens > 0) ++evictions;
    const auto now = std::span(tokens).subspan(static_cast<std::size_t>(step * kBlock), kBlock);
    // Logits are a fifth of a step's work, and only the last step's are looked at.
    const auto rows = std::span(all_rows).first(step + 1 == kSteps ? all_rows.size() : 0);
    attention.Begin(&cache);
    const std::span<const float> given = model->Forward({now, plan->position_ids, rows}, attention);
    cache.Commit(now, 0);
    logits.assign(given.begin(), given.end());
    for (std::size_t layer = 0; layer < layer_count; ++layer) {
      const AttentionBlock& block = plan->stages[0].groups[layer].blocks.back();
      written[layer][block.logical.value] =
          Bytes(block.data, block.data + settings.shapes[layer].bytes());
    }
  }
  ASSERT_GE(evictions, kLeastEvictions);

  for (std::size_t layer = 0; layer < layer_count; ++layer) {
    for (const AttentionBlock& block : plan->stages[0].groups[layer].blocks) {
      const Bytes held(block.data, block.data + settings.shapes[layer].bytes());
      EXPECT_EQ(held, written[layer].at(block.logical.value))
          << "layer " << layer << ", token " << block.logical.value;
    }
  }

  AttentionAfterOne after_one(cache, settings, layers, *plan, written);
  const auto last = std::span(tokens).last(kBlock);
  const std::span<const float> again =
      model->Forward({last, plan->position_ids, all_rows}, after_one);
  EXPECT_EQ(std::vector<float>(again.begin(), again.end()), logits);
  const auto vocabulary = static_cast<std::size_t>(model->spec().vocabulary_size);
  double thousand = 0.0;
  double one = 0.0;
  for (std::size_t row = 0; row + 1 < kBlock; ++row) {
    const auto next = static_cast<std::size_t>(last[row + 1]);
    const std::span<const float> before = std::span(logits).subspan(row * vocabulary, vocabulary);
    const std::span<const float> after = again.subspan(row * vocabulary, vocabulary);
    thousand += LogSumExp(before) - static_cast<double>(before[next]);
    one += LogSumExp(after) - static_cast<double>(after[next]);
  }
  EXPECT_EQ(std::exp(thousand / (kBlock - 1)), std::exp(one / (kBlock - 1)));
  RecordProperty("evictions", std::to_string(evictions));
}

}  // namespace
}  // namespace carousel
