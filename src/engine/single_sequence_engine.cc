// SPDX-License-Identifier: Apache-2.0
#include "carousel/single_sequence_engine.h"

#include <atomic>
#include <deque>
#include <exception>
#include <utility>

#include "base/check.h"
#include "carousel/engine.h"
#include "engine/sequence_run.h"

namespace carousel {
namespace {

class SingleSequenceEngineImpl final : public SingleSequenceEngine {
 public:
  SingleSequenceEngineImpl(std::unique_ptr<Model> model, const EngineConfig& config)
      : engine_(Engine::Create(std::move(model), config)), sequence_(engine_->Open()) {}

  const Model& model() const override { return engine_->model(); }
  const EngineConfig& config() const override { return engine_->config(); }
  std::string rotation_reason() const override { return engine_->rotation_reason(); }

  void Submit(Request request) override {
    request_ = engine_->Submit(sequence_, std::move(request));
    cancelled_.store(false);
  }
  bool HasWork() const override { return !results_.empty() || engine_->HasWork(sequence_); }

  StepResult Step() override {
    // A broken sequence has no request.
    if (!HasWork() && engine_->metrics(sequence_).needs_reset) FailHalfDone();
    CAROUSEL_CHECK(HasWork());
    if (results_.empty()) TakeStep();
    StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  void Cancel() noexcept override { cancelled_.store(true); }
  void Reset() override {
    results_.clear();
    engine_->Reset(sequence_);
  }
  SequenceMetrics metrics() const override { return engine_->metrics(sequence_); }

  void GatherAttention(bool gather) override { engine_->GatherAttention(sequence_, gather); }
  std::int64_t cache_groups() const override { return engine_->cache_groups(sequence_); }
  std::vector<BlockAttention> GatheredAttention(std::int64_t group) const override {
    return engine_->GatheredAttention(sequence_, group);
  }

 private:
  void TakeStep() {
    if (cancelled_.exchange(false)) engine_->Cancel(request_);
    for (StepOutput& output : engine_->Step()) {
      if (output.failure) std::rethrow_exception(output.failure);
      results_.push_back(std::move(output.result));
    }
    CAROUSEL_CHECK(!results_.empty());
  }

  std::unique_ptr<Engine> engine_;
  SequenceId sequence_;
  RequestId request_;
  std::atomic<bool> cancelled_ = false;
  std::deque<StepResult> results_;  // of the last pass, that nobody has taken
};

}  // namespace

std::unique_ptr<SingleSequenceEngine> SingleSequenceEngine::Create(std::unique_ptr<Model> model,
                                                                   const EngineConfig& config) {
  return std::make_unique<SingleSequenceEngineImpl>(std::move(model), config);
}

}  // namespace carousel
