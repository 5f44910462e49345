// SPDX-License-Identifier: Apache-2.0
// The kernel against the dense double-precision reference, over random block tables: appended,
// evicted, shifted, partly filled, with every kind of layer.
#include "attention/paged_attention.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <span>

#include "attention/reference.h"
#include "base/parallel.h"
#include "cache/block_codec.h"
#include "cache/block_pools.h"
#include "cache/block_table.h"
#include "cache/plane_layout.h"
#include "rope/rotate.h"
#include "testing/random_cases.h"
#include "testing/rounding_bound.h"

namespace carousel {
namespace {

// A task with memory of its own.
struct OwnTask {
  AttentionInput input;
  std::vector<AttentionBlock> blocks;
  std::vector<float> q;
  std::vector<float> out;
  std::vector<float> mass;
  std::size_t misaligned = 0;  // numbers before the first of q, out and mass

  // Moves all three away from where vectors of numbers begin.
  void Misalign(std::size_t numbers) {
    misaligned += numbers;
    for (std::vector<float>* list : {&q, &out}) list->insert(list->begin(), numbers, 0.0F);
    if (!mass.empty()) mass.insert(mass.begin(), numbers, 0.0F);
  }
  std::vector<float> Out() const {
    return {out.begin() + static_cast<std::ptrdiff_t>(misaligned), out.end()};
  }
  std::vector<float> Mass() const {
    if (mass.empty()) return {};
    return {mass.begin() + static_cast<std::ptrdiff_t>(misaligned), mass.end()};
  }

  // Forgets what came out of a run, so that it is seen whether the next writes all of it.
  AttentionTask Anew() {
    std::fill(out.begin(), out.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(mass.begin(), mass.end(), std::numeric_limits<float>::quiet_NaN());
    input.blocks = blocks;
    input.q = q.data() + misaligned;
    const std::span<float> all = mass;
    return {input,
            {.out = out.data() + misaligned,
             .token_mass = mass.empty() ? all : all.subspan(misaligned)}};
  }
};

struct Case {
  AttentionLayerSpec layer;
  LayerRope rope;
  BlockShape shape;
  PositionRules rules;
  std::int64_t steps = 4;
  std::int64_t queries = 1;
  std::int64_t counted = 0;
};

// The largest length of vectors of `dim` numbers that lie side by side.
template <class Numbers>
double LargestLength(const Numbers& numbers, std::int64_t dim) {
  double largest = 0.0;
  for (auto vector = numbers.begin(); vector != numbers.end(); vector += dim) {
    double squares = 0.0;
    for (auto x = vector; x != vector + dim; ++x)
      squares += static_cast<double>(*x) * static_cast<double>(*x);
    largest = std::max(largest, squares);
  }
  return std::sqrt(largest);
}

// As the cache will hold them, so that only what attention rounds is judged. Of f16 what Highway's
// emulation does not know, subnormals, is 0.
void RoundAsStored(KvType type, std::vector<float>* numbers) {
  if (type != KvType::kF16) return;
  std::vector<std::uint16_t> halves(numbers->size());
  FloatToHalf(numbers->data(), halves.data(), std::ssize(halves));
  HalfToFloat(halves.data(), numbers->data(), std::ssize(halves));
  for (float& x : *numbers)
    if (std::abs(x) < 0x1.0p-14F) x = 0.0F;
}

// A sequence as the naive cache sees it: every token with its key as it was written, and whether it
// is still there. Check judges f32 and f16.
class RandomSequence {
 public:
  RandomSequence(const Case& test_case, std::uint64_t seed)
      : case_(test_case),
        generator_(seed),
        pools_(std::vector<BlockShape>{test_case.shape}, 0),
        tables_(1, test_case.shape.block_size, test_case.rules),
        rotation_(test_case.rope.rotates()
                      ? std::make_unique<RotationTable>(test_case.rope, test_case.shape.block_size)
                      : nullptr) {}

  // Evicts at random and appends, some times; the last step has case.queries tokens.
  void Grow() {
    for (std::int64_t step = 0; step < case_.steps; ++step) {
      EvictSome();
      AppendTokens(step + 1 == case_.steps ? case_.queries : Below(3 * case_.shape.block_size) + 1);
    }
  }

  void Check() {
    std::vector<float> q = Normal(case_.queries * case_.layer.query_heads * case_.layer.key_dim);
    std::vector<ReferenceQuery> reference_queries;
    RotateQueries(&q, &reference_queries);
    const ReferenceOutput expected =
        ReferenceAttention(case_.layer, case_.rope, Survivors(), reference_queries);

    const auto filled = static_cast<std::size_t>(tables_.table(0).resident_tokens());
    OwnTask task = TaskOf(std::move(q));
    PagedAttention attention;
    attention.Run(task.Anew());
    ExpectClose(expected, Bound(reference_queries), task.out, task.mass, filled);
  }

