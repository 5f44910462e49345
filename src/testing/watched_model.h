// SPDX-License-Identifier: Apache-2.0
// A model that fails where it is told, and notes which blocks each sequence of a step attends to.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "carousel/error.h"
#include "carousel/model.h"
#include "engine/layer_attention.h"
#include "engine/sequence.h"

namespace carousel {

// Some queries of a step, by rows of the sequence, in one KV head, and the blocks that they attend
// to, each by the logical position of its first token.
struct SeenPart {
  std::int64_t first_query = 0;
  std::int64_t queries = 0;
  std::vector<std::int64_t> recalled;  // ascending; the group's resident ones come beside
};

// What one sequence does in a pass: a chunk of a prompt, or a token of an answer.
struct SeenStep {
  const Sequence* sequence = nullptr;
  const SharedCache* shared = nullptr;  // of it
  std::int64_t stage = 0;               // of a draft's tokens, from 0
  std::int64_t tokens = 0;
  bool is_prompt = false;
  PositionPolicy mode = PositionPolicy::kKeep;
  std::vector<std::int64_t> written;                // [tokens]
  std::vector<std::vector<std::int64_t>> resident;  // [groups], as SeenPart has them
  // [layers][kv_heads]; no part: all queries at once, and nothing is recalled.
  std::vector<std::vector<std::vector<SeenPart>>> layers;
};

// What is to go wrong in the next pass.
struct Mishap {
  std::optional<std::int64_t> layer;  // at which it fails
  bool after_attention = false;       // of that layer
  bool is_bad_alloc = false;          // and not the model's error
  // Not null: in the layer the engine's own attention has so much memory left, and then none.
  std::atomic<std::int64_t>* memory_left = nullptr;
  std::int64_t memory_granted = 0;
  std::optional<std::size_t>
      bad_logits;  // of which of the step's sequences the last row is no number
};

class WatchedModel final : public Model, private AttentionWatcher {
 public:
  // `mishap` and `seen` outlive this. `seen` gets what the last pass has attended to.
  WatchedModel(std::unique_ptr<Model> model, const Mishap* mishap, std::vector<SeenStep>* seen)
      : model_(std::move(model)), mishap_(mishap), seen_(seen) {}
  const ModelSpec& spec() const override { return model_->spec(); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    seen_->clear();
    if (auto* engine = dynamic_cast<LayerAttention*>(&attention); engine != nullptr)
      engine->Watch(this);
    Guard watch(mishap_, &attention);
    const std::span<const float> logits = model_->Forward(input, watch);
    if (!mishap_->bad_logits || input.sequences.empty()) return logits;
    logits_.assign(logits.begin(), logits.end());
    const RowRange& rows = input.sequences[*mishap_->bad_logits % input.sequences.size()];
    const auto vocabulary = static_cast<std::size_t>(spec().vocabulary_size);
    for (std::size_t i = 0; i < input.logit_rows.size(); ++i) {
      if (input.logit_rows[i] == rows.first_row + rows.rows - 1)
        logits_[i * vocabulary + 1] = std::numeric_limits<float>::quiet_NaN();
    }
    return logits_;
  }

 private:
  void SeeStage(std::int64_t layer, const Sequence& sequence, std::int64_t stage) override {
    SeenStep& step = StepOf(sequence, stage);
    if (sequence.recall_tasks() == nullptr) return;
    const auto groups = GroupsOf(sequence, layer);
    for (const RecallPart& part : sequence.recall_tasks()->layer_parts()) {
      const auto head = static_cast<std::size_t>(
          groups[static_cast<std::size_t>(part.group)].first_kv_head + part.head);
      SeenPart noted{.first_query = part.first_query, .queries = part.queries, .recalled = {}};
      for (const RecalledBlock& block : part.recalled)
        noted.recalled.push_back(block.logical.value);
      step.layers[static_cast<std::size_t>(layer)][head].push_back(std::move(noted));
    }
  }

  class Guard final : public AttentionCallback {
   public:
    Guard(const Mishap* mishap, AttentionCallback* attention)
        : mishap_(*mishap), attention_(*attention) {}
    void Attend(std::int64_t layer, std::int64_t rows, const float* q, const float* k,
                const float* v, float* out) override {
      const Mishap& mishap = mishap_;
      const bool is_meant = mishap.layer == layer;
      if (is_meant && mishap.memory_left != nullptr) {
        const Shortage shortage(mishap);
        attention_.Attend(layer, rows, q, k, v, out);
      } else {
        if (is_meant && !mishap.after_attention) Fail(mishap);
        attention_.Attend(layer, rows, q, k, v, out);
      }
      if (is_meant && mishap.memory_left == nullptr) Fail(mishap);
    }

   private:
    class Shortage {
     public:
      explicit Shortage(const Mishap& mishap)
          : left_(*mishap.memory_left), before_(left_.exchange(mishap.memory_granted)) {}
      ~Shortage() { left_ = before_; }
      Shortage(const Shortage&) = delete;
      Shortage& operator=(const Shortage&) = delete;

     private:
      std::atomic<std::int64_t>& left_;
      std::int64_t before_;
    };

    [[noreturn]] static void Fail(const Mishap& mishap) {
      if (mishap.is_bad_alloc) throw std::bad_alloc();
      throw Error(ErrorCode::kModel, "model", "this pass was to fail");
    }

    const Mishap& mishap_;
    AttentionCallback& attention_;
  };

  SeenStep& StepOf(const Sequence& sequence, std::int64_t stage) {
    for (SeenStep& step : *seen_)
      if (step.sequence == &sequence && step.stage == stage) return step;
    return seen_->emplace_back(Begin(sequence, stage));
  }

  static std::span<const CacheGroup> GroupsOf(const Sequence& sequence, std::int64_t layer) {
    const SharedCache& shared = *sequence.shared();
    const std::int64_t first = shared.first_group(layer);
    return std::span(shared.settings().groups)
        .subspan(static_cast<std::size_t>(first),
                 static_cast<std::size_t>(shared.first_group(layer + 1) - first));
  }

  SeenStep Begin(const Sequence& sequence, std::int64_t stage) const {
    const StepPlan& plan = sequence.plan();
    const StagePlan& of_stage = plan.stages[static_cast<std::size_t>(stage)];
    const SequenceTables& tables = sequence.tables();
    const auto first = plan.position_ids.begin() + of_stage.first_token;
    SeenStep step{.sequence = &sequence,
                  .shared = sequence.shared(),
                  .stage = stage,
                  .tokens = of_stage.tokens,
                  .is_prompt = plan.is_prompt,
                  .mode = tables.mode(),
                  .written = {first, first + of_stage.tokens},
                  .resident = {},
                  .layers = {}};
    for (std::int64_t group = 0; group < tables.groups(); ++group) {
      std::vector<std::int64_t>& resident = step.resident.emplace_back();
      for (const TableEntry& entry : tables.table(group).entries())
        resident.push_back(entry.logical.value);
    }
    for (const AttentionLayerSpec& layer : spec().layers)
      step.layers.emplace_back(static_cast<std::size_t>(layer.kv_heads));
    return step;
  }

  std::unique_ptr<Model> model_;
  const Mishap* mishap_;
  std::vector<SeenStep>* seen_;
  std::vector<float> logits_;
};

}  // namespace carousel
