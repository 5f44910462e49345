// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <cstdlib>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/openvino_backend.h"

int main(int argc, char** argv) {
  // A limit on the size of files is to be an error where one is written, and not the program's end.
  std::signal(SIGXFSZ, SIG_IGN);
  const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
  const std::unique_ptr<carousel::Backend> backend = carousel::MakeOpenVinoBackend();
  carousel::Console console;
  return carousel::RunProgram(
      arguments, [](const std::string& name) { return std::getenv(name.c_str()); }, backend.get(),
      &console);
}
