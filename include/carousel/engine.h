// SPDX-License-Identifier: Apache-2.0
// The engine: one endless sequence through a model in a cache of fixed size.
//
//   request -> schedule -> plan (evict, allocate, positions) -> forward -> choose -> commit -> out
//
// One thread calls Submit, Step and the rest; Cancel alone may be called from any thread or a
// signal handler.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "carousel/config.h"
#include "carousel/enums.h"
#include "carousel/model.h"
#include "carousel/request.h"

namespace carousel {

struct EngineMetrics {
  std::int64_t logical_tokens = 0;       // of the sequence so far
  std::int64_t resident_tokens = 0;      // now, the maximum over groups
  std::int64_t max_resident_tokens = 0;  // ever
  // Ever, the maximum over groups; blocks that came back and left again count again.
  std::int64_t evicted_tokens = 0;
  // Now in the cache no more, likewise; what has only left a sliding window is no loss.
  std::int64_t forgotten_tokens = 0;
  std::int64_t evictions = 0;  // steps that evicted
  // Tokens that were read at positions beyond the model's trained window, ever: where nothing
  // rotates on a stream that is longer than it.
  std::int64_t tokens_past_window = 0;
  // Key rotation: what rounding rewritten keys does to them at each eviction, relative to their
  // size (root mean squares over all that were rewritten); 0 in f32 and with query rotation.
  double requantisation_error = 0.0;
  std::int64_t cache_bytes = 0;     // of blocks in use
  std::int64_t reserved_bytes = 0;  // that the pool and the open blocks hold
  std::int64_t cache_bytes_per_token = 0;
  // Recall: what the second tier holds and has dropped for want of room, in the KV head where that
  // is most.
  std::int64_t recall_stored_tokens = 0;
  std::int64_t recall_dropped_tokens = 0;
  std::int64_t recall_bytes = 0;  // of the second tier, sketches included
  // How often the second tier wanted to grow, below its limits, and could not, since the engine was
  // made: a full disk, a quota, no memory. It then drops its oldest blocks as it does at a limit,
  // and asks again now and then.
  std::int64_t recall_refused_growths = 0;
  std::string recall_limited_by;       // what the system said the last time; empty: nothing yet
  std::int64_t recalled_blocks = 0;    // brought back now, over all layers and KV heads
  std::int64_t promoted_blocks = 0;    // moved back into the cache, ever, over all groups
  double recall_seconds = 0.0;         // storing and choosing; part of attention_seconds but for
                                       // storing
  double attention_seconds = 0.0;      // inside our attention, since the engine was made
  double forward_seconds = 0.0;        // the model's whole forward, attention included
  Rotation rotation = Rotation::kOff;  // in force: never kAuto
  PositionPolicy positions = PositionPolicy::kKeep;  // in force now: never kAuto
};

class Engine {
 public:
  // Probes the model's RoPE, settles rotation and positions, reserves what it must. Throws
  // carousel::Error when the configuration is invalid or does not fit the model (a rotation that
  // the probe refuses, a cache beyond the trained window, memory that is not to be had).
  static std::unique_ptr<Engine> Create(std::unique_ptr<Model> model, const EngineConfig& config);
  virtual ~Engine() = default;

  virtual const Model& model() const = 0;
  virtual const EngineConfig& config() const = 0;
  // Why rotation is what it is: one sentence per finding of the probe.
  virtual std::string rotation_reason() const = 0;

  // Appends a request to the sequence. Nothing runs yet. The previous answer's last token, which
  // the cache has not seen, goes in front of the prompt, unless the answer ended with an end token:
  // that one is dropped, and the prompt says how a turn ends. Throws carousel::Error for an empty
  // prompt, a token outside the vocabulary, bad sampling, a pinned span outside the prompt, more
  // pinned than leaves a block to evict, and while HasWork(); the sequence is then unchanged.
  virtual void Submit(Request request) = 0;
  virtual bool HasWork() const = 0;
  // One forward pass: a chunk of the prompt, or one token of the answer. When it throws (out of
  // memory, the runtime failed, the model's logits are NaN or infinite) the step has not been: it
  // can be tried again, or the request be cancelled, and what follows is bit for bit what it would
  // have been. Only where there was no memory to keep what a pass had found, HasWork() is false
  // afterwards, and the sequence must be Reset: Submit and Step say so. Needs HasWork().
  virtual StepResult Step() = 0;
  // Ends the running request at the next step, with kCancelled. Prompt tokens not yet read are
  // dropped.
  virtual void Cancel() noexcept = 0;
  // Forgets everything; all blocks go back to the pool.
  virtual void Reset() = 0;
  virtual EngineMetrics metrics() const = 0;

  // Whether to keep, from the next step on, how much attention each token in the cache receives:
  // from the queries that eviction counts, and from each step's last one where it counts none.
  // Costs an addition per token and counted query. Off at first; turning it off forgets.
  virtual void GatherAttention(bool gather) = 0;
  // How many cache groups there are: one per layer or one per KV head, by layer, then by head.
  virtual std::int64_t cache_groups() const = 0;
  // The blocks that group `group` holds, in stream order; none unless attention is gathered.
  // Between steps. CHECKs the group.
  virtual std::vector<BlockAttention> GatheredAttention(std::int64_t group) const = 0;
};

}  // namespace carousel
