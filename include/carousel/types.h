// SPDX-License-Identifier: Apache-2.0
// The words of docs/architecture.md as types: ids and positions that the compiler keeps apart.
#pragma once

#include <compare>
#include <cstdint>

namespace carousel {

// A vocabulary entry, in [0, vocabulary_size).
using TokenId = std::int32_t;

// A block's place in its pool. Compares, but does not count: there is no arithmetic on ids.
struct BlockId {
  std::int32_t value = -1;
  friend auto operator<=>(BlockId, BlockId) = default;
};

// A sequence's name within one engine.
struct SequenceId {
  std::int64_t value = -1;
  friend auto operator<=>(SequenceId, SequenceId) = default;
};

// A checkpoint's name within one engine.
struct CheckpointId {
  std::int64_t value = -1;
  friend auto operator<=>(CheckpointId, CheckpointId) = default;
};

// A request's name within one engine; later requests have larger ones.
struct RequestId {
  std::int64_t value = -1;
  friend auto operator<=>(RequestId, RequestId) = default;
};

// A place on a sequence, in tokens. What it counts (logical, written or attention position) is said
// by the name of the variable. The difference of two positions is a plain number of tokens.
struct Position {
  std::int64_t value = 0;
  friend auto operator<=>(Position, Position) = default;
  friend std::int64_t operator-(Position left, Position right) { return left.value - right.value; }
  friend Position operator+(Position position, std::int64_t tokens) {
    return Position{position.value + tokens};
  }
  Position& operator+=(std::int64_t tokens) {
    value += tokens;
    return *this;
  }
};

}  // namespace carousel