  OwnTask RandomTask() {
    return TaskOf(Normal(case_.queries * case_.layer.query_heads * case_.layer.key_dim));
  }

 private:
  OwnTask TaskOf(std::vector<float> q) {
    OwnTask task{
        .input = {.layer = &case_.layer,
                  .kv_heads = case_.layer.kv_heads,
                  .block_size = case_.shape.block_size,
                  .rotation = rotation_.get(),
                  .blocks = {},
                  .queries = case_.queries,
                  .first_query_attention = tables_.NextAttentionPosition(0) + -case_.queries,
                  .first_query_logical = tables_.logical_length() + -case_.queries,
                  .counted_queries = case_.counted},
        .blocks = Blocks(),
        .q = std::move(q),
        .out = {},
        .mass = {}};
    task.out.resize(
        static_cast<std::size_t>(case_.queries * case_.layer.query_heads * case_.layer.value_dim));
    if (case_.counted > 0)
      task.mass.resize(task.blocks.size() * static_cast<std::size_t>(case_.shape.block_size));
    return task;
  }

  std::int64_t Below(std::int64_t limit) {
    return static_cast<std::int64_t>(generator_() % static_cast<std::uint64_t>(limit));
  }

  std::vector<float> Normal(std::int64_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(generator_);
    return values;
  }

  void EvictSome() {
    const auto entries = tables_.table(0).entries();
    std::vector<std::int64_t> victims;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (entries[i].tokens == case_.shape.block_size && Below(3) == 0)
        victims.push_back(static_cast<std::int64_t>(i));
    }
    for (auto victim = victims.rbegin(); victim != victims.rend(); ++victim) {
      tokens_.erase(tokens_.begin() + *victim * case_.shape.block_size,
                    tokens_.begin() + (*victim + 1) * case_.shape.block_size);
    }
    tables_.Evict(0, victims, pools_.of(0));
  }

  void AppendTokens(std::int64_t tokens) {
    tables_.BeginStep(tokens);
    if (rotation_ != nullptr) rotation_->Extend(1000);
    if (case_.rules.rotation == Rotation::kKeys) RotateKeys();
    const Position first_written = tables_.next_written();
    tables_.Append(tokens, pools_);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const Position logical = tables_.logical_length() + (t - tokens);
      StoreToken(logical, first_written + t);
    }
    tables_.CheckIntegrity();
  }

  void RotateKeys() {
    const auto entries = tables_.table(0).entries();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const std::int64_t delta =
          -tables_.ShiftOf(0, static_cast<std::int64_t>(i)) / case_.shape.block_size;
      if (delta == 0 || rotation_ == nullptr) continue;
      auto* keys = reinterpret_cast<float*>(pools_.of(0).data(entries[i].block));
      for (std::int64_t head = 0; head < case_.shape.kv_heads; ++head) {
        float* const plane[] = {
            keys + head * static_cast<std::int64_t>(case_.shape.key_plane_bytes() / sizeof(float))};
        RotateKeyBlocks(*rotation_, KeyLayout::kDimensionMajor, 1, case_.shape.key_dim, plane,
                        {.multiples = {&delta, 1}, .columns = 1});
      }
    }
    tables_.KeysRotated(0);
  }

  // Writes R(a) k to the block, as the model would, and keeps it for the reference.
  void StoreToken(Position logical, Position written) {
    const AttentionLayerSpec& layer = case_.layer;
    const auto entries = tables_.table(0).entries();
    std::size_t at = entries.size() - 1;
    while (entries[at].logical > logical) --at;
    std::byte* data = pools_.of(0).data(entries[at].block);
    if (logical == entries[at].logical) PoisonBlock(data);
    const std::vector<float> plain = Normal(layer.kv_heads * layer.key_dim);
    std::vector<float> value = Normal(layer.kv_heads * layer.value_dim);
    RoundAsStored(case_.shape.value_type, &value);
    ReferenceToken token{.written = written, .attention = {}, .logical = logical};
    const std::vector<double> exact(plain.begin(), plain.end());
    for (std::int64_t head = 0; head < layer.kv_heads; ++head) {
      std::vector<double> rotated(static_cast<std::size_t>(layer.key_dim));
      RotateVectorReference(case_.rope, static_cast<double>(written.value), layer.key_dim,
                            exact.data() + head * layer.key_dim, rotated.data());
      std::vector<float> key(rotated.begin(), rotated.end());
      RoundAsStored(case_.shape.key_type, &key);
      token.key.insert(token.key.end(), key.begin(), key.end());
      CodecFor(case_.shape.key_type)
          .WriteKeys(data + case_.shape.key_offset(head), case_.shape.block_size, layer.key_dim,
                     logical - entries[at].logical, 1, key.data(), layer.key_dim);
      CodecFor(case_.shape.value_type)
          .WriteValues(data + case_.shape.value_offset(head), case_.shape.block_size,
                       layer.value_dim, logical - entries[at].logical, 1,
                       value.data() + head * layer.value_dim, layer.value_dim);
    }
    token.value.assign(value.begin(), value.end());
    tokens_.push_back(std::move(token));
  }

