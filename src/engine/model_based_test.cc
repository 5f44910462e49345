// SPDX-License-Identifier: Apache-2.0
// Random operations on an engine with many sequences, each of which is judged by three:
//
//   a naive stream, which keeps every token with its key before RoPE, and computes what comes next
//   by the formula from the blocks that the step attends to: the same distribution to 1e-4;
//   rules, which say which blocks these may be;
//   the same sequence alone in an engine that never fails, shares, forks or makes room: the same
//   words, likelihoods and tables, bit for bit.
//
// After each operation every block of every pool is held as often as somebody says that he holds
// it.
//
// CAROUSEL_RANDOM_OPERATIONS says how many operations. CAROUSEL_RANDOM_SEED says of which scenario,
// 500 of them, and all that follow where more are asked for.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cache/block_codec.h"
#include "carousel/engine.h"
#include "carousel/error.h"
#include "engine/engine_inside.h"
#include "engine/logits.h"
#include "engine/tiny_model.h"
#include "eviction/registry.h"
#include "testing/failing_memory.h"
#include "testing/naive_stream.h"
#include "testing/random_cases.h"
#include "testing/random_draws.h"
#include "testing/watched_model.h"

namespace carousel {
namespace {

constexpr double kTolerance = 1e-4;  // of a logarithm of a probability
constexpr std::int64_t kVocabulary = 32;
constexpr std::int64_t kOperationsOfAScenario = 500;
constexpr std::int64_t kMostSequences = 8;
constexpr std::int64_t kMostCheckpoints = 6;
constexpr std::int64_t kLongHistory = 700;  // tokens; a sequence of more is closed soon

// --- The journal ---------------------------------------------------------------------------------

// The last operations of the scenario at hand, told when a test fails or a CHECK aborts.
class Journal {
 public:
  static constexpr std::size_t kLines = 60;

  void Begin(std::uint64_t seed) {
    seed_ = seed;
    lines_.clear();
  }
  void Note(std::string line) {
    if (!lines_.empty() && lines_.back() == line) return;
    if (lines_.size() == kLines) lines_.pop_front();
    lines_.push_back(std::move(line));
  }
  void Tell() const {
    std::fprintf(stderr, "CAROUSEL_RANDOM_SEED=%llu; the last operations:\n",
                 static_cast<unsigned long long>(seed_));
    for (const std::string& line : lines_) std::fprintf(stderr, "  %s\n", line.c_str());
  }

 private:
  std::uint64_t seed_ = 0;
  std::deque<std::string> lines_;
};

Journal journal;

void TellAndAbort(int /*signal*/) {
  journal.Tell();
  std::signal(SIGABRT, SIG_DFL);
}

// --- What sequences are asked --------------------------------------------------------------------

template <typename T>
T OneOf(Generator* generator, std::initializer_list<T> from) {
  return *(from.begin() + Pick(generator, 0, std::ssize(from) - 1));
}

TinyModelOptions RandomModel(Generator* generator) {
  TinyModelOptions model{.layers = 2,
                         .query_heads = 4,
                         .kv_heads = 2,
                         .key_dim = 8,
                         .value_dim = 8,
                         .width = 16,
                         .vocabulary_size = kVocabulary,
                         .trained_window = OneOf<std::int64_t>(generator, {200, 600}),
                         .end_tokens = {5}};
  if (Pick(generator, 0, 3) == 0) model.layers = 1;
  if (model.layers == 2 && Pick(generator, 0, 3) == 0) model.sliding_window = {24, 0};
  if (Pick(generator, 0, 3) == 0) model.pairing = Pairing::kNeighbours;
  if (Pick(generator, 0, 3) == 0) model.query_heads = 2;
  model.seed = (*generator)();
  return model;
}

void DrawEviction(Generator* generator, EngineConfig* config) {
  const std::int64_t block = config->cache.block_size;
  EvictionConfig eviction{.start_size = block, .recent_size = block * Pick(generator, 1, 2)};
  eviction.max_cache_size =
      eviction.start_size + eviction.recent_size + block * Pick(generator, 2, block == 8 ? 4 : 2);
  const auto policies = RegisteredPolicies();
  eviction.policy =
      policies[static_cast<std::size_t>(Pick(generator, 0, std::ssize(policies) - 1))].name;
  if (Pick(generator, 0, 3) == 0) eviction.policy = "window";
  eviction.policy_seed = (*generator)();
  if (eviction.policy != "adaptive_rkv") eviction.kvcrush_budget = Pick(generator, 0, 5) / 5;
  eviction.grouping = OneOf(generator, {Grouping::kLayer, Grouping::kHead});
  eviction.budget = OneOf(generator, {Budget::kUniform, Budget::kUniform, Budget::kUniform,
                                      Budget::kPyramid, Budget::kAdaptive});
  eviction.rotation =
      OneOf(generator, {Rotation::kQuery, Rotation::kQuery, Rotation::kAuto, Rotation::kKeys});
  eviction.positions = OneOf(generator, {PositionPolicy::kAuto, PositionPolicy::kAuto,
                                         PositionPolicy::kKeep, PositionPolicy::kCompact});
  if (Pick(generator, 0, 5) == 0) eviction.prompt_eviction = PromptEviction::kAtEnd;
  config->eviction = eviction;
}

void DrawRecall(Generator* generator, EngineConfig* config) {
  config->recall = {};
  if (config->eviction->rotation == Rotation::kKeys || Pick(generator, 0, 2) == 0) return;
  config->recall = {.blocks = Pick(generator, 1, 3),
                    .chunk = Pick(generator, 1, 16),
                    .queries = Pick(generator, 1, 16),
                    .every = Pick(generator, 1, 4),
                    .promotion = OneOf(generator, {0.0, 0.5, 2.0})};
  if (Pick(generator, 0, 3) == 0)
    config->recall.limit_tokens = config->cache.block_size * Pick(generator, 2, 6);
  if (config->cache.key_type == config->cache.value_type && Pick(generator, 0, 5) > 0)
    config->recall.kv_type = config->cache.key_type;
}

EngineConfig RandomConfig(Generator* generator) {
  EngineConfig config;
  config.cache.block_size = OneOf<std::int64_t>(generator, {8, 8, 16});
  const auto type = [&] {
    return OneOf(generator, {KvType::kF32, KvType::kF32, KvType::kF32, KvType::kF16, KvType::kBf16,
                             KvType::kInt8, KvType::kInt8, KvType::kInt4});
  };
  config.cache.key_type = type();
  config.cache.value_type = Pick(generator, 0, 2) == 0 ? type() : config.cache.key_type;
  config.chunk_size = OneOf<std::int64_t>(generator, {16, 16, 20, 32});
  config.eviction.reset();
  if (Pick(generator, 0, 6) == 0) return config;
  DrawEviction(generator, &config);
  DrawRecall(generator, &config);
  return config;
}

// Whether the naive stream can hold what the cache holds: what is rounded once, where it was
// written, and not again.
bool IsJudged(const EngineConfig& config) {
  if (config.cache.key_type == KvType::kInt4 || config.cache.value_type == KvType::kInt4)
    return false;
  if (!config.eviction) return true;
  if (config.eviction->rotation == Rotation::kKeys && config.cache.key_type != KvType::kF32)
    return false;
  return config.recall.blocks == 0 || (config.recall.kv_type == config.cache.key_type &&
                                       config.recall.kv_type == config.cache.value_type);
}

std::string Describe(const EngineConfig& config) {
  std::string text =
      fmt::format("block {} chunk {} {}/{}", config.cache.block_size, config.chunk_size,
                  Name(config.cache.key_type), Name(config.cache.value_type));
  if (!config.eviction) return text;
  const EvictionConfig& eviction = *config.eviction;
  return text + fmt::format(
                    " {} {}+{} of {} {} {} {} {} {} crush {} recall {} chunk {} every {} "
                    "promotion {} limit {}",
                    eviction.policy, eviction.start_size, eviction.recent_size,
                    eviction.max_cache_size, Name(eviction.grouping), Name(eviction.budget),
                    Name(eviction.rotation), Name(eviction.positions),
                    Name(eviction.prompt_eviction), eviction.kvcrush_budget, config.recall.blocks,
                    config.recall.chunk, config.recall.every, config.recall.promotion,
                    config.recall.limit_tokens);
}

std::vector<TokenId> RandomTokens(Generator* generator, std::int64_t count) {
  std::vector<TokenId> tokens(static_cast<std::size_t>(count));
  for (TokenId& token : tokens) token = static_cast<TokenId>(Pick(generator, 0, kVocabulary - 1));
  return tokens;
}

std::vector<TokenId> Repeats(Generator* generator, std::int64_t count) {
  const std::vector<TokenId> pattern = RandomTokens(generator, Pick(generator, 2, 6));
  std::vector<TokenId> tokens;
  while (std::ssize(tokens) < count) tokens.push_back(pattern[tokens.size() % pattern.size()]);
  return tokens;
}

// --- What is known of a sequence -----------------------------------------------------------------

// A request that has ended, and what came of it.
struct Record {
  std::shared_ptr<const Record> before;
  RequestId id;
  Request request;
  bool is_cut = false;           // cancelled or expired
  std::int64_t length = 0;       // of the history when it ended
  std::int64_t said = 0;         // tokens by then
  bool begins_a_step = false;    // cut after a step whose evictions were done and that failed
  bool can_be_repeated = true;   // alone
  std::vector<double> numbers;   // what was said and how likely it was
  std::vector<double> standing;  // of the sequence, when it ended
};

// What lasts of a sequence from request to request, and what a checkpoint has.
struct Known {
  EngineConfig config;
  NaiveStream stream;
  std::optional<TokenId> unread;
  std::vector<float> next_logits;  // the naive ones, after a prompt that was only read
  std::vector<float>
      last_logits;                // likewise, of the last token read; empty: none was in this state
  std::set<std::int64_t> pinned;  // blocks, by number
  std::vector<std::vector<std::int64_t>> resident;  // [groups], at the last commit
  std::vector<std::int64_t> ahead;  // what evictions and rotations have come to, likewise
  std::shared_ptr<const Record> last;
};

// The request at hand.
struct Asked {
  Request request;
  RequestId id;
  std::vector<TokenId> prompt;  // with the unread token in front
  bool begins_with_unread = false;
  std::size_t read = 0;
  std::int64_t said = 0;
  std::vector<double> numbers;
};

struct OpenOne {
  SequenceId id;
  Known known;
  std::optional<Asked> asked;
};

// A prompt's beginning as it stood when the engine kept it.
struct Beginning {
  std::vector<TokenSpan> pinned;  // of the request
  Known known;
};

// How often everything has happened.
struct Tally {
  std::map<std::string, std::int64_t> of;
  std::int64_t& operator[](const std::string& name) { return of[name]; }
  std::int64_t At(const std::string& name) const {
    const auto found = of.find(name);
    return found == of.end() ? 0 : found->second;
  }
};

std::vector<std::int64_t> AheadOf(const Sequence& sequence) {
  const SequenceTables& tables = sequence.tables();
  std::vector<std::int64_t> ahead;
  for (std::int64_t group = 0; group < tables.groups(); ++group)
    ahead.push_back(tables.table(group).evicted_tokens());
  ahead.push_back(static_cast<std::int64_t>(tables.mode()));
  ahead.push_back(tables.next_written().value);
  return ahead;
}

// Everything about a sequence that must not hang on others.
std::vector<double> StandingOf(const SequenceRun& run) {
  std::vector<double> numbers;
  const auto add = [&](std::int64_t number) { numbers.push_back(static_cast<double>(number)); };
  const Sequence& sequence = run.sequence();
  const SequenceTables& tables = sequence.tables();
  for (std::int64_t group = 0; group < tables.groups(); ++group) {
    add(-1);
    for (const TableEntry& entry : tables.table(group).entries()) {
      add(entry.logical.value);
      add(entry.written.value);
      add(entry.tokens);
    }
  }
  for (const std::int64_t number : AheadOf(sequence)) add(number);
  if (sequence.recall() != nullptr) {
    const RecallStore& store = sequence.recall()->store();
    for (std::int64_t lane = 0; lane < store.lanes(); ++lane) {
      add(-2);
      for (const std::int64_t slot : store.in_order(lane))
        add(store.slots(lane)[static_cast<std::size_t>(slot)].logical.value);
    }
    add(sequence.recall()->recalled_blocks());
  }
  add(sequence.forgotten_tokens());
  return numbers;
}

void Add(const StepResult& step, std::vector<double>* numbers) {
  numbers->insert(numbers->end(), step.negative_log_likelihood.begin(),
                  step.negative_log_likelihood.end());
  if (!step.sampled) return;
  numbers->push_back(step.sampled->token);
  numbers->push_back(static_cast<double>(step.sampled->logprob));
}

// --- Rules ---------------------------------------------------------------------------------------

// Which blocks a step may attend to, whoever chose them.
class Rules {
 public:
  Rules(const Known& known, const SeenStep& seen, std::int64_t length)
      : known_(known),
        seen_(seen),
        config_(known.config),
        block_(known.config.cache.block_size),
        length_(length) {}

