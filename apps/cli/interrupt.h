// SPDX-License-Identifier: Apache-2.0
// Ctrl-C, and SIGTERM, as something that a command can finish by.
#pragma once

#include "carousel/single_sequence_engine.h"

namespace carousel {

// From Watch on, the first signal cancels the engine's request, wakes whoever waits for input and
// is remembered; a second one before Clear ends the process as it would have without us. Before
// Watch signals end the process: there is nothing yet to finish. One object at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;

  // `engine` must outlive this. Without one a signal is only remembered.
  void Watch(SingleSequenceEngine* engine = nullptr);
  // The signal that came; 0: none.
  int signal() const;
  bool raised() const { return signal() != 0; }
  // Forgets the signal, for a program that goes on.
  void Clear();
  // Readable while raised().
  int wake_fd() const { return pipe_[0]; }
  // The exit status that says "ended by this signal".
  int exit_status() const { return 128 + signal(); }

 private:
  int pipe_[2] = {-1, -1};
  bool watches_ = false;
};

}  // namespace carousel