  // Slots that nobody wrote hold NaN: they must not leak.
  void PoisonBlock(std::byte* data) { std::memset(data, 0xff, case_.shape.bytes()); }

  // Positions worked out anew from the list of survivors: nothing here comes from the block table
  // but its mode.
  std::vector<ReferenceToken> Survivors() const {
    std::vector<ReferenceToken> survivors = tokens_;
    for (std::size_t i = 0; i < survivors.size(); ++i) {
      survivors[i].attention = tables_.mode() == PositionPolicy::kKeep
                                   ? survivors[i].logical
                                   : Position{static_cast<std::int64_t>(i)};
    }
    return survivors;
  }

  void RotateQueries(std::vector<float>* q, std::vector<ReferenceQuery>* reference) {
    const AttentionLayerSpec& layer = case_.layer;
    const auto kept = static_cast<std::int64_t>(tokens_.size());
    for (std::int64_t i = 0; i < case_.queries; ++i) {
      const Position written = tables_.next_written() + (i - case_.queries);
      const Position logical = tables_.logical_length() + (i - case_.queries);
      float* row = q->data() + i * layer.query_heads * layer.key_dim;
      ReferenceQuery query{.written = {}, .attention = {}, .logical = logical};
      query.attention =
          tables_.mode() == PositionPolicy::kKeep ? logical : Position{kept - case_.queries + i};
      query.query.assign(row, row + layer.query_heads * layer.key_dim);
      for (std::int64_t head = 0; head < layer.query_heads; ++head) {
        std::vector<double> rotated(static_cast<std::size_t>(layer.key_dim));
        RotateVectorReference(case_.rope, static_cast<double>(written.value), layer.key_dim,
                              query.query.data() + head * layer.key_dim, rotated.data());
        std::copy(rotated.begin(), rotated.end(), row + head * layer.key_dim);
      }
      reference->push_back(std::move(query));
    }
  }

  std::vector<AttentionBlock> Blocks() {
    std::vector<AttentionBlock> blocks;
    const auto entries = tables_.table(0).entries();
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const auto entry = static_cast<std::int64_t>(i);
      blocks.push_back({.data = pools_.of(0).data(entries[i].block),
                        .shape = &case_.shape,
                        .tokens = entries[i].tokens,
                        .shift_blocks = tables_.ShiftOf(0, entry) / case_.shape.block_size,
                        .attention = tables_.AttentionPosition(0, entry),
                        .logical = entries[i].logical});
    }
    return blocks;
  }

  AttentionBound Bound(const std::vector<ReferenceQuery>& queries) const {
    double query_length = 0.0;
    double key_length = 0.0;
    for (const ReferenceQuery& query : queries)
      query_length = std::max(query_length, LargestLength(query.query, case_.layer.key_dim));
    for (const ReferenceToken& token : tokens_)
      key_length = std::max(key_length, LargestLength(token.key, case_.layer.key_dim));
    // A query sees itself, which ALiBi takes nothing off. Keys are rotated once a step at most.
    return AttentionBound({.key_dim = case_.layer.key_dim,
                           .tokens = std::ssize(tokens_),
                           .rotations = case_.rules.rotation == Rotation::kKeys ? case_.steps : 1,
                           .scale = static_cast<double>(case_.layer.scale),
                           .query = query_length,
                           .key = key_length});
  }

  void ExpectClose(const ReferenceOutput& expected, const AttentionBound& bound,
                   const std::vector<float>& out, const std::vector<float>& mass,
                   std::size_t filled) const {
    for (std::size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(static_cast<double>(out[i]), expected.out[i], bound.Output(expected.magnitude[i]))
          << "output " << i;
    }
    const auto rows = static_cast<double>(case_.layer.query_heads * case_.counted);
    for (std::size_t t = 0; t < mass.size(); ++t) {
      double sum = 0.0;
      for (std::int64_t i = case_.queries - case_.counted; t < filled && i < case_.queries; ++i) {
        sum += expected.mass[static_cast<std::size_t>(i) * filled + t];
      }
      ASSERT_NEAR(static_cast<double>(mass[t]), sum, bound.Mass(sum, rows)) << "mass " << t;
    }
  }

  Case case_;
  std::mt19937_64 generator_;
  BlockPools pools_;
  SequenceTables tables_;
  std::unique_ptr<RotationTable> rotation_;
  std::vector<ReferenceToken> tokens_;  // survivors, plain keys
};

