// SPDX-License-Identifier: Apache-2.0
// The work that engines of attention are compared by: shapes, random data, and what one run counts.
//
// Decode: one query over `context` tokens. Prompt: `queries` queries, the last ones of `context`
// tokens, each of which sees itself and what came before it; queries equal to context is a whole
// prompt in one chunk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention/reference.h"
#include "carousel/model.h"
#include "measure/contender.h"

namespace carousel {

// Tokens in a block where nothing else is asked for: all that OpenVINO's operation has on CPUs.
inline constexpr std::int64_t kMeasuredBlockSize = 32;

struct AttentionShape {
  AttentionLayerSpec layer;  // heads, head sizes and scale; nothing else of it is used
  std::int64_t block_size = kMeasuredBlockSize;  // tokens
  std::int64_t context = 0;  // tokens, those of the queries included; a multiple of block_size
  std::int64_t queries = 0;  // in [1, context]
  std::int64_t layers = 0;   // of the model: so many run one after the other, as in a step

  double FlopsPerLayer() const;  // multiply-adds count twice; hidden scores do not count
};

// Heads and layers of SmolLM2-135M.
AttentionShape DefaultAttentionShape();

// One sequence's queries, keys and values: the same for all layers, which keep them in caches of
// their own.
struct AttentionLoad {
  AttentionShape shape;
  // A run goes through at least so many bytes of cache before it comes back to the first one.
  std::int64_t least_bytes = 0;
  std::vector<float> q;  // [queries, H * key_dim]
  std::vector<float> k;  // [context, Hkv * key_dim]
  std::vector<float> v;  // [context, Hkv * value_dim]

  // How many models with all their caches a run goes through; at least 1.
  std::int64_t Copies(std::int64_t bytes_per_layer) const;
};

// Normally distributed. The same shape gives the same load.
AttentionLoad MakeAttentionLoad(const AttentionShape& shape, std::int64_t least_bytes);

// What attention over the load is when nothing has been evicted, by the slow reference: for tests.
ReferenceOutput ReferenceOf(const AttentionLoad& load);

// An engine with its caches filled, about to attend. A run attends once in each of `layers` layers.
class AttentionContender : public Contender {
 public:
  struct Facts {
    std::string engine;
    std::string kv_type;
    std::string shifts;
    std::int64_t layers = 0;           // that a run goes through, all copies together
    std::int64_t bytes_per_layer = 0;  // of cache, with scales; each run reads them at least once
    std::int64_t threads = 0;
  };

  const Facts& facts() const { return facts_; }
  // What the last run gave in its last layer, [queries, H * value_dim].
  virtual std::vector<float> Output() const = 0;

 protected:
  Facts facts_;
};

}  // namespace carousel
