// SPDX-License-Identifier: Apache-2.0
// The commands. Each returns the exit status and throws carousel::Error for what went wrong.
#pragma once

#include "cli/backend.h"
#include "cli/command_line.h"
#include "cli/console.h"

namespace carousel {

int RunModels(const ModelsFlags& flags, Backend* backend, Console* console);
int RunInfo(const InfoFlags& flags, Backend* backend, Console* console);
int RunStream(const StreamFlags& flags, Backend* backend, Console* console);
int RunGenerate(const GenerateFlags& flags, Backend* backend, Console* console);
int RunEvaluate(const EvaluateFlags& flags, Backend* backend, Console* console);
int RunBatch(const BatchFlags& flags, Backend* backend, Console* console);
int RunChat(const ChatFlags& flags, Backend* backend, Console* console);
int RunBenchAttention(const BenchAttentionFlags& flags, Backend* backend, Console* console);
int RunBenchModel(const BenchModelFlags& flags, Backend* backend, Console* console);
int RunBenchRows(const BenchRowsFlags& flags, Backend* backend, Console* console);
int RunBenchServe(const BenchServeFlags& flags, Backend* backend, Console* console);
int RunBenchSampler(const BenchSamplerFlags& flags, Console* console);

// The whole program: parses, runs, and says in one line on standard error what went wrong.
int RunProgram(const std::vector<std::string>& arguments, const Environment& environment,
               Backend* backend, Console* console);

}  // namespace carousel