  void Judge() const {
    const SharedCache& shared = *seen_.shared;
    for (std::int64_t group = 0; group < shared.groups(); ++group) {
      const AttentionLayerSpec& layer = shared.layer_of(group);
      const auto& resident = seen_.resident[static_cast<std::size_t>(group)];
      ASSERT_TRUE(std::is_sorted(resident.begin(), resident.end()));
      JudgeMissing(resident, layer.sliding_window);
      if (!config_.eviction || layer.sliding_window > 0) continue;
      JudgeChange(group, resident);
      JudgeSize(group, resident);
      if (config_.eviction->policy == "window") JudgeWindow(resident);
    }
    JudgeRecalled();
    if (config_.eviction) JudgeLayers();
    JudgePositions();
    if (::testing::Test::HasFailure()) journal.Note("  settings: " + Describe(config_));
  }

 private:
  bool MayLeave(std::int64_t block) const {
    const EvictionConfig& eviction = *config_.eviction;
    return block >= eviction.start_size && !known_.pinned.contains(block / block_) &&
           length_ - (block + block_) >= eviction.recent_size;
  }

  void JudgeMissing(const std::vector<std::int64_t>& resident, std::int64_t window) const {
    for (std::int64_t block = 0; block < length_ + seen_.tokens; block += block_) {
      if (std::binary_search(resident.begin(), resident.end(), block)) continue;
      if (window > 0) {
        ASSERT_GE(length_ - (block + block_ - 1), window) << "block " << block;
      } else {
        ASSERT_TRUE(config_.eviction.has_value());
        ASSERT_TRUE(MayLeave(block)) << "block " << block << " of " << length_;
      }
    }
  }

  // Tokens of `resident` before the step's own.
  std::int64_t TokensBefore(const std::vector<std::int64_t>& resident) const {
    std::int64_t tokens = 0;
    for (const std::int64_t block : resident)
      tokens += std::clamp<std::int64_t>(length_ - block, 0, block_);
    return tokens;
  }
  bool Evicts() const {
    return !seen_.is_prompt || config_.eviction->prompt_eviction == PromptEviction::kCapped;
  }
  std::int64_t Limit(std::int64_t group) const {
    return seen_.shared->settings().max_cache_size[static_cast<std::size_t>(group)];
  }
  bool AnyMayLeave(const std::vector<std::int64_t>& resident) const {
    // What has only begun is protected with the recent ones before it.
    return std::any_of(resident.begin(), resident.end(), [&](std::int64_t block) {
      return MayLeave(block) &&
             length_ - (block + block_) >= config_.eviction->recent_size + block_;
    });
  }

