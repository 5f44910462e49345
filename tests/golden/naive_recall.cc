// SPDX-License-Identifier: Apache-2.0
#include "golden/naive_recall.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <utility>

#include "golden/naive_sketch.h"

namespace carousel::testing {
namespace {

// So few stored blocks are all weighed by their keys. Of more, sketches name so many for tokens of
// a prompt, so many for a token of an answer, or so many times as many as are recalled.
constexpr std::int64_t kFew = 128;
constexpr std::int64_t kCandidatesInPrompts = 128;
constexpr std::int64_t kCandidatesInAnswers = 64;
constexpr std::int64_t kCandidatesForEach = 4;

constexpr std::int64_t kMostChunks = 4;  // of a prompt that share a choice
constexpr double kAnswersGain = 5.0;     // so many times least_gain

// What the engine weighs in float32 may be off by such a part of it.
constexpr double kDoubt = 3e-6;

// Blocks for some queries to recall.
struct Choice {
  std::vector<std::int64_t> blocks;
  double gain = 0.0;  // over the former choice, of all attention of those who chose
  double gain_doubt = kDoubt;
  bool decided = true;  // and not between two that are the same as far as rounding can tell
};

// Queries of one head that share a choice.
class Part {
 public:
  Part(const EngineConfig& config, const NaiveStep& step, const NaiveHead& head,
       std::vector<ReferenceQuery> queries)
      : config_(config), step_(step), head_(head), queries_(std::move(queries)) {}

  // With the chosen blocks beside what is kept, but for those that have moved back into the cache.
  NaiveRecalled Attend(const std::vector<std::int64_t>& chosen) const {
    std::vector<ReferenceToken> tokens = head_.kept;
    std::set<std::int64_t> recalled;
    for (const ReferenceToken& token : head_.evicted) {
      if (std::find(chosen.begin(), chosen.end(), BlockOf(token)) == chosen.end()) continue;
      recalled.insert(BlockOf(token));
      tokens.push_back(token);
    }
    std::sort(tokens.begin(), tokens.end(),
              [](const ReferenceToken& left, const ReferenceToken& right) {
                return left.logical < right.logical;
              });
    std::vector<ReferenceQuery> queries = queries_;
    Place(&tokens);
    Place(tokens, &queries);
    NaiveRecalled result{.output = ReferenceAttention(head_.spec, head_.rope, tokens, queries),
                         .given = std::vector<MassByBlock>(queries.size())};
    std::vector<double> kept;
    for (std::size_t i = 0; i < result.output.mass.size(); ++i) {
      const ReferenceToken& token = tokens[i % tokens.size()];
      const double mass = result.output.mass[i];
      if (recalled.contains(BlockOf(token))) {
        result.given[i / tokens.size()][BlockOf(token)] += mass;
      } else {
        kept.push_back(mass);
      }
    }
    result.output.mass = std::move(kept);
    return result;
  }

  // The evicted blocks that would get most mass from the last queries, each weighed where it could
  // stand farthest off.
  Choice Choose(const std::vector<std::int64_t>& former, NaiveRecallCounts* counts) const {
    std::vector<ReferenceToken> kept = head_.kept;
    std::vector<ReferenceQuery> voters = queries_;
    Place(&kept);
    Place(kept, &voters);
    voters.erase(voters.begin(),
                 voters.end() - std::min(std::ssize(voters), config_.recall.queries));
    std::vector<ReferenceToken> stored = head_.evicted;
    for (ReferenceToken& token : stored) {
      if (step_.mode == PositionPolicy::kCompact)
        token.attention = Position{token.logical.value % config_.cache.block_size};
      else
        token.attention = token.logical;
    }
    const auto weigh = [&](const std::vector<std::int64_t>* among) {
      return Weigh(kept, stored, voters, among, former);
    };
    const std::int64_t blocks = std::ssize(stored) / config_.cache.block_size;
    const std::int64_t for_each = kCandidatesForEach * config_.recall.blocks;
    if (blocks <= std::max(kFew, for_each)) return weigh(nullptr);
    const NaiveCandidates candidates = CandidatesBySketch(
        {&head_.spec, &head_.rope, config_.cache.block_size, &stored, &voters},
        std::max(for_each, step_.is_prompt ? kCandidatesInPrompts : kCandidatesInAnswers));
    Choice choice = weigh(&candidates.blocks);
    if (candidates.others.size() > NaiveCandidates::kMostOthers) choice.decided = false;
    for (std::size_t i = 0; i < candidates.others.size() && choice.decided; ++i) {
      const Choice other = weigh(&candidates.others[i]);
      choice.decided = other.decided && other.blocks == choice.blocks;
      choice.gain_doubt = std::max(choice.gain_doubt, kDoubt + std::abs(other.gain - choice.gain));
    }
    ++counts->sketched;
    if (weigh(nullptr).blocks != choice.blocks) ++counts->overlooked;
    return choice;
  }

