// SPDX-License-Identifier: Apache-2.0
#include "cli/interrupt.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/check.h"
#include "carousel/error.h"

namespace carousel {
namespace {

constexpr std::array<int, 2> kSignals = {SIGINT, SIGTERM};

// What the handler reaches. Lock-free, as signal handlers need it. The handler may run on any
// thread; its last act is the byte in the pipe, which Clear() waits for.
std::atomic<int> raised_signal = 0;
std::atomic<SingleSequenceEngine*> watched_engine = nullptr;
std::atomic<int> wake_write_fd = -1;
static_assert(std::atomic<SingleSequenceEngine*>::is_always_lock_free &&
              std::atomic<int>::is_always_lock_free);

void OnSignal(int signal_number) {
  const int saved_errno = errno;
  if (raised_signal.exchange(signal_number) != 0) {
    std::signal(signal_number, SIG_DFL);
    raise(signal_number);
  }
  if (SingleSequenceEngine* engine = watched_engine.load()) engine->Cancel();
  const char byte = 0;
  [[maybe_unused]] const ssize_t written = write(wake_write_fd.load(), &byte, 1);
  errno = saved_errno;
}

}  // namespace

Interrupt::Interrupt() {
  CAROUSEL_CHECK_EQ(wake_write_fd.load(), -1);
  if (pipe2(pipe_, O_CLOEXEC | O_NONBLOCK) != 0)
    throw Error(ErrorCode::kIo, "signals", fmt::format("no pipe: {}", std::strerror(errno)));
  raised_signal = 0;
  wake_write_fd = pipe_[1];
}

Interrupt::~Interrupt() {
  if (watches_) {
    for (const int signal_number : kSignals) std::signal(signal_number, SIG_DFL);
  }
  watched_engine = nullptr;
  wake_write_fd = -1;
  for (const int fd : pipe_) close(fd);
}

void Interrupt::Watch(SingleSequenceEngine* engine) {
  watched_engine = engine;
  watches_ = true;
  struct sigaction action {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  for (const int signal_number : kSignals) {
    // A shell that starts a program in the background tells it to ignore Ctrl-C: leave that alone.
    struct sigaction previous {};
    if (sigaction(signal_number, nullptr, &previous) == 0 && previous.sa_handler == SIG_IGN)
      continue;
    sigaction(signal_number, &action, nullptr);
  }
}

int Interrupt::signal() const { return raised_signal.load(); }

void Interrupt::Clear() {
  if (!raised()) return;
  pollfd written{pipe_[0], POLLIN, 0};
  while (poll(&written, 1, -1) < 0 && errno == EINTR) {
  }
  std::array<char, 16> bytes{};
  while (read(pipe_[0], bytes.data(), bytes.size()) > 0) {
  }
  raised_signal = 0;
}

}  // namespace carousel