  void JudgeSize(std::int64_t group, const std::vector<std::int64_t>& resident) const {
    if (config_.eviction->budget == Budget::kAdaptive || !Evicts()) return;
    if (config_.eviction->budget == Budget::kUniform) {
      ASSERT_EQ(Limit(group), config_.eviction->max_cache_size);
    }
    const std::int64_t room = seen_.is_prompt ? 0 : seen_.tokens;
    if (TokensBefore(resident) + room <= Limit(group)) return;
    ASSERT_FALSE(AnyMayLeave(resident)) << "group " << group << " is over its limit";
  }

  // No more leave than must, none comes back that was not lost, and none at all without recall.
  void JudgeChange(std::int64_t group, const std::vector<std::int64_t>& resident) const {
    if (known_.resident.empty()) return;
    const auto& before = known_.resident[static_cast<std::size_t>(group)];
    std::int64_t gone = 0;
    for (const std::int64_t block : before)
      if (!std::binary_search(resident.begin(), resident.end(), block)) ++gone;
    std::int64_t back = 0;
    for (const std::int64_t block : resident) {
      if (block >= length_ / block_ * block_ ||
          std::binary_search(before.begin(), before.end(), block))
        continue;
      ++back;
    }
    if (back > 0) {
      ASSERT_GT(config_.recall.blocks, 0);
      ASSERT_GT(config_.recall.promotion, 0.0);
    }
    // A step that failed may have made room for its token.
    const std::int64_t left = gone - back;
    if (left > 0 && config_.eviction->budget != Budget::kAdaptive) {
      ASSERT_GT(TokensBefore(resident) + block_ + 1, Limit(group))
          << left << " blocks have left group " << group;
    }
  }

  // Where the oldest go, nothing that may leave is older than what has left.
  void JudgeWindow(const std::vector<std::int64_t>& resident) const {
    const EvictionConfig& eviction = *config_.eviction;
    const bool is_plain = eviction.budget != Budget::kAdaptive && eviction.kvcrush_budget == 0 &&
                          (config_.recall.blocks == 0 || config_.recall.promotion == 0.0);
    if (!is_plain) return;
    std::int64_t newest_missing = -1;
    for (std::int64_t block = 0; block < length_; block += block_)
      if (!std::binary_search(resident.begin(), resident.end(), block)) newest_missing = block;
    for (const std::int64_t block : resident) {
      if (MayLeave(block)) {
        ASSERT_GT(block, newest_missing);
      }
    }
  }

  // What all groups together may hold.
  void JudgeLayers() const {
    const SharedCache& shared = *seen_.shared;
    std::int64_t limits = 0;
    std::int64_t groups = 0;
    for (std::int64_t layer = 0; layer < shared.layers(); ++layer) {
      if (shared.layer(layer).sliding_window > 0) continue;
      std::int64_t held = 0;
      std::int64_t limit = 0;
      bool any_may_leave = false;
      for (std::int64_t group = shared.first_group(layer); group < shared.first_group(layer + 1);
           ++group, ++groups) {
        const auto& resident = seen_.resident[static_cast<std::size_t>(group)];
        held += TokensBefore(resident) + (seen_.is_prompt ? 0 : seen_.tokens);
        limit += Limit(group);
        any_may_leave = any_may_leave || AnyMayLeave(resident);
      }
      limits += limit;
      if (config_.eviction->budget == Budget::kAdaptive && Evicts() && held > limit) {
        ASSERT_FALSE(any_may_leave) << "layer " << layer << " is over its limit";
      }
    }
    ASSERT_LE(limits, groups * config_.eviction->max_cache_size);
  }

  void JudgeRecalled() const {
    for (std::size_t layer = 0; layer < seen_.layers.size(); ++layer) {
      for (std::size_t head = 0; head < seen_.layers[layer].size(); ++head) {
        std::int64_t next = 0;
        for (const SeenPart& part : seen_.layers[layer][head]) {
          ASSERT_EQ(part.first_query, next);
          next += part.queries;
          JudgePart(static_cast<std::int64_t>(layer), static_cast<std::int64_t>(head), part);
        }
        ASSERT_TRUE(next == 0 || next == seen_.tokens);
      }
    }
  }

  void JudgePart(std::int64_t layer, std::int64_t head, const SeenPart& part) const {
    const SharedCache& shared = *seen_.shared;
    std::int64_t group = shared.first_group(layer);
    while (head >= shared.group(group).first_kv_head + shared.group(group).kv_heads) ++group;
    const auto& resident = seen_.resident[static_cast<std::size_t>(group)];
    ASSERT_LE(std::ssize(part.recalled), config_.recall.blocks);
    ASSERT_EQ(shared.layer(layer).sliding_window, 0);
    std::int64_t last = -1;
    for (const std::int64_t block : part.recalled) {
      ASSERT_GT(block, last);
      ASSERT_EQ(block % block_, 0);
      ASSERT_LE(block + block_, length_);
      ASSERT_FALSE(std::binary_search(resident.begin(), resident.end(), block));
      last = block;
    }
  }

  // Where tokens stand, and that the model is asked for no position beyond its window.
  void JudgePositions() const {
    const PositionRules& rules = seen_.shared->settings().rules;
    if (rules.policy != PositionPolicy::kAuto) {
      ASSERT_EQ(seen_.mode, rules.policy);
    }
    if (rules.policy == PositionPolicy::kKeep) {
      ASSERT_EQ(seen_.written.front(), length_);
    } else if (config_.eviction->prompt_eviction == PromptEviction::kCapped) {
      ASSERT_LT(seen_.written.back(), rules.trained_window);
    }  // else a prompt is as long as it is
    for (std::size_t i = 1; i < seen_.written.size(); ++i)
      ASSERT_EQ(seen_.written[i], seen_.written[i - 1] + 1);
  }

  const Known& known_;  // before the step
  const SeenStep& seen_;
  const EngineConfig& config_;
  std::int64_t block_;
  std::int64_t length_;  // before the step
};

// What the cache holds of a sequence's tokens [first, first + tokens).
std::vector<HeldLayer> ReadHeld(const Sequence& sequence, std::int64_t first, std::int64_t tokens) {
  const SharedCache& shared = *sequence.shared();
  const std::int64_t block_size = shared.block_size();
  std::vector<HeldLayer> held(static_cast<std::size_t>(shared.layers()));
  for (std::int64_t group = 0; group < shared.groups(); ++group) {
    const CacheGroup& heads = shared.group(group);
    const AttentionLayerSpec& layer = shared.layer_of(group);
    const BlockShape& shape = shared.shape(group);
    HeldLayer& to = held[static_cast<std::size_t>(heads.layer)];
    to.keys.resize(static_cast<std::size_t>(tokens * layer.kv_heads * layer.key_dim));
    to.values.resize(static_cast<std::size_t>(tokens * layer.kv_heads * layer.value_dim));
    std::vector<float> keys(static_cast<std::size_t>(block_size * shape.key_dim));
    std::vector<float> values(static_cast<std::size_t>(block_size * shape.value_dim));
    for (const TableEntry& entry : sequence.tables().table(group).entries()) {
      if (entry.logical.value + entry.tokens <= first) continue;
      const std::byte* data = shared.pools().of(group).data(entry.block);
      for (std::int64_t head = 0; head < heads.kv_heads; ++head) {
        CodecFor(shape.key_type)
            .ReadKeys(data + shape.key_offset(head), block_size, shape.key_dim, keys.data());
        CodecFor(shape.value_type)
            .ReadValues(data + shape.value_offset(head), block_size, shape.value_dim,
                        values.data());
        for (std::int64_t slot = 0; slot < entry.tokens; ++slot) {
          const std::int64_t row = entry.logical.value + slot - first;
          if (row < 0 || row >= tokens) continue;
          const std::int64_t at = row * layer.kv_heads + heads.first_kv_head + head;
          for (std::int64_t d = 0; d < shape.key_dim; ++d)
            to.keys[static_cast<std::size_t>(at * shape.key_dim + d)] =
                keys[static_cast<std::size_t>(d * block_size + slot)];
          for (std::int64_t d = 0; d < shape.value_dim; ++d)
            to.values[static_cast<std::size_t>(at * shape.value_dim + d)] =
                values[static_cast<std::size_t>(slot * shape.value_dim + d)];
        }
      }
    }
  }
  return held;
}

// --- The world -----------------------------------------------------------------------------------

class World {
 public:
  World(std::uint64_t seed, Tally* tally)
      : generator_(seed),
        tally_(*tally),
        model_options_(RandomModel(&generator_)),
        naive_model_(model_options_),
        rope_{.pairing = model_options_.pairing,
              .rotated_dims = model_options_.key_dim,
              .frequencies = PlainFrequencies(model_options_.rope_theta, model_options_.key_dim)},
        naive_(&naive_model_, &rope_) {
    journal.Begin(seed);
    Create();
    for (std::vector<TokenId>& beginning : beginnings_)
      beginning = RandomTokens(&generator_, Pick(&generator_, 30, 100));
  }