 private:
  // Gives each token its place among `tokens`, which are in stream order.
  void Place(std::vector<ReferenceToken>* tokens) const {
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      ReferenceToken& token = (*tokens)[i];
      token.attention = step_.mode == PositionPolicy::kKeep
                            ? token.logical
                            : Position{static_cast<std::int64_t>(i)};
    }
  }

  // Each query stands where its own token does, which is among `tokens`.
  static void Place(const std::vector<ReferenceToken>& tokens,
                    std::vector<ReferenceQuery>* queries) {
    for (ReferenceQuery& query : *queries) {
      query.attention =
          std::find_if(tokens.begin(), tokens.end(), [&](const ReferenceToken& token) {
            return token.logical == query.logical;
          })->attention;
    }
  }

  // Of the stored blocks `among` these, or of all, those that would get most beside what is kept.
  Choice Weigh(std::vector<ReferenceToken> tokens, const std::vector<ReferenceToken>& stored,
               const std::vector<ReferenceQuery>& voters, const std::vector<std::int64_t>* among,
               const std::vector<std::int64_t>& former) const {
    const std::size_t kept = tokens.size();
    std::copy_if(stored.begin(), stored.end(), std::back_inserter(tokens),
                 [&](const ReferenceToken& token) {
                   return among == nullptr ||
                          std::find(among->begin(), among->end(), BlockOf(token)) != among->end();
                 });
    const ReferenceOutput result = ReferenceAttention(head_.spec, head_.rope, tokens, voters);
    MassByBlock masses;
    for (std::size_t i = 0; i < result.mass.size(); ++i) {
      const std::size_t token = i % tokens.size();
      if (token >= kept) masses[BlockOf(tokens[token])] += result.mass[i];
    }
    std::vector<std::int64_t> blocks;
    for (const auto& [block, mass] : masses) blocks.push_back(block);
    std::sort(blocks.begin(), blocks.end(),
              [&](std::int64_t left, std::int64_t right) { return masses[left] > masses[right]; });
    const auto count = std::min(blocks.size(), static_cast<std::size_t>(config_.recall.blocks));
    Choice choice;
    if (count < blocks.size()) {
      const double last_in = masses[blocks[count - 1]];
      choice.decided = last_in - masses[blocks[count]] > kDoubt * last_in;
    }
    blocks.resize(count);
    for (const std::int64_t block : blocks) choice.gain += masses[block];
    // What is not weighed counts as nothing.
    for (const std::int64_t block : former)
      if (masses.contains(block)) choice.gain -= masses[block];
    choice.gain = std::max(0.0, choice.gain) /
                  static_cast<double>(std::ssize(voters) * head_.spec.query_heads);
    std::sort(blocks.begin(), blocks.end());
    choice.blocks = std::move(blocks);
    return choice;
  }

  std::int64_t BlockOf(const ReferenceToken& token) const {
    return token.logical.value / config_.cache.block_size;
  }

