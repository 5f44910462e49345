// SPDX-License-Identifier: Apache-2.0
// What the commands need from the rest of the system. Tests bring a small one of their own.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "carousel/model.h"
#include "carousel/single_sequence_engine.h"
#include "carousel/tokenizer.h"
#include "cli/console.h"
#include "cli/flags.h"
#include "measure/attention_load.h"

namespace carousel {

class Backend {
 public:
  virtual ~Backend() = default;
  // Each throws carousel::Error.
  virtual std::unique_ptr<Model> LoadModel(const ModelFlags& flags) = 0;
  // `vocabulary_size` is the model's.
  virtual std::unique_ptr<Tokenizer> LoadTokenizer(const ModelFlags& flags,
                                                   std::int64_t vocabulary_size) = 0;
  virtual std::unique_ptr<SingleSequenceEngine> CreateEngine(std::unique_ptr<Model> model,
                                                             const EngineConfig& config) = 0;
  // The attention of another engine, to be measured beside ours; empty where there is none. `load`
  // outlives it.
  virtual std::vector<std::unique_ptr<AttentionContender>> RivalAttention(
      const AttentionLoad& /*load*/) {
    return {};
  }
};

// An engine with the tokenizer of its model.
struct LoadedEngine {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<SingleSequenceEngine> engine;
};

// Says on `err` which defaults gave way to the model's window.
void TellYieldedSizes(const EngineConfig& asked, const EngineConfig& settled,
                      const ModelSpec& model, TextOutput* err);
// Says so as well.
LoadedEngine Load(Backend* backend, const ModelFlags& flags, const EngineConfig& config,
                  TextOutput* err);

}  // namespace carousel
