// SPDX-License-Identifier: Apache-2.0
#include "carousel/engine_loop.h"

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

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

  void Listen(SequenceId sequence, RequestId request, OutputCallback on_output) override {
    listeners_[request] = {.sequence = sequence, .on_output = std::move(on_output)};
  }

  void Forget(SequenceId sequence) override {
    std::erase_if(listeners_,
                  [&](const auto& listener) { return listener.second.sequence == sequence; });
  }

 private:
  struct Listener {
    SequenceId sequence;
    OutputCallback on_output;
  };

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
      for (const StepOutput& output : engine_->Step()) Deliver(output);
    }
  }

  void Deliver(const StepOutput& output) {
    const auto found = listeners_.find(output.request);
    if (found == listeners_.end()) return;
    const bool is_last =
        output.failure != nullptr || output.result.finish_reason != FinishReason::kNone;
    if (output.failure != nullptr) engine_->Cancel(output.request);
    // The callback may ask for something else, or close the sequence.
    const OutputCallback on_output = found->second.on_output;
    if (is_last) listeners_.erase(found);
    on_output(output);
  }

  std::unique_ptr<Engine> engine_;
  std::map<RequestId, Listener> listeners_;  // of the loop's thread
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