  const EngineConfig& config_;
  NaiveStep step_;
  const NaiveHead& head_;
  std::vector<ReferenceQuery> queries_;
};

template <typename T>
void Append(std::vector<T> from, std::vector<T>* to) {
  to->insert(to->end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void Append(NaiveRecalled from, NaiveRecalled* to) {
  Append(std::move(from.output.out), &to->output.out);
  Append(std::move(from.output.mass), &to->output.mass);
  Append(std::move(from.given), &to->given);
}

// What a head's choices in one step have gained.
class Gain {
 public:
  void Add(const Choice& choice) {
    sum_ += choice.gain;
    doubt_ += choice.gain_doubt;
    ++choices_;
  }
  bool empty() const { return choices_ == 0; }
  // Whether their mean is less than `least`.
  bool IsLittle(double least, NaiveRecallCounts* counts) const {
    const double limit = least * static_cast<double>(choices_);
    if (least > 0.0 && std::abs(sum_ - limit) < doubt_) ++counts->undecided;
    return sum_ < limit;
  }

 private:
  double sum_ = 0.0;
  double doubt_ = 0.0;
  std::int64_t choices_ = 0;
};

// One chunk of queries after the other, or several together; each chooses. After a step whose
// choices gain little twice as many share a choice, after another one chunk alone. What the first
// choice of a step gains does not count.
NaiveRecalled AttendInPrompt(const EngineConfig& config, const NaiveStep& step,
                             const NaiveHead& head, const std::vector<ReferenceQuery>& queries,
                             NaiveHabit* habit, NaiveRecallCounts* counts) {
  NaiveRecalled all;
  const std::int64_t together = config.recall.chunk * habit->chunks;
  Gain gain;
  for (std::int64_t first = 0; first < std::ssize(queries); first += together) {
    const std::int64_t last = std::min(first + together, std::ssize(queries));
    const Part part(config, step, head, {queries.begin() + first, queries.begin() + last});
    Choice choice = part.Choose(habit->choice, counts);
    if (!choice.decided) ++counts->undecided;
    if (first > 0) gain.Add(choice);
    habit->choice = std::move(choice.blocks);
    Append(part.Attend(habit->choice), &all);
  }
  // The last choice is for an answer's first token as well, unless each chooses for itself.
  habit->interval = 1;
  habit->holds = config.recall.every > 1 ? 1 : 0;
  if (gain.empty()) return all;
  const bool is_little = gain.IsLittle(config.recall.least_gain, counts);
  ++(is_little ? counts->little_gains_in_prompts : counts->large_gains_in_prompts);
  habit->chunks = is_little ? std::min(kMostChunks, 2 * habit->chunks) : 1;
  return all;
}

// One token, which chooses or has the former choice. After a choice that gains little the next one
// is for twice as many tokens, after another for one alone.
NaiveRecalled AttendInAnswer(const EngineConfig& config, const NaiveStep& step,
                             const NaiveHead& head, const std::vector<ReferenceQuery>& queries,
                             NaiveHabit* habit, NaiveRecallCounts* counts) {
  const Part part(config, step, head, queries);
  if (habit->holds > 0) {
    --habit->holds;
    return part.Attend(habit->choice);
  }
  Choice choice = part.Choose(habit->choice, counts);
  if (!choice.decided) ++counts->undecided;
  Gain gain;
  gain.Add(choice);
  const bool is_little = gain.IsLittle(kAnswersGain * config.recall.least_gain, counts);
  ++(is_little ? counts->little_gains_in_answers : counts->large_gains_in_answers);
  habit->interval = is_little ? std::min(config.recall.every, 2 * habit->interval) : 1;
  habit->holds = habit->interval - 1;
  habit->choice = std::move(choice.blocks);
  return part.Attend(habit->choice);
}

}  // namespace

NaiveRecalled AttendWithRecall(const EngineConfig& config, const NaiveStep& step,
                               const NaiveHead& head, const std::vector<ReferenceQuery>& queries,
                               NaiveHabit* habit, NaiveRecallCounts* counts) {
  if (config.recall.blocks == 0 || head.evicted.empty())
    return Part(config, step, head, queries).Attend({});
  return step.is_prompt ? AttendInPrompt(config, step, head, queries, habit, counts)
                        : AttendInAnswer(config, step, head, queries, habit, counts);
}

}  // namespace carousel::testing