  // One operation, and all that must hold after it.
  void Act() {
    Operate();
    InsideOf(*engine_).CheckIntegrity();
  }

  void Finish() {
    FinishRequests();
    if (::testing::Test::HasFailure()) return;
    while (!sequences_.empty()) {
      Close(sequences_.begin()->first);
      if (::testing::Test::HasFailure()) return;
      InsideOf(*engine_).CheckIntegrity();
    }
    for (const auto& [checkpoint, known] : checkpoints_) engine_->Drop(checkpoint);
    checkpoints_.clear();
    InsideOf(*engine_).CheckIntegrity();
    const EngineMetrics metrics = engine_->metrics();
    EXPECT_EQ(metrics.sequences, 0);
    EXPECT_EQ(metrics.moved_out_bytes, 0);
    std::int64_t kept = 0;
    for (const Sequence* sequence : InsideOf(*engine_).prefixes().sequences())
      kept += sequence->cache_bytes();
    // Of blocks that several hold, each counts once.
    EXPECT_LE(metrics.cache_bytes, kept);
    if (kept == 0) {
      EXPECT_EQ(metrics.cache_bytes, 0);
    }
    tally_["preemptions"] += metrics.preemptions;
    tally_["evicted tokens"] += metrics.evicted_tokens;
    tally_["reused tokens"] += metrics.reused_tokens;
    tally_["rows"] += metrics.rows;
    tally_["guesses that were right"] += metrics.accepted_tokens;
    tally_["guesses that were wrong"] += metrics.drafted_tokens - metrics.accepted_tokens;
  }

 private:
  // --- What is drawn.

