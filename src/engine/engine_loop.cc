// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine_loop.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace carousel {
namespace {

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

  void Listen(RequestId request, OutputCallback on_output) override {
    callbacks_[request] = std::move(on_output);
  }

  // Its callback's request is not known here, so all whose request has ended are dropped.
  void Forget(SequenceId sequence) override { closed_.push_back(sequence); }

 private:
  // What has come in; waits for something while there is nothing to do. False: the loop stops.
  bool TakeInbox(std::deque<std::function<void(Engine&)>>* taken) {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stops_ || !inbox_.empty() || engine_->HasWork(); });
    taken->swap(inbox_);
    return !stops_;
  }

  void Run() {
    for (;;) {
      std::deque<std::function<void(Engine&)>> taken;
      const bool goes_on = TakeInbox(&taken);
      for (const auto& work : taken) work(*engine_);  // those who wait for it wait no longer
      if (!goes_on) return;
      if (!engine_->HasWork()) continue;
      closed_.clear();
      for (const StepOutput& output : engine_->Step()) Deliver(output);
    }
  }

  void Deliver(const StepOutput& output) {
    for (const SequenceId closed : closed_) {
      if (closed == output.sequence) return;
    }
    const auto found = callbacks_.find(output.request);
    if (found == callbacks_.end()) return;
    const bool is_last =
        output.failure != nullptr || output.result.finish_reason != FinishReason::kNone;
    if (output.failure != nullptr) engine_->Cancel(output.request);
    // The callback may ask for something else, or close the sequence.
    const OutputCallback callback = is_last ? std::move(found->second) : found->second;
    if (is_last) callbacks_.erase(found);
    callback(output);
  }

  std::unique_ptr<Engine> engine_;
  std::map<RequestId, OutputCallback> callbacks_;  // of the loop's thread
  std::vector<SequenceId> closed_;                 // likewise: since the last step began
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void(Engine&)>> inbox_;
  bool stops_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace

std::unique_ptr<EngineLoop> EngineLoop::Start(std::unique_ptr<Engine> engine) {
  return std::make_unique<EngineLoopImpl>(std::move(engine));
}

}  // namespace carousel
