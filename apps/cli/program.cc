// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <new>
#include <type_traits>

#include "base/cpu_target.h"
#include "cli/commands.h"
#include "cli/error_text.h"
#include "cli/usage_error.h"

namespace carousel {
namespace {

int Run(const Invocation& invocation, Backend* backend, Console* console) {
  for (const std::string& note : invocation.notes)
    console->err.TryWrite(fmt::format("carousel: note: {}\n", note));
  return std::visit(
      [&](const auto& flags) {
        using Flags = std::decay_t<decltype(flags)>;
        if constexpr (std::is_same_v<Flags, ModelsFlags>) return RunModels(flags, backend, console);
        if constexpr (std::is_same_v<Flags, InfoFlags>) return RunInfo(flags, backend, console);
        if constexpr (std::is_same_v<Flags, StreamFlags>) return RunStream(flags, backend, console);
        if constexpr (std::is_same_v<Flags, GenerateFlags>)
          return RunGenerate(flags, backend, console);
        if constexpr (std::is_same_v<Flags, EvaluateFlags>)
          return RunEvaluate(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BatchFlags>) return RunBatch(flags, backend, console);
        if constexpr (std::is_same_v<Flags, ChatFlags>) return RunChat(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BenchAttentionFlags>)
          return RunBenchAttention(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BenchModelFlags>)
          return RunBenchModel(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BenchRowsFlags>)
          return RunBenchRows(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BenchServeFlags>)
          return RunBenchServe(flags, backend, console);
        if constexpr (std::is_same_v<Flags, BenchSamplerFlags>)
          return RunBenchSampler(flags, console);
        if constexpr (std::is_same_v<Flags, PrintText>) {
          console->out.Write(flags.text);
          return 0;
        }
      },
      invocation.command);
}

}  // namespace

int RunProgram(const std::vector<std::string>& arguments, const Environment& environment,
               Backend* backend, Console* console) {
  Invocation invocation;
  std::string problem;
  int status = kExitFailure;
  try {
    ForceCpuTargetFromEnvironment();
    invocation = ParseCommandLine(arguments, environment);
    return Run(invocation, backend, console);
  } catch (const UsageError& error) {
    problem = error.what();
    status = kExitUsage;
  } catch (const Error& error) {
    problem = ErrorText(error, invocation.labels);
    status = ExitStatus(error, invocation.labels);
  } catch (const std::bad_alloc&) {
    problem = "out of memory; use a smaller --max-cache-size or --cache-limit";
  } catch (const std::exception& error) {
    problem = fmt::format("failed unexpectedly: {}", error.what());
  }
  console->err.TryWrite(fmt::format("carousel: {}\n", OneLine(problem)));
  return status;
}

}  // namespace carousel