  // Some engines have room for few sequences. Those have blocks of one shape.
  void Create() {
    is_tight_ = Pick(&generator_, 0, 2) == 0;
    for (;;) {
      EngineConfig config = RandomConfig(&generator_);
      if (!config.eviction) continue;
      config.chunk_size = 32;
      config.checkpoint_bytes = OneOf<std::int64_t>(&generator_, {0, 60'000, 1'000'000});
      config.scheduler = {.max_running = Pick(&generator_, 2, 6),
                          .max_waiting = OneOf<std::int64_t>(&generator_, {1, 20})};
      EngineConfig alone = config;
      alone.checkpoint_bytes = 0;
      if (is_tight_)
        config.cache.limit_tokens =
            config.eviction->max_cache_size + 48 + Pick(&generator_, 0, 200);
      try {
        engine_ = Engine::Create(std::make_unique<WatchedModel>(
                                     std::make_unique<TinyModel>(model_options_), &mishap_, &seen_),
                                 config);
        alone_ = Engine::Create(
            std::make_unique<WatchedModel>(std::make_unique<TinyModel>(model_options_),
                                           &alone_mishap_, &alone_seen_),
            alone);
      } catch (const Error&) {
        ++tally_["refused settings"];
        continue;
      }
      journal.Note(fmt::format("engine {}{} checkpoints {} running {}", Describe(config),
                               is_tight_ ? fmt::format(" limit {}", config.cache.limit_tokens) : "",
                               config.checkpoint_bytes, config.scheduler.max_running));
      return;
    }
  }

  EngineConfig OwnConfig() {
    EngineConfig config = RandomConfig(&generator_);
    if (!is_tight_) return config;
    const EngineConfig& shape = engine_->config();
    config.cache = shape.cache;
    config.chunk_size = OneOf<std::int64_t>(&generator_, {16, 24, 32});
    if (!config.eviction && shape.eviction->grouping == Grouping::kLayer) return config;
    DrawEviction(&generator_, &config);
    config.eviction->grouping = shape.eviction->grouping;
    config.eviction->budget =
        shape.eviction->grouping == Grouping::kHead ? shape.eviction->budget : Budget::kUniform;
    DrawRecall(&generator_, &config);
    return config;
  }

  Request RandomRequest(const Known& known) {
    Request request{.max_new_tokens = std::max<std::int64_t>(0, Pick(&generator_, -2, 12)),
                    .ignore_end_tokens = Pick(&generator_, 0, 4) > 0,
                    .score_prompt = Pick(&generator_, 0, 3) == 0};
    request.keep_logits = true;
    const bool is_new = known.stream.history.empty();
    switch (is_new && Pick(&generator_, 0, 1) == 0 ? 1 : Pick(&generator_, 0, 6)) {
      case 0:
        if (!known.next_logits.empty()) break;  // an answer to what was only read
        [[fallthrough]];
      case 1:
      case 2: {  // begins as others do
        const auto& beginning = beginnings_[static_cast<std::size_t>(Pick(&generator_, 0, 2))];
        request.prompt.assign(
            beginning.begin(),
            beginning.end() - Pick(&generator_, 0, std::ssize(beginning) - 1) / 2);
        const auto rest = RandomTokens(&generator_, Pick(&generator_, 0, 20));
        request.prompt.insert(request.prompt.end(), rest.begin(), rest.end());
        ++tally_["share"];
        break;
      }
      case 3:
        request.prompt = Repeats(&generator_, Pick(&generator_, 4, 60));
        break;
      default:
        request.prompt = RandomTokens(&generator_, Pick(&generator_, 1, 70));
    }
    if (request.prompt.empty())
      request.max_new_tokens = std::max<std::int64_t>(1, request.max_new_tokens);
    if (std::ssize(request.prompt) > 24 && Pick(&generator_, 0, 5) == 0) {
      const std::int64_t begin = Pick(&generator_, 0, std::ssize(request.prompt) - 6);
      request.pinned = {{.begin = begin, .end = begin + Pick(&generator_, 1, 6)}};
    }
    request.penalise_prompt = Pick(&generator_, 0, 1) == 0;
    if (request.forced_answer.empty() && Pick(&generator_, 0, 9) == 0)
      request.forced_answer = RandomTokens(&generator_, Pick(&generator_, 1, 8));
    if (Pick(&generator_, 0, 9) == 0) request.stop_tokens = RandomTokens(&generator_, 3);
    if (Pick(&generator_, 0, 2) == 0) {
      request.sampling = {.temperature = 1.0,
                          .top_p = 0.9,
                          .repetition_penalty = 1.2,
                          .seed = static_cast<std::uint64_t>(Pick(&generator_, 0, 1000))};
    }
    if (Pick(&generator_, 0, 1) == 0) {
      request.sampling.max_draft_tokens = Pick(&generator_, 1, 10);
      request.sampling.draft_ngram = Pick(&generator_, 1, 3);
      request.max_new_tokens *= 2;
      ++tally_["speculate"];
    }
    request.priority = Pick(&generator_, 0, 2);
    const std::int64_t deadline = Pick(&generator_, 0, 39);
    if (deadline == 0) request.deadline = std::chrono::steady_clock::now();
    if (deadline == 1) request.deadline = std::chrono::steady_clock::now() + std::chrono::hours(9);
    return request;
  }

  template <typename Map, typename Fits>
  typename Map::iterator Any(Map* of, Fits fits) {
    std::vector<typename Map::iterator> all;
    for (auto at = of->begin(); at != of->end(); ++at)
      if (fits(at->second)) all.push_back(at);
    if (all.empty()) return of->end();
    return all[static_cast<std::size_t>(Pick(&generator_, 0, std::ssize(all) - 1))];
  }
  auto AnySequence() {
    return Any(&sequences_, [](const OpenOne&) { return true; });
  }
  auto AnyIdle() {
    return Any(&sequences_, [](const OpenOne& open) { return !open.asked; });
  }
  auto AnyAsked() {
    return Any(&sequences_, [](const OpenOne& open) { return open.asked.has_value(); });
  }
  auto AnyCheckpoint() {
    return Any(&checkpoints_, [](const Known&) { return true; });
  }

  // --- Operations.

  void Operate() {
    const std::int64_t draw = Pick(&generator_, 0, 999);
    if (sequences_.empty() || draw < 30) return Open();
    if (draw < 250) return Submit();
    if (draw < 290) return Cancel();
    if (draw < 320) return CloseOne();
    if (draw < 335) return Reset();
    if (draw < 360) return ForkSequence();
    if (draw < 385) return Mark();
    if (draw < 405) return Rewind();
    if (draw < 420) return ForkCheckpoint();
    if (draw < 440) return DropCheckpoint();
    if (draw < 450) return Gather();
    if (draw < 460) return SubmitNonsense();
    if (draw < 510) return FailStep();
    if (draw < 530) return SpoilStep();
    Step({});
  }

  void Open() {
    if (std::ssize(sequences_) >= kMostSequences) return Step({});
    try {
      SequenceId id;
      Known known;
      if (Pick(&generator_, 0, 1) == 0) {
        id = engine_->Open();
      } else {
        id = engine_->Open(OwnConfig());
      }
      known.config = InsideOf(*engine_).RunOf(id).shared()->settings().config;
      journal.Note(fmt::format("open {}: {}", id.value, Describe(known.config)));
      sequences_.emplace(id, OpenOne{.id = id, .known = std::move(known), .asked = {}});
      ++tally_["open"];
    } catch (const Error& error) {
      journal.Note("open refused: " + error.problem());
      ++tally_["refused settings"];
    }
  }

  void Submit() {
    const auto at = AnyIdle();
    if (at == sequences_.end()) return Step({});
    OpenOne& open = at->second;
    if (std::ssize(open.known.stream.history) > kLongHistory) return Close(open.id);
    Request request = RandomRequest(open.known);
    Asked asked{.request = request,
                .id = {},
                .prompt = request.prompt,
                .begins_with_unread = open.known.unread.has_value(),
                .numbers = {}};
    if (open.known.unread) asked.prompt.insert(asked.prompt.begin(), *open.known.unread);
    if (!request.forced_answer.empty())
      asked.request.max_new_tokens = std::ssize(request.forced_answer);
    try {
      asked.id = engine_->Submit(open.id, request);
    } catch (const Error& error) {
      journal.Note(fmt::format("submit to {} refused: {}", open.id.value, error.problem()));
      EXPECT_TRUE(error.code() == ErrorCode::kBusy || error.field() == "pinned") << error.what();
      EXPECT_FALSE(engine_->HasWork(open.id));
      ++tally_["refused requests"];
      return;
    }
    journal.Note(fmt::format("submit {} to {}: {} tokens, answer {}{}{}", asked.id.value,
                             open.id.value, request.prompt.size(), asked.request.max_new_tokens,
                             request.score_prompt ? ", scored" : "",
                             request.pinned.empty() ? "" : ", pinned"));
    const std::int64_t block = open.known.config.cache.block_size;
    if (open.known.config.eviction) {
      const std::int64_t first =
          std::ssize(open.known.stream.history) + (asked.begins_with_unread ? 1 : 0);
      for (const TokenSpan& span : request.pinned) {
        for (std::int64_t pin = (first + span.begin) / block; pin * block < first + span.end; ++pin)
          if (pin * block >= open.known.config.eviction->start_size) open.known.pinned.insert(pin);
      }
    }
    open.known.unread.reset();
    open.asked = std::move(asked);
    ++tally_["submit"];
  }

  // Each is refused, and nothing has happened.
  void SubmitNonsense() {
    const auto at = AnySequence();
    const bool had_work = engine_->HasWork(at->first);
    Request request{.prompt = {1, 2, 3}, .max_new_tokens = 2};
    switch (Pick(&generator_, 0, 3)) {
      case 0:
        request.prompt.push_back(kVocabulary);
        break;
      case 1:
        request.max_new_tokens = -1;
        break;
      case 2:
        request.pinned = {{.begin = 2, .end = 9}};
        break;
      default:
        request.sampling.temperature = -1.0;
    }
    EXPECT_THROW(engine_->Submit(at->first, request), Error);
    EXPECT_EQ(engine_->HasWork(at->first), had_work);
  }

  void Cancel() {
    const auto at = AnyAsked();
    if (at == sequences_.end()) return Step({});
    const RequestId id = at->second.asked->id;
    journal.Note(fmt::format("cancel {}", id.value));
    ++tally_["cancel"];
    if (Pick(&generator_, 0, 9) == 0) {
      std::thread([&] { engine_->Cancel(id); }).join();
    } else {
      engine_->Cancel(id);
    }
    if (Pick(&generator_, 0, 1) == 0) Step({});
  }

  void CloseOne() { Close(AnySequence()->first); }

  void Close(SequenceId id) {
    const auto at = sequences_.find(id);
    journal.Note(fmt::format("close {}", id.value));
    Repeat(at->second.known);
    engine_->Close(id);
    sequences_.erase(at);
    ++tally_["close"];
  }

  void Reset() {
    OpenOne& open = AnySequence()->second;
    journal.Note(fmt::format("reset {}", open.id.value));
    Repeat(open.known);
    engine_->Reset(open.id);
    open.known = Known{.config = open.known.config};
    open.asked.reset();
    ++tally_["reset"];
  }

  // Runs `act`, which may find no room.
  template <typename Act>
  void Try(const std::string& what, Act act) {
    try {
      act();
      ++tally_[what];
    } catch (const Error& error) {
      journal.Note(what + " refused: " + error.problem());
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << error.what();
      ++tally_["no room to " + what];
    }
  }

  void ForkSequence() {
    const auto at = AnyIdle();
    if (at == sequences_.end() || std::ssize(sequences_) >= kMostSequences) return Step({});
    Try("fork", [&] {
      const SequenceId id = engine_->Fork(at->first);
      journal.Note(fmt::format("fork {} of {}", id.value, at->first.value));
      sequences_.emplace(id, OpenOne{.id = id, .known = at->second.known, .asked = {}});
    });
  }

  void Mark() {
    const auto at = AnyIdle();
    if (at == sequences_.end() || std::ssize(checkpoints_) >= kMostCheckpoints) return Step({});
    Try("mark", [&] {
      const CheckpointId id = engine_->Mark(at->first);
      journal.Note(fmt::format("mark {} at {}", id.value, at->first.value));
      checkpoints_.emplace(id, at->second.known);
    });
  }

  void Rewind() {
    const auto mark = AnyCheckpoint();
    const auto at = AnyIdle();
    if (at == sequences_.end() || mark == checkpoints_.end()) return Step({});
    Try("rewind", [&] {
      engine_->Rewind(at->first, mark->first);
      journal.Note(fmt::format("rewind {} to {}", at->first.value, mark->first.value));
      Repeat(at->second.known);
      at->second.known = mark->second;
    });
  }

  void ForkCheckpoint() {
    const auto mark = AnyCheckpoint();
    if (mark == checkpoints_.end() || std::ssize(sequences_) >= kMostSequences) return Step({});
    Try("fork", [&] {
      const SequenceId id = engine_->Fork(mark->first);
      journal.Note(fmt::format("fork {} of mark {}", id.value, mark->first.value));
      sequences_.emplace(id, OpenOne{.id = id, .known = mark->second, .asked = {}});
    });
  }

  void DropCheckpoint() {
    const auto mark = AnyCheckpoint();
    if (mark == checkpoints_.end()) return Step({});
    journal.Note(fmt::format("drop {}", mark->first.value));
    engine_->Drop(mark->first);
    checkpoints_.erase(mark);
    ++tally_["drop"];
  }

  void Gather() {
    const auto at = AnySequence();
    engine_->GatherAttention(at->first, Pick(&generator_, 0, 1) == 0);
    ++tally_["gather"];
  }

  void FailStep() {
    const bool lacks_memory = Pick(&generator_, 0, 2) == 0;
    std::atomic<std::int64_t>& memory =
        Pick(&generator_, 0, 1) == 0 ? testing::objects_left : testing::buffers_left;
    Step({.layer = Pick(&generator_, 0, model_options_.layers - 1),
          .after_attention = Pick(&generator_, 0, 1) == 0,
          .is_bad_alloc = lacks_memory || Pick(&generator_, 0, 2) == 0,
          .memory_left = lacks_memory ? &memory : nullptr,
          .memory_granted = Pick(&generator_, 0, 4),
          .bad_logits = {}});
  }

  void SpoilStep() {
    Step({.layer = {}, .bad_logits = static_cast<std::size_t>(Pick(&generator_, 0, 20))});
  }

  // --- A step.

  void Step(const Mishap& mishap) {
    if (!engine_->HasWork()) return;
    mishap_ = mishap;
    seen_.clear();
    stages_taken_.clear();
    const std::vector<StepOutput> outputs = engine_->Step();
    mishap_ = {};
    ++tally_["step"];
    std::map<SequenceId, std::int64_t> read;  // by those that moved
    for (const StepOutput& output : outputs)
      if (!output.failure) read[output.sequence] += output.result.tokens_processed;
    for (auto& [id, open] : sequences_) GoOnFromBeginning(&open, read[id]);
    std::string line = "step:";
    for (const StepOutput& output : outputs) {
      line +=
          fmt::format(" {}{}", output.sequence.value,
                      output.failure ? "!" : fmt::format("+{}", output.result.tokens_processed));
    }
    journal.Note(line);
    for (const StepOutput& output : outputs) {
      Take(output, mishap);
      if (::testing::Test::HasFailure()) return;
    }
    for (const auto& [id, open] : sequences_) {
      ASSERT_EQ(std::ssize(open.known.stream.history),
                InsideOf(*engine_).RunOf(id).sequence().tables().logical_length().value);
    }
    KeepBeginnings();
    steps_without_output_ = outputs.empty() ? steps_without_output_ + 1 : 0;
    ASSERT_LT(steps_without_output_, 100) << "nobody moves: " << Crowd();
  }

  // Who is there, and what each holds.
  std::string Crowd() const {
    const EngineMetrics metrics = engine_->metrics();
    std::string text =
        fmt::format("{} run, {} wait; {} bytes in use, {} reserved of {}, {} moved out",
                    metrics.requests_running, metrics.requests_waiting, metrics.cache_bytes,
                    metrics.reserved_bytes, metrics.limit_bytes, metrics.moved_out_bytes);
    for (const auto& [id, open] : sequences_) {
      const SequenceRun& run = InsideOf(*engine_).RunOf(id);
      text += fmt::format(
          "\n  {}: {} bytes, {} tokens{}", id.value, run.sequence().cache_bytes(),
          run.sequence().tables().logical_length().value,
          open.asked ? fmt::format(", request {} of priority {}, next {}", open.asked->id.value,
                                   open.asked->request.priority, run.NextTokens())
                     : "");
    }
    return text;
  }

  void Take(const StepOutput& output, const Mishap& mishap) {
    const auto at = sequences_.find(output.sequence);
    ASSERT_NE(at, sequences_.end());
    OpenOne& open = at->second;
    ASSERT_TRUE(open.asked.has_value());
    ASSERT_EQ(open.asked->id, output.request);
    if (output.failure) return TakeFailure(&open, output.failure, mishap);
    const StepResult& result = output.result;
    if (result.finish_reason == FinishReason::kCancelled ||
        result.finish_reason == FinishReason::kExpired) {
      EXPECT_EQ(result.finish_reason == FinishReason::kExpired,
                open.asked->request.deadline.has_value() &&
                    result.finish_reason == FinishReason::kExpired);
      return EndRequest(&open, /*is_cut=*/true);
    }
    TakeTokens(&open, result);
    if (::testing::Test::HasFailure()) return;
    Add(result, &open.asked->numbers);
    FinishReason expected = FinishReason::kNone;
    const bool is_read = open.asked->read == open.asked->prompt.size();
    EXPECT_EQ(result.sampled.has_value(), is_read && open.asked->request.max_new_tokens > 0);
    if (result.sampled) {
      expected = TakeWord(&open, *result.sampled);
    } else if (is_read) {
      open.known.next_logits = open.known.last_logits;
      expected = FinishReason::kLength;
    }
    ASSERT_EQ(result.finish_reason, expected);
    if (expected == FinishReason::kNone) return;
    ASSERT_FALSE(engine_->HasWork(open.id));
    EndRequest(&open, /*is_cut=*/false);
  }

  void TakeFailure(OpenOne* open, const std::exception_ptr& failure, const Mishap& mishap) {
    ++tally_["failures"];
    EXPECT_TRUE(engine_->HasWork(open->id));
    try {
      std::rethrow_exception(failure);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kModel) {
        EXPECT_TRUE(mishap.layer || mishap.bad_logits) << error.what();
        if (Pick(&generator_, 0, 7) == 0) engine_->Cancel(open->asked->id);
        return;
      }
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory) << error.what();
      EXPECT_TRUE(is_tight_ || mishap.memory_left != nullptr) << error.what();
      journal.Note(fmt::format("no room for {}: {}", open->id.value, error.problem()));
      ++tally_["no room to step"];
      if (Pick(&generator_, 0, 1) == 0) engine_->Cancel(open->asked->id);
    } catch (const std::bad_alloc&) {
      EXPECT_TRUE(mishap.is_bad_alloc);
      if (mishap.memory_left != nullptr) ++tally_["no memory in attention"];
    }
  }

