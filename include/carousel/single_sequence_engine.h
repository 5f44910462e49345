// SPDX-License-Identifier: Apache-2.0
// An engine with one sequence, for programs that need no more: what engine.h says of many, without
// their names.
//
// One thread calls Submit, Step and the rest; Cancel alone may be called from any thread or a
// signal handler.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "carousel/config.h"
#include "carousel/metrics.h"
#include "carousel/model.h"
#include "carousel/request.h"

namespace carousel {

class SingleSequenceEngine {
 public:
  // Probes the model's RoPE, settles rotation and positions, reserves what it must. Throws
  // carousel::Error when the configuration is invalid or does not fit the model (a rotation that
  // the probe refuses, a cache beyond the trained window, memory that is not to be had).
  static std::unique_ptr<SingleSequenceEngine> Create(std::unique_ptr<Model> model,
                                                      const EngineConfig& config);
  virtual ~SingleSequenceEngine() = default;

  virtual const Model& model() const = 0;
  virtual const EngineConfig& config() const = 0;
  // Why rotation is what it is: one sentence per finding of the probe.
  virtual std::string rotation_reason() const = 0;

  // Appends a request to the sequence. Nothing runs yet. The previous answer's last token, which
  // the cache has not seen, goes in front of the prompt, unless the answer ended with an end token:
  // that one is dropped, and the prompt says how a turn ends. Where the last request has only read
  // its prompt, an empty one asks for an answer to it. Throws carousel::Error for an empty prompt
  // elsewhere, a token outside the vocabulary, bad sampling, a pinned span outside the prompt, more
  // pinned than leaves a block to evict, and while HasWork(); the sequence is then unchanged.
  virtual void Submit(Request request) = 0;
  virtual bool HasWork() const = 0;
  // A chunk of the prompt, or one token of the answer: a forward pass, but for tokens that the last
  // pass has given as well (speculation), which no Cancel takes back. When it throws (out of
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
  virtual SequenceMetrics metrics() const = 0;

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
