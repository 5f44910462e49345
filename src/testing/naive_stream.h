// SPDX-License-Identifier: Apache-2.0
// A sequence as one would write it down: every token that was ever read with its key as it is
// before RoPE and its value, in double, and attention by the formula. No blocks, no pools, nothing
// shared. It is told which blocks of tokens a step attends to; what comes of them is its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "carousel/model.h"
#include "rope/rope_spec.h"
#include "rope/rotate.h"
#include "testing/watched_model.h"

namespace carousel {

// What one layer keeps of a token: [kv_heads * key_dim] before RoPE, [kv_heads * value_dim].
struct NaiveLayerToken {
  std::vector<double> key;
  std::vector<double> value;
};
using NaiveToken = std::vector<NaiveLayerToken>;  // [layers]

struct NaiveStream {
  std::vector<TokenId> history;
  std::vector<std::shared_ptr<const NaiveToken>> tokens;  // of the history; forks share them
};

// How the cache rounds what it holds.
struct NaiveRounding {
  KvType keys = KvType::kF32;
  KvType values = KvType::kF32;
};

// How many tokens' keys and values the cache holds, as it holds them: read from its blocks.
// [layers], of a step's tokens: keys [tokens, kv_heads * key_dim] as they were written, values
// [tokens, kv_heads * value_dim]. Empty where the cache rounds nothing.
struct HeldLayer {
  std::vector<float> keys;
  std::vector<float> values;
};

class NaiveReading final : public AttentionCallback {
 public:
  // `model` and `rope`, that of all its layers, outlive it.
  NaiveReading(Model* model, const LayerRope* rope) : model_(*model), rope_(*rope) {}

  // Reads the step's tokens. Returns logits [tokens, vocabulary_size], valid until the next call.
  std::span<const float> Read(const std::vector<TokenId>& read, const SeenStep& seen,
                              std::int64_t block_size, const NaiveRounding& rounding,
                              std::vector<HeldLayer> held, NaiveStream* stream) {
    stream_ = stream;
    seen_ = &seen;
    block_size_ = block_size;
    rounding_ = rounding;
    held_ = std::move(held);
    first_ = std::ssize(stream->history);
    step_.assign(read.size(), NaiveToken(model_.spec().layers.size()));
    // At position 0 RoPE does nothing.
    const std::vector<std::int64_t> positions(read.size(), 0);
    std::vector<std::int64_t> rows(read.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::int64_t>(i);
    const std::span<const float> logits =
        model_.Forward({.token_ids = read, .position_ids = positions, .logit_rows = rows}, *this);
    stream->history.insert(stream->history.end(), read.begin(), read.end());
    for (NaiveToken& token : step_)
      stream->tokens.push_back(std::make_shared<const NaiveToken>(std::move(token)));
    return logits;
  }

  void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k, const float* v,
              float* out) override {
    const AttentionLayerSpec& spec = model_.spec().layers[static_cast<std::size_t>(layer)];
    Keep(static_cast<std::size_t>(layer), spec, rows, k, v);
    for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
      std::vector<SeenPart> parts =
          seen_->layers[static_cast<std::size_t>(layer)][static_cast<std::size_t>(head)];
      if (parts.empty()) parts.push_back({.first_query = 0, .queries = rows, .recalled = {}});
      for (const SeenPart& part : parts) AttendPart(layer, spec, head, part, q, out);
    }
  }

  // The largest part of half a step of rounding by which anything held was off, ever.
  double worst_rounding() const { return worst_rounding_; }

 private:
  const NaiveLayerToken& Token(std::int64_t logical, std::size_t layer) const {
    return logical < first_ ? (*stream_->tokens[static_cast<std::size_t>(logical)])[layer]
                            : step_[static_cast<std::size_t>(logical - first_)][layer];
  }

  // By how much rounding may move a number of a row whose largest is `largest`.
  static double RoundingOf(KvType type, double number, double largest) {
    switch (type) {
      case KvType::kF16:
        return std::max(std::abs(number) * 0x1p-11, 0x1p-25);
      case KvType::kBf16:
        return std::abs(number) * 0x1p-8;
      case KvType::kInt8:
        return largest / 254.0;
      default:
        return 0.0;
    }
  }

