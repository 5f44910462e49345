// SPDX-License-Identifier: Apache-2.0
// The engine: many endless sequences through one model, each in a cache of fixed size.
//
//   inbox (requests, cancels) -> schedule -> plan, per sequence: evict, allocate, place -> forward
//   -> choose -> commit, per sequence -> outputs
//
// What a sequence forgets hangs on its own tokens and settings, never on who runs beside it. The
// model's products may round otherwise with other rows beside: so an answer equals the answer alone
// but for near ties.
//
// One thread calls everything but Cancel, which any thread may call.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "carousel/config.h"
#include "carousel/metrics.h"
#include "carousel/model.h"
#include "carousel/request.h"
#include "carousel/types.h"

namespace carousel {

// What a step did for one request.
struct StepOutput {
  SequenceId sequence;
  RequestId request;
  StepResult result;
  // Not null: for this sequence the step has not been, and `result` is empty. The request runs on,
  // and the next step tries again, until it is cancelled; but where there was no memory to keep
  // what a pass had found, the request has ended, and the sequence must be Reset.
  std::exception_ptr failure;
};

class Engine {
 public:
  // Settles `config`, which sequences have unless they are opened with another, and probes the
  // model's RoPE where it must. Throws carousel::Error when the configuration is invalid or does
  // not fit the model (a rotation that the probe refuses, a cache beyond the trained window, memory
  // for one sequence that is not to be had).
  static std::unique_ptr<Engine> Create(std::unique_ptr<Model> model, const EngineConfig& config);
  virtual ~Engine() = default;

  virtual const Model& model() const = 0;
  virtual const EngineConfig& config() const = 0;
  // Why rotation is what it is: one sentence per finding of the probe.
  virtual std::string rotation_reason() const = 0;

  // A new sequence, empty, with the engine's settings or with its own. The engine's limits and its
  // scheduler hold for all, whatever `config` says of them. Throws as Create.
  virtual SequenceId Open() = 0;
  virtual SequenceId Open(const EngineConfig& config) = 0;
  // Forgets a sequence, and its request without an output. CHECKs that it is open, as all that take
  // a sequence do.
  virtual void Close(SequenceId sequence) = 0;
  // Forgets all that it has read; its request ends without an output. Blocks go back to the pools.
  virtual void Reset(SequenceId sequence) = 0;

  // --- Checkpoints: a sequence as it stands, frozen. It shares its blocks with the sequence until
  // that writes to them. The sequence has no request. Each throws carousel::Error (kOutOfMemory)
  // where there is no room, and nothing has changed.

  virtual CheckpointId Mark(SequenceId sequence) = 0;
  // The sequence becomes what it, or another one, was when the checkpoint was made, with the
  // settings of that time. What it was before is forgotten.
  virtual void Rewind(SequenceId sequence, CheckpointId checkpoint) = 0;
  // A new sequence that goes on from there.
  virtual SequenceId Fork(CheckpointId checkpoint) = 0;
  virtual SequenceId Fork(SequenceId sequence) = 0;
  virtual void Drop(CheckpointId checkpoint) = 0;

  // --- Requests.

  // Appends a request to the sequence. Nothing runs yet. The previous answer's last token, which
  // the cache has not seen, goes in front of the prompt, unless the answer ended with an end token:
  // that one is dropped, and the prompt says how a turn ends. Where the last request has only read
  // its prompt, an empty one asks for an answer to it: so one reading serves several answers, each
  // in a fork. Throws carousel::Error for an empty prompt elsewhere, a token outside the
  // vocabulary, bad sampling, a pinned span outside the prompt, more pinned than leaves a block to
  // evict, while the sequence has a request, and kBusy where as many run and wait as may; nothing
  // is changed then.
  virtual RequestId Submit(SequenceId sequence, Request request) = 0;
  // Whether requests run or wait: of the engine, of a sequence.
  virtual bool HasWork() const = 0;
  virtual bool HasWork(SequenceId sequence) const = 0;
  // Ends a request at the next step, with kCancelled. Prompt tokens not yet read are dropped.
  // Nothing happens where it has ended. Any thread may call it.
  virtual void Cancel(RequestId request) = 0;
  // One forward pass: for some sequences a chunk of the prompt, for others a token of the answer,
  // or several where guesses were right; one output for each chunk and each token, a sequence's in
  // order, and for each request that ended without a pass. Every answer that has
  // begun moves in every step. Of P prompts that are being read, each moves at least every P-th
  // step. Needs HasWork(). Throws std::bad_alloc alone, and the step has not been.
  virtual std::vector<StepOutput> Step() = 0;

  virtual EngineMetrics metrics() const = 0;
  virtual SequenceMetrics metrics(SequenceId sequence) const = 0;

  // Whether to keep, from the next step on, how much attention each token in the cache receives:
  // from the queries that eviction counts, and from each step's last one where it counts none.
  // Costs an addition per token and counted query. Off at first; turning it off forgets.
  virtual void GatherAttention(SequenceId sequence, bool gather) = 0;
  // How many cache groups there are: one per layer or one per KV head, by layer, then by head.
  virtual std::int64_t cache_groups(SequenceId sequence) const = 0;
  // The blocks that group `group` holds, in stream order; none unless attention is gathered.
  // Between steps. CHECKs the group.
  virtual std::vector<BlockAttention> GatheredAttention(SequenceId sequence,
                                                        std::int64_t group) const = 0;
};

}  // namespace carousel