  // What a sequence has attended to in a stage of the last pass.
  const SeenStep* SeenOf(const Sequence& sequence, std::int64_t stage) const {
    for (const SeenStep& seen : seen_)
      if (seen.sequence == &sequence && seen.stage == stage) return &seen;
    return nullptr;
  }

  // The tokens that a step has read, if any, and what is said of them.
  void TakeTokens(OpenOne* open, const StepResult& result) {
    Known& known = open->known;
    Asked& asked = *open->asked;
    const Sequence& sequence = InsideOf(*engine_).RunOf(open->id).sequence();
    if (result.tokens_processed == 0) {
      ASSERT_TRUE(asked.request.prompt.empty() && asked.said == 0);
      ASSERT_FALSE(known.next_logits.empty());
      known.last_logits = std::exchange(known.next_logits, {});
      ++tally_["answers to what was only read"];
    } else {
      const std::int64_t length = std::ssize(known.stream.history);
      std::vector<TokenId> read;
      if (asked.read < asked.prompt.size()) {
        ASSERT_LE(asked.read + static_cast<std::size_t>(result.tokens_processed),
                  asked.prompt.size());
        const auto first = asked.prompt.begin() + static_cast<std::ptrdiff_t>(asked.read);
        read.assign(first, first + result.tokens_processed);
        asked.read += read.size();
      } else {
        ASSERT_EQ(result.tokens_processed, 1);
        ASSERT_TRUE(known.unread.has_value());
        read.push_back(*known.unread);
        known.unread.reset();
      }
      const SeenStep* seen = SeenOf(sequence, stages_taken_[open->id]++);
      ASSERT_NE(seen, nullptr);
      ASSERT_EQ(seen->tokens, result.tokens_processed);
      Rules(known, *seen, length).Judge();
      if (::testing::Test::HasFailure()) return;
      Read(&known, read, *seen, sequence, result);
      const auto history = sequence.history();
      ASSERT_LE(known.stream.history.size(), history.size());
      ASSERT_TRUE(
          std::equal(known.stream.history.begin(), known.stream.history.end(), history.begin()));
      known.next_logits.clear();
      known.resident = seen->resident;
      known.ahead = AheadOf(sequence);
      Count(*seen);
    }
    if (result.sampled && IsJudged(known.config)) ExpectSame(known, result);
  }

