// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine_loop.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace carousel {
namespace {

// How often a step that has thrown is tried again before all requests fail, and the pause before.
constexpr int kMostTries = 10;
constexpr std::chrono::milliseconds kPause(10);

class EngineLoopImpl final : public EngineLoop {
 public:
  explicit EngineLoopImpl(std::unique_ptr<Engine> engine)
      : engine_(std::move(engine)), thread_([this] { Run(); }) {}

  ~EngineLoopImpl() override {
    {
      const std::lock_guard lock(mutex_);
      stops_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  void Cancel(RequestId request) override { engine_->Cancel(request); }

 protected:
  void Post(std::function<void(Engine&)> work) override {
    if (std::this_thread::get_id() == thread_.get_id()) return work(*engine_);
    {
      const std::lock_guard lock(mutex_);
      inbox_.push_back(std::move(work));
    }
    wake_.notify_one();
  }

  RequestId SubmitHere(SequenceId sequence, Request request, OutputCallback on_output) override {
    // What can lack memory comes before the request is in.
    std::map<RequestId, Listener> one;
    one.try_emplace(
        RequestId{},
        Listener{.sequence = sequence,
                 .on_output = std::make_shared<const OutputCallback>(std::move(on_output)),
                 .failure = nullptr});
    auto listener = one.extract(one.begin());
    const RequestId id = engine_->Submit(sequence, std::move(request));
    listener.key() = id;
    listeners_.insert(std::move(listener));
    return id;
  }

 private:
  using Inbox = std::vector<std::function<void(Engine&)>>;
  struct Listener {
    SequenceId sequence;
    // Shared with the call at hand, in which the sequence may be closed.
    std::shared_ptr<const OutputCallback> on_output;
    std::exception_ptr failure;  // not null: it is told when the request has ended
    bool is_cancelled = false;
  };

  // What has come in; waits for something while there is nothing to do. False: the loop stops.
  bool TakeInbox(Inbox* taken) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stops_ || !inbox_.empty() || engine_->HasWork(); });
    taken->swap(inbox_);
    return !stops_;
  }

  void Run() {
    engine_->OnForget([this](SequenceId sequence) { Forget(sequence); });
    for (;;) {
      Inbox taken;
      const bool goes_on = TakeInbox(&taken);
      for (const auto& work : taken) work(*engine_);  // those who wait for it wait no longer
      if (!goes_on) return;
      if (!engine_->HasWork()) continue;
      for (StepOutput& output : TryStep()) Deliver(&output);
    }
  }

  void Forget(SequenceId sequence) {
    std::erase_if(listeners_,
                  [&](const auto& listener) { return listener.second.sequence == sequence; });
  }

  // Nothing where there is no memory for a step: it has not been, and is tried again. When that has
  // not helped for a while, all requests fail as soon as a step can end them.
  std::vector<StepOutput> TryStep() {
    try {
      CancelFailed();
      std::vector<StepOutput> outputs = engine_->Step();
      tries_ = 0;
      return outputs;
    } catch (...) {
      if (++tries_ >= kMostTries) FailAll(std::current_exception());
    }
    std::this_thread::sleep_for(kPause);
    return {};
  }

  void CancelFailed() {
    if (!has_failed_) return;
    for (auto& [request, listener] : listeners_) {
      if (listener.failure == nullptr || listener.is_cancelled) continue;
      engine_->Cancel(request);
      listener.is_cancelled = true;
    }
    has_failed_ = false;
  }

  void FailAll(const std::exception_ptr& failure) {
    for (auto& [request, listener] : listeners_) Fail(&listener, failure);
  }

  // The next step ends its request.
  void Fail(Listener* listener, const std::exception_ptr& failure) {
    if (listener->failure == nullptr) listener->failure = failure;
    has_failed_ = true;
  }

  void Deliver(StepOutput* output) {
    const auto found = listeners_.find(output->request);
    if (found == listeners_.end()) return;
    Listener& listener = found->second;
    if (output->failure != nullptr && engine_->HasWork(output->sequence))
      return Fail(&listener, output->failure);
    const bool is_last =
        output->failure != nullptr || output->result.finish_reason != FinishReason::kNone;
    if (listener.failure != nullptr) {
      if (!is_last) return;
      output->result = {};
      output->failure = listener.failure;
    }
    // The callback may ask for something else, or close the sequence.
    const std::shared_ptr<const OutputCallback> on_output = listener.on_output;
    if (is_last) listeners_.erase(found);
    (*on_output)(*output);
  }

  std::unique_ptr<Engine> engine_;
  std::map<RequestId, Listener> listeners_;  // of the loop's thread
  bool has_failed_ = false;                  // some of them, and are not cancelled yet
  int tries_ = 0;                            // of a step that has thrown
  std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;
  bool stops_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace

std::unique_ptr<EngineLoop> EngineLoop::Start(std::unique_ptr<Engine> engine) {
  return std::make_unique<EngineLoopImpl>(std::move(engine));
}

}  // namespace carousel