  // What is held of one head's row must be this row, rounded.
  void JudgeHeld(KvType type, std::span<const double> exact, const float* held) {
    double largest = 0.0;
    for (const double number : exact) largest = std::max(largest, std::abs(number));
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double off = std::abs(exact[i] - static_cast<double>(held[i]));
      // Both models round in float32.
      const double doubt = 2e-5 * std::max(1.0, largest);
      const double may = RoundingOf(type, exact[i], largest);
      worst_rounding_ = std::max(worst_rounding_, std::max(0.0, off - doubt) / std::max(may, 1e-9));
    }
  }

  void Keep(std::size_t layer, const AttentionLayerSpec& spec, std::int64_t rows, const float* k,
            const float* v) {
    const std::int64_t k_row = spec.kv_heads * spec.key_dim;
    const std::int64_t v_row = spec.kv_heads * spec.value_dim;
    for (std::int64_t t = 0; t < rows; ++t) {
      NaiveLayerToken& token = step_[static_cast<std::size_t>(t)][layer];
      token.key.assign(k + t * k_row, k + (t + 1) * k_row);
      token.value.assign(v + t * v_row, v + (t + 1) * v_row);
      if (rounding_.keys != KvType::kF32)
        TakeHeldKeys(spec, t, held_[layer].keys.data() + t * k_row, &token.key);
      if (rounding_.values == KvType::kF32) continue;
      const float* held = held_[layer].values.data() + t * v_row;
      for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
        const std::int64_t first = head * spec.value_dim;
        JudgeHeld(
            rounding_.values,
            std::span(token.value)
                .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(spec.value_dim)),
            held + first);
      }
      token.value.assign(held, held + v_row);
    }
  }

  // The cache rounds keys where they were written; what that made of them, before RoPE.
  void TakeHeldKeys(const AttentionLayerSpec& spec, std::int64_t t, const float* held,
                    std::vector<double>* key) {
    const auto at = static_cast<double>(seen_->written[static_cast<std::size_t>(t)]);
    const auto dim = static_cast<std::size_t>(spec.key_dim);
    std::vector<double> written(dim);
    for (std::int64_t head = 0; head < spec.kv_heads; ++head) {
      double* own = key->data() + head * spec.key_dim;
      RotateVectorReference(rope_, at, spec.key_dim, own, written.data());
      JudgeHeld(rounding_.keys, written, held + head * spec.key_dim);
      written.assign(held + head * spec.key_dim, held + (head + 1) * spec.key_dim);
      RotateVectorReference(rope_, -at, spec.key_dim, written.data(), own);
    }
  }

  // cos and sin of each pair's angle over a distance.
  const double* Turn(std::int64_t distance) {
    const std::size_t pairs = rope_.frequencies.size();
    while (std::ssize(turns_) <= distance * static_cast<std::int64_t>(2 * pairs)) {
      const auto at = static_cast<double>(turns_.size() / (2 * pairs));
      for (const double frequency : rope_.frequencies) {
        turns_.push_back(std::cos(at * frequency));
        turns_.push_back(std::sin(at * frequency));
      }
    }
    return turns_.data() + static_cast<std::size_t>(distance) * 2 * pairs;
  }

  // q R(-distance) k: the key stands so far behind the query.
  double Product(const float* q, const double* key, std::int64_t distance) {
    const std::size_t pairs = rope_.frequencies.size();
    const double* turn = Turn(distance);
    double sum = 0.0;
    for (std::size_t i = 0; i < pairs; ++i) {
      const bool halves = rope_.pairing == Pairing::kHalves;
      const std::size_t x = halves ? i : 2 * i;
      const std::size_t y = halves ? i + pairs : 2 * i + 1;
      const auto qx = static_cast<double>(q[x]);
      const auto qy = static_cast<double>(q[y]);
      sum +=
          turn[2 * i] * (qx * key[x] + qy * key[y]) + turn[2 * i + 1] * (qx * key[y] - qy * key[x]);
    }
    return sum;
  }

  struct Place {
    std::int64_t logical = 0;
    std::int64_t attention = 0;
  };

  // All tokens that a part attends to, in stream order, and where they stand.
  std::vector<Place> Places(std::int64_t layer, std::int64_t head, const SeenPart& part) const {
    const SharedCache& shared = *seen_->shared;
    std::int64_t group = shared.first_group(layer);
    while (head >= shared.group(group).first_kv_head + shared.group(group).kv_heads) ++group;
    std::vector<std::int64_t> blocks = seen_->resident[static_cast<std::size_t>(group)];
    blocks.insert(blocks.end(), part.recalled.begin(), part.recalled.end());
    std::sort(blocks.begin(), blocks.end());
    const std::int64_t end = first_ + std::ssize(step_);
    std::vector<Place> places;
    for (const std::int64_t block : blocks) {
      for (std::int64_t token = block; token < std::min(block + block_size_, end); ++token) {
        const bool keeps = seen_->mode == PositionPolicy::kKeep;
        places.push_back({.logical = token, .attention = keeps ? token : std::ssize(places)});
      }
    }
    return places;
  }

  void AttendPart(std::int64_t layer, const AttentionLayerSpec& spec, std::int64_t head,
                  const SeenPart& part, const float* q, float* out) {
    const std::vector<Place> places = Places(layer, head, part);
    const std::int64_t per_kv_head = spec.query_heads / spec.kv_heads;
    std::vector<double> weights(places.size());
    for (std::int64_t i = part.first_query; i < part.first_query + part.queries; ++i) {
      const std::int64_t own = first_ + i;
      const auto at = std::find_if(places.begin(), places.end(),
                                   [&](const Place& place) { return place.logical == own; });
      if (at == places.end()) {
        std::fill_n(out, spec.value_dim, std::numeric_limits<float>::quiet_NaN());
        continue;  // who asks sees it
      }
      const auto seen = static_cast<std::size_t>(at - places.begin()) + 1;
      for (std::int64_t h = head * per_kv_head; h < (head + 1) * per_kv_head; ++h) {
        const float* query = q + (i * spec.query_heads + h) * spec.key_dim;
        double largest = -std::numeric_limits<double>::infinity();
        for (std::size_t t = 0; t < seen; ++t) {
          const std::int64_t distance = at->attention - places[t].attention;
          const bool visible =
              spec.sliding_window == 0 || own - places[t].logical < spec.sliding_window;
          const double* key = Token(places[t].logical, static_cast<std::size_t>(layer)).key.data() +
                              head * spec.key_dim;
          weights[t] = visible ? Product(query, key, distance) * static_cast<double>(spec.scale)
                               : -std::numeric_limits<double>::infinity();
          largest = std::max(largest, weights[t]);
        }
        double sum = 0.0;
        std::vector<double> row(static_cast<std::size_t>(spec.value_dim));
        for (std::size_t t = 0; t < seen; ++t) {
          const double weight = std::exp(weights[t] - largest);
          if (weight == 0.0) continue;
          sum += weight;
          const double* value =
              Token(places[t].logical, static_cast<std::size_t>(layer)).value.data() +
              head * spec.value_dim;
          for (std::size_t d = 0; d < row.size(); ++d) row[d] += weight * value[d];
        }
        float* to = out + (i * spec.query_heads + h) * spec.value_dim;
        for (std::size_t d = 0; d < row.size(); ++d) to[d] = static_cast<float>(row[d] / sum);
      }
    }
  }

  Model& model_;
  const LayerRope& rope_;
  std::vector<double> turns_;
  double worst_rounding_ = 0.0;

  // Of the step at hand.
  NaiveStream* stream_ = nullptr;
  const SeenStep* seen_ = nullptr;
  std::int64_t block_size_ = 0;
  NaiveRounding rounding_;
  std::vector<HeldLayer> held_;
  std::int64_t first_ = 0;  // the history's length before it
  std::vector<NaiveToken> step_;
};

}  // namespace carousel