  void Count(const SeenStep& seen) {
    for (const auto& layer : seen.layers) {
      for (const auto& head : layer) {
        for (const SeenPart& part : head) tally_["recalled blocks"] += std::ssize(part.recalled);
      }
    }
  }

  // Reads the tokens naively as well.
  void Read(Known* known, const std::vector<TokenId>& read, const SeenStep& seen,
            const Sequence& sequence, const StepResult& result) {
    if (!IsJudged(known->config)) {
      known->stream.history.insert(known->stream.history.end(), read.begin(), read.end());
      known->last_logits.assign(kVocabulary, 0.0F);
      return;
    }
    const NaiveRounding rounding{.keys = known->config.cache.key_type,
                                 .values = known->config.cache.value_type};
    std::vector<HeldLayer> held;
    if (rounding.keys != KvType::kF32 || rounding.values != KvType::kF32)
      held = ReadHeld(sequence, std::ssize(known->stream.history), std::ssize(read));
    const std::span<const float> logits = naive_.Read(read, seen, known->config.cache.block_size,
                                                      rounding, std::move(held), &known->stream);
    ASSERT_LE(naive_.worst_rounding(), 1.001) << Describe(known->config);
    ExpectScores(*known, read, logits, result);
    const auto last = logits.last(kVocabulary);
    known->last_logits.assign(last.begin(), last.end());
    tally_["judged tokens"] += std::ssize(read);
  }

  void ExpectScores(const Known& known, const std::vector<TokenId>& read,
                    std::span<const float> logits, const StepResult& result) const {
    const auto& scores = result.negative_log_likelihood;
    if (scores.empty()) return;
    ASSERT_GE(scores.size() + 1, read.size());
    ASSERT_LE(scores.size(), read.size());
    for (std::size_t i = read.size() - scores.size(); i < read.size(); ++i) {
      const std::span<const float> row = i == 0
                                             ? std::span<const float>(known.last_logits)
                                             : logits.subspan((i - 1) * kVocabulary, kVocabulary);
      ASSERT_FALSE(row.empty());
      const double naive =
          LogSumExp(row) - static_cast<double>(row[static_cast<std::size_t>(read[i])]);
      ASSERT_NEAR(scores[i - (read.size() - scores.size())], naive, kTolerance)
          << "token " << i << " of a step after " << known.stream.history.size() << " tokens; "
          << Describe(known.config);
    }
  }

  // The engine's distribution is the naive one.
  void ExpectSame(const Known& known, const StepResult& result) {
    ASSERT_EQ(std::ssize(result.logits), kVocabulary);
    ASSERT_EQ(std::ssize(known.last_logits), kVocabulary);
    const double ours = LogSumExp(result.logits);
    const double naive = LogSumExp(known.last_logits);
    double worst = 0.0;
    for (std::size_t i = 0; i < result.logits.size(); ++i) {
      const double off = (static_cast<double>(result.logits[i]) - ours) -
                         (static_cast<double>(known.last_logits[i]) - naive);
      worst = std::max(worst, std::abs(off));
    }
    worst_ = std::max(worst_, worst);
    ASSERT_LE(worst, kTolerance) << "after " << known.stream.history.size() << " tokens; "
                                 << Describe(known.config);
    ++tally_["judged distributions"];
  }

  // What the answer's word makes of the request.
  FinishReason TakeWord(OpenOne* open, const SampledToken& sampled) {
    Asked& asked = *open->asked;
    const Request& request = asked.request;
    if (!request.forced_answer.empty()) {
      EXPECT_EQ(sampled.token, request.forced_answer[static_cast<std::size_t>(asked.said)]);
    }
    ++asked.said;
    const bool may_end = request.forced_answer.empty() || asked.said == request.max_new_tokens;
    const bool is_stop = std::find(request.stop_tokens.begin(), request.stop_tokens.end(),
                                   sampled.token) != request.stop_tokens.end();
    const bool is_end = !request.ignore_end_tokens && sampled.token == 5;
    if (may_end && (is_stop || is_end)) return FinishReason::kStop;
    open->known.unread = sampled.token;
    return asked.said == request.max_new_tokens ? FinishReason::kLength : FinishReason::kNone;
  }

  void EndRequest(OpenOne* open, bool is_cut) {
    Known& known = open->known;
    Asked& asked = *open->asked;
    const SequenceRun& run = InsideOf(*engine_).RunOf(open->id);
    const std::int64_t length = std::ssize(known.stream.history);
    ASSERT_EQ(run.sequence().tables().logical_length().value, length);
    ++tally_[is_cut ? "ended early" : "ended"];
    if (is_cut && asked.read == 0 && asked.begins_with_unread) known.unread = asked.prompt.front();
    const std::int64_t block = known.config.cache.block_size;
    known.pinned.erase(known.pinned.lower_bound((length + block - 1) / block), known.pinned.end());
    // A fresh sequence is nothing, whatever it was about to be.
    const bool is_ahead = !known.ahead.empty() && known.ahead != AheadOf(run.sequence());
    known.last = std::make_shared<const Record>(Record{
        .before = known.last,
        .id = asked.id,
        .request = asked.request,
        .is_cut = is_cut,
        .length = length,
        .said = asked.said,
        .begins_a_step = is_ahead,
        // Where room was lacking, keys that were to be rewritten may not have been.
        .can_be_repeated =
            !(is_ahead && is_tight_ && run.shared()->settings().rules.rotation == Rotation::kKeys),
        .numbers = std::move(asked.numbers),
        .standing = StandingOf(run)});
    if (is_ahead) {
      known.ahead = AheadOf(run.sequence());
      ++tally_["ended ahead"];
    }
    open->asked.reset();
  }

  // --- Beginnings that were read before.

  static bool Begins(const std::vector<TokenId>& history, const std::vector<TokenId>& prompt) {
    return history.size() < prompt.size() &&
           std::equal(history.begin(), history.end(), prompt.begin());
  }

  // Where the engine has gone on from a checkpoint, so does what is known of the sequence.
  void GoOnFromBeginning(OpenOne* open, std::int64_t read_in_step) {
    if (!open->asked) return;
    const std::int64_t length =
        InsideOf(*engine_).RunOf(open->id).sequence().tables().logical_length().value -
        read_in_step;
    if (length == std::ssize(open->known.stream.history)) return;
    const Beginning* from = BeginningOf(*open, length);
    ASSERT_NE(from, nullptr) << "sequence " << open->id.value << " stands at " << length
                             << " tokens, which nobody has read";
    tally_["shared tokens"] += length - std::ssize(open->known.stream.history);
    std::shared_ptr<const Record> last = open->known.last;
    open->known = from->known;
    open->known.last = std::move(last);
    open->asked->read = static_cast<std::size_t>(length);
  }

