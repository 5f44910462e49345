// SPDX-License-Identifier: Apache-2.0
// An engine with a thread of its own, for programs that ask from many threads: a server, a binding.
// Requests go in by a queue, outputs come out by callbacks. All else stays single-threaded.
#pragma once

#include <functional>
#include <future>
#include <memory>
#include <type_traits>
#include <utility>

#include "carousel/engine.h"

namespace carousel {

// Gets what each step did for a request, on the loop's thread, the last output last. One with a
// failure is the last as well: it comes when the request has ended. Does not throw and does not
// wait.
using OutputCallback = std::function<void(const StepOutput&)>;

class EngineLoop {
 public:
  // Takes the engine, and starts the thread.
  static std::unique_ptr<EngineLoop> Start(std::unique_ptr<Engine> engine);
  // Ends what runs and waits as it is, without outputs, and the thread.
  virtual ~EngineLoop() = default;

  // As Engine::Submit, with a callback for what comes of it. Any thread may call it, a callback
  // too; it returns when the request is in, before its first step.
  RequestId Submit(SequenceId sequence, Request request, OutputCallback on_output) {
    return Call(
        [&](Engine&) { return SubmitHere(sequence, std::move(request), std::move(on_output)); });
  }
  // As Engine::Cancel.
  virtual void Cancel(RequestId request) = 0;
  // Closes a sequence; the callback of its request is not called again, and no longer kept. So it
  // is where a sequence is closed or reset in Call.
  void Close(SequenceId sequence) {
    Call([&](Engine& engine) { engine.Close(sequence); });
  }

  // Runs `work` with the engine, between steps, and returns what it returns or throws what it
  // throws: for Open, Fork, metrics and all the rest. Any thread may call it, a callback too.
  template <typename Work>
  auto Call(Work work) -> std::invoke_result_t<Work, Engine&> {
    std::promise<std::invoke_result_t<Work, Engine&>> result;
    auto done = result.get_future();
    Post([&](Engine& engine) {
      try {
        if constexpr (std::is_void_v<std::invoke_result_t<Work, Engine&>>) {
          work(engine);
          result.set_value();
        } else {
          result.set_value(work(engine));
        }
      } catch (...) {
        result.set_exception(std::current_exception());
      }
    });
    return done.get();
  }

 protected:
  // Runs `work` between steps; on the loop's thread at once.
  virtual void Post(std::function<void(Engine&)> work) = 0;
  // Submit, on the loop's thread.
  virtual RequestId SubmitHere(SequenceId sequence, Request request, OutputCallback on_output) = 0;
};

}  // namespace carousel