Case RandomCase(std::mt19937_64* generator) {
  const auto pick = [&](std::initializer_list<std::int64_t> from) {
    return *(from.begin() + static_cast<std::ptrdiff_t>((*generator)() % from.size()));
  };
  Case c;
  const std::int64_t kv_heads = pick({1, 2, 3});
  c.layer = {.query_heads = kv_heads * pick({1, 2, 3}),
             .kv_heads = kv_heads,
             .key_dim = pick({8, 10, 16, 36}),
             .value_dim = pick({8, 12, 16})};
  c.layer.scale = 1.0F / std::sqrt(static_cast<float>(c.layer.key_dim));
  c.shape = {.block_size = pick({8, 16, 32}),
             .kv_heads = kv_heads,
             .key_dim = c.layer.key_dim,
             .value_dim = c.layer.value_dim,
             .key_type = KvType::kF32,
             .value_type = KvType::kF32};
  const std::int64_t rotated = pick({0, c.layer.key_dim, c.layer.key_dim / 2 / 2 * 2});
  if (rotated > 0) {
    c.rope = {.pairing = pick({0, 1}) == 0 ? Pairing::kHalves : Pairing::kNeighbours,
              .rotated_dims = rotated,
              .frequencies = PlainFrequencies(10000.0, rotated)};
  }
  constexpr PositionPolicy kPolicies[] = {PositionPolicy::kAuto, PositionPolicy::kKeep,
                                          PositionPolicy::kCompact};
  c.rules = {.policy = kPolicies[pick({0, 1, 2})],
             .rotation = pick({0, 1}) == 0 ? Rotation::kQuery : Rotation::kKeys,
             .trained_window = pick({200, 400, 4000}),
             .max_step_tokens = 3 * c.shape.block_size};
  c.steps = pick({1, 2, 3, 5, 8});
  c.queries = pick({1, 1, 2, 5, 40});
  c.counted = std::min(c.queries, pick({0, 1, 8, 40}));
  if (pick({0, 0, 0, 1}) == 1) c.layer.sliding_window = pick({5, 20, 50});
  if (pick({0, 0, 0, 1}) == 1) c.layer.soft_cap = 3.0F;
  if (pick({0, 0, 0, 1}) == 1)
    c.layer.alibi_slopes.assign(static_cast<std::size_t>(c.layer.query_heads), 0.1F);
  if (pick({0, 0, 0, 1}) == 1)
    c.layer.sinks.assign(static_cast<std::size_t>(c.layer.query_heads), 0.7F);
  return c;
}

TEST(PagedAttention, EqualsDenseOverTenThousandRandomTables) {
  std::mt19937_64 generator(2026);
  for (int i = 0; i < RandomCases(10000); ++i) {
    SCOPED_TRACE(i);
    const Case c = RandomCase(&generator);
    RandomSequence sequence(c, generator());
    sequence.Grow();
    sequence.Check();
    if (HasFatalFailure()) return;
  }
}

