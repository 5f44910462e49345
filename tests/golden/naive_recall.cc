// SPDX-License-Identifier: Apache-2.0
#include "golden/naive_recall.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace carousel::testing {
namespace {

// Queries of one head that share a choice.
class Part {
 public:
  Part(const EngineConfig& config, PositionPolicy mode, const NaiveHead& head)
      : config_(config), mode_(mode), head_(head) {}

  NaiveRecalled Attend(std::vector<ReferenceQuery> queries) const {
    const std::vector<std::int64_t> chosen = Choose(queries);
    const auto is_chosen = [&](const ReferenceToken& token) {
      return std::find(chosen.begin(), chosen.end(), BlockOf(token)) != chosen.end();
    };
    std::vector<ReferenceToken> tokens = head_.kept;
    std::copy_if(head_.evicted.begin(), head_.evicted.end(), std::back_inserter(tokens), is_chosen);
    std::sort(tokens.begin(), tokens.end(),
              [](const ReferenceToken& left, const ReferenceToken& right) {
                return left.logical < right.logical;
              });
    Place(&tokens);
    Place(tokens, &queries);
    NaiveRecalled result{.output = ReferenceAttention(head_.spec, head_.rope, tokens, queries),
                         .given = std::vector<MassByBlock>(queries.size())};
    std::vector<double> kept;
    for (std::size_t i = 0; i < result.output.mass.size(); ++i) {
      const ReferenceToken& token = tokens[i % tokens.size()];
      const double mass = result.output.mass[i];
      if (is_chosen(token)) {
        result.given[i / tokens.size()][BlockOf(token)] += mass;
      } else {
        kept.push_back(mass);
      }
    }
    result.output.mass = std::move(kept);
    return result;
  }

 private:
  // Gives each token its place among `tokens`, which are in stream order.
  void Place(std::vector<ReferenceToken>* tokens) const {
    for (std::size_t i = 0; i < tokens->size(); ++i) {
      ReferenceToken& token = (*tokens)[i];
      token.attention =
          mode_ == PositionPolicy::kKeep ? token.logical : Position{static_cast<std::int64_t>(i)};
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

  // The evicted blocks that would get most mass from the last queries, each weighed where it could
  // stand farthest off.
  std::vector<std::int64_t> Choose(std::vector<ReferenceQuery> queries) const {
    if (config_.recall.blocks == 0) return {};
    std::vector<ReferenceToken> tokens = head_.kept;
    Place(&tokens);
    Place(tokens, &queries);
    const auto voters = std::min(std::ssize(queries), config_.recall.queries);
    queries.erase(queries.begin(), queries.end() - voters);
    for (ReferenceToken token : head_.evicted) {
      token.attention = mode_ == PositionPolicy::kKeep
                            ? token.logical
                            : Position{token.logical.value % config_.cache.block_size};
      tokens.push_back(std::move(token));
    }
    const ReferenceOutput result = ReferenceAttention(head_.spec, head_.rope, tokens, queries);
    MassByBlock masses;
    for (std::size_t i = 0; i < result.mass.size(); ++i) {
      const std::size_t token = i % tokens.size();
      if (token >= head_.kept.size()) masses[BlockOf(tokens[token])] += result.mass[i];
    }
    std::vector<std::int64_t> blocks;
    for (const auto& [block, mass] : masses) blocks.push_back(block);
    std::sort(blocks.begin(), blocks.end(),
              [&](std::int64_t left, std::int64_t right) { return masses[left] > masses[right]; });
    blocks.resize(std::min(blocks.size(), static_cast<std::size_t>(config_.recall.blocks)));
    return blocks;
  }

  std::int64_t BlockOf(const ReferenceToken& token) const {
    return token.logical.value / config_.cache.block_size;
  }

  const EngineConfig& config_;
  PositionPolicy mode_;
  const NaiveHead& head_;
};

template <typename T>
void Append(std::vector<T> from, std::vector<T>* to) {
  to->insert(to->end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

// One chunk of queries after the other.
NaiveRecalled AttendWithRecall(const EngineConfig& config, PositionPolicy mode,
                               const NaiveHead& head, const std::vector<ReferenceQuery>& queries) {
  const Part part(config, mode, head);
  NaiveRecalled all;
  for (std::ptrdiff_t first = 0; first < std::ssize(queries); first += config.recall.chunk) {
    const auto last = std::min<std::ptrdiff_t>(first + config.recall.chunk, std::ssize(queries));
    NaiveRecalled some = part.Attend({queries.begin() + first, queries.begin() + last});
    Append(std::move(some.output.out), &all.output.out);
    Append(std::move(some.output.mass), &all.output.mass);
    Append(std::move(some.given), &all.given);
  }
  return all;
}

}  // namespace carousel::testing