  // The first `length` tokens of a sequence's prompt as others have read them; null: nobody has.
  const Beginning* BeginningOf(const OpenOne& open, std::int64_t length) const {
    const auto same = [](const TokenSpan& left, const TokenSpan& right) {
      return left.begin == right.begin && left.end == right.end;
    };
    const std::vector<TokenSpan>& pinned = open.asked->request.pinned;
    for (const Beginning& from : kept_) {
      const std::vector<TokenId>& history = from.known.stream.history;
      if (std::ssize(history) == length && Begins(history, open.asked->prompt) &&
          from.known.config == open.known.config &&
          std::equal(from.pinned.begin(), from.pinned.end(), pinned.begin(), pinned.end(), same))
        return &from;
    }
    return nullptr;
  }

  // Notes what the engine may have kept, and forgets what it has let go.
  void KeepBeginnings() {
    if (engine_->config().checkpoint_bytes == 0) return;
    const std::vector<const Sequence*> held = InsideOf(*engine_).prefixes().sequences();
    const auto is_held = [&](const std::vector<TokenId>& history) {
      return std::any_of(held.begin(), held.end(), [&](const Sequence* sequence) {
        const auto of = sequence->history();
        return std::equal(of.begin(), of.end(), history.begin(), history.end());
      });
    };
    std::erase_if(kept_,
                  [&](const Beginning& from) { return !is_held(from.known.stream.history); });
    for (const auto& [id, open] : sequences_) {
      if (!open.asked || open.asked->read == 0 || open.asked->said > 0) continue;
      const std::vector<TokenId>& history = open.known.stream.history;
      if (std::ssize(history) != static_cast<std::int64_t>(open.asked->read)) continue;
      if (!Begins(history, open.asked->prompt) || !is_held(history)) continue;
      if (BeginningOf(open, std::ssize(history)) == nullptr)
        kept_.push_back({.pinned = open.asked->request.pinned, .known = open.known});
    }
  }

  // --- Alone.

  void Repeat(const Known& known) {
    std::vector<const Record*> records;
    for (const Record* record = known.last.get(); record != nullptr; record = record->before.get())
      records.push_back(record);
    std::reverse(records.begin(), records.end());
    if (records.empty()) return;
    EngineConfig config = known.config;
    config.checkpoint_bytes = 0;
    const SequenceId id = alone_->Open(config);
    for (const Record* record : records) {
      if (!record->can_be_repeated) break;
      RepeatRequest(id, *record);
      ASSERT_FALSE(::testing::Test::HasFailure()) << Describe(config) << Told(records, record);
      ++tally_["repeated requests"];
    }
    alone_->Close(id);
    InsideOf(*alone_).CheckIntegrity();
  }

  // The requests up to this one.
  static std::string Told(const std::vector<const Record*>& records, const Record* last) {
    std::string text;
    for (const Record* record : records) {
      text += fmt::format(
          "\n  request {}: {} tokens, answer {}, guesses {}{}{}{}; said {}, then {} tokens",
          record->id.value, record->request.prompt.size(), record->request.max_new_tokens,
          record->request.sampling.max_draft_tokens, record->request.score_prompt ? ", scored" : "",
          record->is_cut ? ", cut" : "", record->begins_a_step ? " ahead" : "", record->said,
          record->length);
      if (record == last) break;
    }
    return text;
  }

  void RepeatRequest(SequenceId id, const Record& record) {
    const SequenceRun& run = InsideOf(*alone_).RunOf(id);
    Request request = record.request;
    request.deadline.reset();
    request.sampling.max_draft_tokens = 0;
    request.keep_logits = false;
    const RequestId asked = alone_->Submit(id, std::move(request));
    std::vector<double> numbers;
    std::int64_t said = 0;
    while (alone_->HasWork()) {
      if (record.is_cut && said == record.said &&
          run.sequence().tables().logical_length().value == record.length)
        Cut(asked, record);
      for (const StepOutput& output : alone_->Step()) {
        ASSERT_FALSE(output.failure);
        Add(output.result, &numbers);
        if (output.result.sampled) ++said;
      }
    }
    // What was read by others was scored by none.
    ASSERT_EQ(numbers, record.numbers);
    ASSERT_EQ(StandingOf(run), record.standing)
        << "after " << record.length << " tokens" << (record.is_cut ? ", cut" : "");
  }

  void Cut(RequestId asked, const Record& record) {
    if (record.begins_a_step) {
      alone_mishap_.layer = 0;
      const auto outputs = alone_->Step();
      alone_mishap_ = {};
      ASSERT_EQ(outputs.size(), std::size_t{1});
      ASSERT_TRUE(outputs[0].failure);
    }
    alone_->Cancel(asked);
  }

  void FinishRequests() {
    for (int step = 0; engine_->HasWork(); ++step) {
      ASSERT_LT(step, 2000) << "some request never ends";
      // Who finds no room is cancelled, sooner or later.
      Step({});
      InsideOf(*engine_).CheckIntegrity();
      if (::testing::Test::HasFailure()) return;
    }
  }

  Generator generator_;
  Tally& tally_;
  TinyModelOptions model_options_;
  TinyModel naive_model_;
  LayerRope rope_;
  NaiveReading naive_;
  Mishap mishap_;
  Mishap alone_mishap_;
  std::vector<SeenStep> seen_;
  std::vector<SeenStep> alone_seen_;
  std::map<SequenceId, std::int64_t> stages_taken_;  // of the step at hand
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Engine> alone_;
  bool is_tight_ = false;
  std::vector<TokenId> beginnings_[3];
  std::map<SequenceId, OpenOne> sequences_;
  std::map<CheckpointId, Known> checkpoints_;
  std::vector<Beginning> kept_;
  std::int64_t steps_without_output_ = 0;
  double worst_ = 0.0;
};

TEST(ModelBased, WhateverIsAskedEachSequenceIsAsIfAloneAndNaive) {
  std::signal(SIGABRT, TellAndAbort);
  const std::int64_t first = NumberFrom("CAROUSEL_RANDOM_SEED", 0);
  const std::int64_t operations = NumberFrom(
      "CAROUSEL_RANDOM_OPERATIONS", first > 0 ? kOperationsOfAScenario : RandomCases(100'000));
  Tally tally;
  std::int64_t done = 0;
  for (auto seed = static_cast<std::uint64_t>(std::max<std::int64_t>(1, first)); done < operations;
       ++seed) {
    World world(seed, &tally);
    for (std::int64_t i = 0; i < kOperationsOfAScenario && !HasFailure(); ++i, ++done) world.Act();
    if (!HasFailure()) world.Finish();
    if (HasFailure()) {
      journal.Tell();
      return;
    }
  }
  std::string told = fmt::format("{} operations:", done);
  for (const auto& [what, times] : tally.of) told += fmt::format(" {} {};", times, what);
  std::printf("%s\n", told.c_str());
  if (done < 50'000) return;
  // Or the comparison says nothing about them.
  for (const char* what : {"open",
                           "submit",
                           "step",
                           "cancel",
                           "close",
                           "reset",
                           "fork",
                           "mark",
                           "rewind",
                           "drop",
                           "share",
                           "speculate",
                           "failures",
                           "preemptions",
                           "evicted tokens",
                           "recalled blocks",
                           "shared tokens",
                           "ended early",
                           "ended ahead",
                           "refused requests",
                           "repeated requests",
                           "answers to what was only read",
                           "judged distributions",
                           "no memory in attention",
                           "guesses that were right",
                           "guesses that were wrong"})
    EXPECT_GT(tally.At(what), 20) << what;
}

}  // namespace
}  // namespace carousel