TEST(PagedAttention, EqualsDenseOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    std::mt19937_64 generator(5);
    for (int i = 0; i < RandomCases(200); ++i) {
      Case c = RandomCase(&generator);
      if (i % 2 == 0) c.shape.key_type = c.shape.value_type = KvType::kF16;
      // Real head sizes, those that are no power of two too.
      if (i % 8 == 0) {
        c.layer.key_dim = c.shape.key_dim = (i % 16 == 0) ? 64 : 80;
        c.layer.value_dim = c.shape.value_dim = (i % 16 == 0) ? 128 : 72;
        c.rope = {};
      }
      if (c.shape.key_type == KvType::kF16 && c.rules.rotation == Rotation::kKeys) continue;
      RandomSequence sequence(c, generator());
      sequence.Grow();
      sequence.Check();
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

// Every kind of layer with every kind of head size, none left to chance.
TEST(PagedAttention, EveryKindOfLayerAndHeadSizeOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    std::mt19937_64 generator(29);
    for (const std::int64_t dim : {32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256}) {
      for (unsigned kinds = 0; kinds < 16; ++kinds) {
        SCOPED_TRACE(::testing::Message() << "head size " << dim << ", kinds " << kinds);
        Case c = RandomCase(&generator);
        c.layer.key_dim = c.shape.key_dim = dim;
        c.layer.value_dim = c.shape.value_dim = dim;
        c.layer.scale = 1.0F / std::sqrt(static_cast<float>(dim));
        c.rope = {.rotated_dims = dim, .frequencies = PlainFrequencies(10000.0, dim)};
        // One query as in decode, or more rows than a tile has.
        c.queries = kinds % 3 == 0 ? 40 : 1;
        c.counted = std::min<std::int64_t>(c.queries, 8);
        const auto heads = static_cast<std::size_t>(c.layer.query_heads);
        c.layer.sliding_window = (kinds & 1U) != 0 ? 37 : 0;
        c.layer.soft_cap = (kinds & 2U) != 0 ? 3.0F : 0.0F;
        c.layer.alibi_slopes.assign((kinds & 4U) != 0 ? heads : 0, 0.1F);
        c.layer.sinks.assign((kinds & 8U) != 0 ? heads : 0, 0.7F);
        RandomSequence sequence(c, generator());
        sequence.Grow();
        sequence.Check();
        if (HasFatalFailure()) return;
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

// Blocks of codes, and the same blocks as the floats that the codes stand for.
class CodedBlocks {
 public:
  CodedBlocks(const Case& test_case, std::int64_t count, std::int64_t last_tokens,
              std::mt19937_64* generator)
      : coded_shape_(test_case.shape), float_shape_(test_case.shape) {
    float_shape_.key_type = float_shape_.value_type = KvType::kF32;
    const std::int64_t block_size = coded_shape_.block_size;
    for (std::int64_t i = 0; i < count; ++i) {
      // Where keys need whole blocks, a block that is not full is f32 beside the others.
      const bool is_last = i + 1 == count;
      const bool is_open =
          is_last && last_tokens < block_size && KeysNeedWholeBlocks(coded_shape_.key_type);
      const BlockShape& shape = is_open ? float_shape_ : coded_shape_;
      coded_.emplace_back(shape.bytes());
      floats_.emplace_back(float_shape_.bytes());
      Fill(shape, generator);
      AttentionBlock block{.data = coded_.back().data(),
                           .shape = &shape,
                           .tokens = is_last ? last_tokens : block_size,
                           .shift_blocks = test_case.rope.rotates() ? i % 3 : 0,
                           .attention = Position{i * block_size},
                           .logical = Position{i * block_size}};
      coded_blocks_.push_back(block);
      block.data = floats_.back().data();
      block.shape = &float_shape_;
      float_blocks_.push_back(block);
    }
  }
  CodedBlocks(const CodedBlocks&) = delete;
  CodedBlocks& operator=(const CodedBlocks&) = delete;

  std::span<const AttentionBlock> coded() const { return coded_blocks_; }
  std::span<const AttentionBlock> floats() const { return float_blocks_; }

  // What attention over these blocks may be off by, as codes or as floats, and an output's
  // magnitude at most.
  AttentionBound Bound(const AttentionLayerSpec& layer, const std::vector<float>& q,
                       bool as_codes) const {
    AttentionNorms norms{.key_dim = layer.key_dim,
                         .tokens = std::ssize(coded_blocks_) * coded_shape_.block_size,
                         .scale = static_cast<double>(layer.scale),
                         .query = LargestLength(q, layer.key_dim),
                         .key = key_length_};
    if (as_codes && coded_shape_.key_type == KvType::kInt8) {
      for (const float x : q)
        norms.rounded_query = std::max(norms.rounded_query, std::abs(static_cast<double>(x)));
    }
    if (as_codes && coded_shape_.value_type == KvType::kInt8) norms.rounded_values = value_length_;
    return AttentionBound(norms);
  }
  double largest_value() const { return largest_value_; }

 private:
  void MeasureKeys(const float* plane) {  // [key_dim, block_size]
    for (std::int64_t t = 0; t < float_shape_.block_size; ++t) {
      double squares = 0.0;
      for (std::int64_t d = 0; d < float_shape_.key_dim; ++d) {
        const auto x = static_cast<double>(plane[d * float_shape_.block_size + t]);
        squares += x * x;
      }
      key_length_ = std::max(key_length_, std::sqrt(squares));
    }
  }

  void MeasureValues(const float* plane) {  // [block_size, value_dim]
    for (std::int64_t d = 0; d < float_shape_.value_dim; ++d) {
      double squares = 0.0;
      for (std::int64_t t = 0; t < float_shape_.block_size; ++t) {
        const auto x = static_cast<double>(plane[t * float_shape_.value_dim + d]);
        squares += x * x;
        largest_value_ = std::max(largest_value_, std::abs(x));
      }
      value_length_ = std::max(value_length_, std::sqrt(squares));
    }
  }

  void Fill(const BlockShape& shape, std::mt19937_64* generator) {
    std::normal_distribution<float> normal;
    std::byte* coded = coded_.back().data();
    std::byte* plain = floats_.back().data();
    std::vector<float> keys(static_cast<std::size_t>(shape.block_size * shape.key_dim));
    std::vector<float> values(static_cast<std::size_t>(shape.block_size * shape.value_dim));
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      for (float& x : keys) x = normal(*generator);
      for (float& x : values) x = normal(*generator);
      std::byte* key_plane = coded + shape.key_offset(head);
      std::byte* value_plane = coded + shape.value_offset(head);
      CodecFor(shape.key_type).RewriteKeys(key_plane, shape.block_size, shape.key_dim, keys.data());
      CodecFor(shape.value_type)
          .WriteValues(value_plane, shape.block_size, shape.value_dim, 0, shape.block_size,
                       values.data(), shape.value_dim);
      auto* float_keys = reinterpret_cast<float*>(plain + float_shape_.key_offset(head));
      auto* float_values = reinterpret_cast<float*>(plain + float_shape_.value_offset(head));
      CodecFor(shape.key_type).ReadKeys(key_plane, shape.block_size, shape.key_dim, float_keys);
      CodecFor(shape.value_type)
          .ReadValues(value_plane, shape.block_size, shape.value_dim, float_values);
      MeasureKeys(float_keys);
      MeasureValues(float_values);
    }
  }

  BlockShape coded_shape_;
  BlockShape float_shape_;
  std::vector<AlignedBuffer<std::byte>> coded_;
  std::vector<AlignedBuffer<std::byte>> floats_;
  std::vector<AttentionBlock> coded_blocks_;
  std::vector<AttentionBlock> float_blocks_;
  // The largest of all blocks and heads.
  double key_length_ = 0.0;
  double value_length_ = 0.0;  // of a channel of a block
  double largest_value_ = 0.0;
};

constexpr KvType kAllTypes[] = {KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8,
                                KvType::kInt4};

// f32 blocks are judged by the dense reference; every other type by f32 blocks of the same numbers.
TEST(PagedAttention, CodesGiveWhatTheirFloatsGiveOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    if (target > HWY_AVX2) continue;  // below, Highway's emulation of f16 knows no subnormals
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    std::mt19937_64 generator(17);
    for (int i = 0; i < RandomCases(500); ++i) {
      const auto pick = [&](std::initializer_list<std::int64_t> from) {
        return *(from.begin() + static_cast<std::ptrdiff_t>(generator() % from.size()));
      };
      Case c = RandomCase(&generator);
      c.layer.key_dim = c.shape.key_dim = pick({32, 64, 80, 96, 128, 256});
      c.layer.value_dim = c.shape.value_dim = pick({32, 64, 72, 80, 128, 256});
      c.layer.scale = 1.0F / std::sqrt(static_cast<float>(c.layer.key_dim));
      c.shape.block_size = pick({16, 32, 48});
      c.shape.key_type = kAllTypes[i % 5];
      c.shape.value_type = kAllTypes[i / 5 % 5];
      if (c.rope.rotates()) {
        c.rope.rotated_dims = c.layer.key_dim;
        c.rope.frequencies = PlainFrequencies(10000.0, c.layer.key_dim);
      }
      std::optional<RotationTable> table;
      if (c.rope.rotates()) table.emplace(c.rope, c.shape.block_size).Extend(3);
      const std::int64_t count = pick({1, 2, 5, 20});
      const std::int64_t last = pick({1, c.shape.block_size / 2, c.shape.block_size});
      const CodedBlocks blocks(c, count, last, &generator);
      const std::int64_t context = (count - 1) * c.shape.block_size + last;
      c.queries = std::min(c.queries, context);
      c.counted = std::min(c.counted, c.queries);
      std::normal_distribution<float> normal;
      std::vector<float> q(
          static_cast<std::size_t>(c.queries * c.layer.query_heads * c.layer.key_dim));
      for (float& x : q) x = normal(generator);
      std::vector<float> outputs[2];
      std::vector<float> masses[2];
      for (const bool coded : {false, true}) {
        std::vector<float>& out = outputs[coded ? 1 : 0];
        std::vector<float>& mass = masses[coded ? 1 : 0];
        out.resize(static_cast<std::size_t>(c.queries * c.layer.query_heads * c.layer.value_dim));
        mass.resize(c.counted == 0 ? 0 : static_cast<std::size_t>(count * c.shape.block_size));
        PagedAttention attention;
        attention.Run({{.layer = &c.layer,
                        .kv_heads = c.layer.kv_heads,
                        .block_size = c.shape.block_size,
                        .rotation = table ? &*table : nullptr,
                        .blocks = coded ? blocks.coded() : blocks.floats(),
                        .queries = c.queries,
                        .first_query_attention = Position{context - c.queries},
                        .first_query_logical = Position{context - c.queries},
                        .q = q.data(),
                        .counted_queries = c.counted},
                       {.out = out.data(), .token_mass = mass}});
      }
      const AttentionBound of_codes = blocks.Bound(c.layer, q, true);
      const AttentionBound of_floats = blocks.Bound(c.layer, q, false);
      const double tolerance =
          of_codes.Output(blocks.largest_value()) + of_floats.Output(blocks.largest_value());
      for (std::size_t at = 0; at < outputs[0].size(); ++at) {
        ASSERT_NEAR(static_cast<double>(outputs[1][at]), static_cast<double>(outputs[0][at]),
                    tolerance)
            << "case " << i << ", output " << at << ", key type " << i % 5 << ", value type "
            << i / 5 % 5;
      }
      const auto rows = static_cast<double>(c.layer.query_heads * c.counted);
      for (std::size_t at = 0; at < masses[0].size(); ++at) {
        const auto mass = static_cast<double>(masses[0][at]);
        ASSERT_NEAR(static_cast<double>(masses[1][at]), mass,
                    of_codes.Mass(mass, rows) + of_floats.Mass(mass, rows));
      }
    }
  }
  hwy::SetSupportedTargetsForTest(0);
}

// One head's planes of a block, as a block of one head.
AlignedBuffer<std::byte> OneHead(const AttentionBlock& block, std::int64_t head,
                                 const BlockShape& one_head) {
  AlignedBuffer<std::byte> copy(one_head.bytes());
  std::memcpy(copy.data() + one_head.key_offset(0), block.data + block.shape->key_offset(head),
              one_head.key_plane_bytes());
  std::memcpy(copy.data() + one_head.value_offset(0), block.data + block.shape->value_offset(head),
              one_head.value_plane_bytes());
  return copy;
}

// KV heads that keep different blocks, some of them blocks of their own, give side by side what
// each gives when all of the layer's heads read its blocks.
TEST(PagedAttention, TasksOfHeadsThatKeepDifferentBlocks) {
  std::mt19937_64 generator(23);
  const auto below = [&](std::size_t limit) { return generator() % limit; };
  for (int i = 0; i < RandomCases(300); ++i) {
    SCOPED_TRACE(i);
    Case c = RandomCase(&generator);
    c.shape.key_type = kAllTypes[below(4)];
    c.shape.value_type = kAllTypes[below(4)];
    c.queries = std::min<std::int64_t>(c.queries, c.shape.block_size);
    c.counted = std::min(c.counted, c.queries);
    std::optional<RotationTable> table;
    if (c.rope.rotates()) table.emplace(c.rope, c.shape.block_size).Extend(3);
    const std::int64_t count = 2 + static_cast<std::int64_t>(below(30));
    const CodedBlocks blocks(c, count, c.shape.block_size, &generator);
    BlockShape one_head = c.shape;
    one_head.kv_heads = 1;
    std::vector<AlignedBuffer<std::byte>> copies;
    copies.reserve(static_cast<std::size_t>(count * c.layer.kv_heads));
    std::vector<std::vector<AttentionBlock>> whole(static_cast<std::size_t>(c.layer.kv_heads));
    std::vector<std::vector<AttentionBlock>> own = whole;
    for (std::size_t head = 0; head < whole.size(); ++head) {
      for (std::int64_t b = 0; b < count; ++b) {
        if (b + 1 < count && below(3) == 0) continue;
        AttentionBlock block = blocks.coded()[static_cast<std::size_t>(b)];
        whole[head].push_back(block);
        block.first_head = static_cast<std::int64_t>(head);
        if (below(2) == 0) {
          copies.push_back(OneHead(block, block.first_head, one_head));
          block.data = copies.back().data();
          block.shape = &one_head;
          block.first_head = 0;
        }
        own[head].push_back(block);
      }
    }
    std::normal_distribution<float> normal;
    std::vector<float> q(
        static_cast<std::size_t>(c.queries * c.layer.query_heads * c.layer.key_dim));
    for (float& x : q) x = normal(generator);
    const std::int64_t width = c.layer.query_heads * c.layer.value_dim;
    std::vector<float> out(static_cast<std::size_t>(c.queries * width),
                           std::numeric_limits<float>::quiet_NaN());
    AttentionInput input{.layer = &c.layer,
                         .kv_heads = c.layer.kv_heads,
                         .block_size = c.shape.block_size,
                         .rotation = table ? &*table : nullptr,
                         .queries = c.queries,
                         .first_query_attention = Position{count * c.shape.block_size - c.queries},
                         .first_query_logical = Position{count * c.shape.block_size - c.queries},
                         .q = q.data(),
                         .counted_queries = c.counted};
    std::vector<std::vector<float>> masses(whole.size());
    std::vector<AttentionTask> tasks;
    for (std::size_t head = 0; head < whole.size(); ++head) {
      AttentionInput task = input;
      task.first_kv_head = static_cast<std::int64_t>(head);
      task.kv_heads = 1;
      task.blocks = own[head];
      masses[head].resize(
          c.counted == 0 ? 0 : own[head].size() * static_cast<std::size_t>(c.shape.block_size));
      tasks.push_back({task, {.out = out.data(), .token_mass = masses[head]}});
    }
    PagedAttention attention;
    attention.Run(tasks);

    // Both are rounded to 16 bits alike, and otherwise each for itself.
    const AttentionBound bound = blocks.Bound(c.layer, q, false);
    const double tolerance = 2 * bound.Output(blocks.largest_value());
    const std::int64_t group = c.layer.query_heads / c.layer.kv_heads;
    const auto rows = static_cast<double>(group * c.counted);
    for (std::size_t head = 0; head < whole.size(); ++head) {
      std::vector<float> expected(out.size());
      std::vector<float> alone(masses[head].size());
      input.blocks = whole[head];
      attention.Run({input, {.out = expected.data(), .token_mass = alone}});
      const std::int64_t first = static_cast<std::int64_t>(head) * group * c.layer.value_dim;
      for (std::int64_t query = 0; query < c.queries; ++query) {
        for (std::int64_t at = first; at < first + group * c.layer.value_dim; ++at) {
          const auto index = static_cast<std::size_t>(query * width + at);
          ASSERT_NEAR(static_cast<double>(out[index]), static_cast<double>(expected[index]),
                      tolerance)
              << "head " << head;
        }
      }
      AttentionInput task = tasks[head].input;
      attention.Run({task, {.out = expected.data(), .token_mass = alone}});
      for (std::size_t t = 0; t < alone.size(); ++t) {
        const auto mass = static_cast<double>(alone[t]);
        ASSERT_NEAR(static_cast<double>(masses[head][t]), mass, 2 * bound.Mass(mass, rows));
      }
    }
  }
}

// A long context in decode is split over threads; a long prompt is tiled.
TEST(PagedAttention, LongContexts) {
  std::mt19937_64 generator(11);
  for (const std::int64_t queries : {1, 3, 300}) {
    Case c = RandomCase(&generator);
    c.layer.sliding_window = 0;
    c.rules.policy = PositionPolicy::kCompact;
    c.steps = 40;
    c.queries = queries;
    c.counted = std::min<std::int64_t>(queries, 8);
    RandomSequence sequence(c, generator());
    sequence.Grow();
    sequence.Check();
  }
}

// A task alone and among others, on one thread and on several, and wherever its numbers lie, gives
// the same bits: what is added in which order hangs on the task's own columns.
TEST(PagedAttention, ATaskGivesTheSameBitsWhoeverRunsBesideItOnEveryTarget) {
  for (const auto target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    std::mt19937_64 generator(7);
    for (int batch = 0; batch < RandomCases(1000); ++batch) {
      SCOPED_TRACE(batch);
      SetThreadCount(1 + static_cast<std::int64_t>(generator() % 3));
      std::vector<std::unique_ptr<RandomSequence>> sequences;
      std::vector<OwnTask> tasks;
      std::vector<OwnTask> alone;
      for (std::size_t i = 0; i < 2 + generator() % 4; ++i) {
        Case c = RandomCase(&generator);
        constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kInt8};
        if (c.rules.rotation != Rotation::kKeys)
          c.shape.key_type = c.shape.value_type = kTypes[generator() % 3];
        if (generator() % 4 == 0) c.steps = 30;  // long enough to be split
        sequences.push_back(std::make_unique<RandomSequence>(c, generator()));
        sequences.back()->Grow();
        tasks.push_back(sequences.back()->RandomTask());
        alone.push_back(tasks.back());
        PagedAttention attention;
        attention.Run(alone.back().Anew());
      }
      SetThreadCount(1 + static_cast<std::int64_t>(generator() % 3));
      std::vector<AttentionTask> running;
      for (OwnTask& task : tasks) {
        task.Misalign(generator() % 4);
        running.push_back(task.Anew());
      }
      PagedAttention attention;
      attention.Run(running);
      for (std::size_t i = 0; i < tasks.size(); ++i) {
        ASSERT_EQ(tasks[i].Out(), alone[i].Out()) << i;
        ASSERT_EQ(tasks[i].Mass(), alone[i].Mass()) << i;
      }
    }
  }
  SetThreadCount(0);
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace
}  // namespace carousel
