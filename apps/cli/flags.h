// SPDX-License-Identifier: Apache-2.0
// What each command can be told, and the flags that several commands share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "carousel/beam_params.h"
#include "carousel/config.h"
#include "carousel/single_sequence_engine.h"
#include "cli/flag_set.h"
#include "config/config_draft.h"

namespace carousel {

enum class Precision { kF32, kBf16, kInt8 };

struct ModelFlags {
  std::string directory = "models/smollm2-135m-instruct";
  std::int64_t threads = 0;  // 0: all cores
  Precision precision = Precision::kF32;
};

struct SamplingFlags {
  SamplingParams params;
  std::vector<std::string> stops;
  std::int64_t max_new_tokens = 0;
};

struct ModelsFlags {
  std::string directory = "models";  // that holds the models' folders
  std::string json;
};

struct InfoFlags {
  ModelFlags model;
  std::string json;
};

struct StreamFlags {
  ModelFlags model;
  EngineConfig config;
  std::string text;
  std::int64_t max_tokens = 0;  // 0: the whole text
  std::int64_t segment = 1024;
  std::string json;
};

struct GenerateFlags {
  // Whether the answer is searched for, and not just written.
  bool searches() const { return beams.num_beams > 1 || beams.no_repeat_ngram_size > 0; }

  ModelFlags model;
  EngineConfig config;
  SamplingFlags sampling;
  BeamParams beams;
  // One of the three is set.
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;
  std::optional<std::string> token_ids_file;
  std::optional<std::string> system;
  bool pin_system = false;
  std::int64_t pin_tokens = 0;  // of the prompt's first
  bool raw = false;
  bool ignore_eos = false;
  std::string json;
};

struct EvaluateFlags {
  ModelFlags model;
  EngineConfig config;
  SamplingFlags sampling;  // max_new_tokens is of turns that do not say
  std::string tasks;
  std::string json = "-";
  std::string logits;  // empty: no file
};

struct BatchFlags {
  ModelFlags model;
  EngineConfig config;
  SamplingFlags sampling;  // of lines that do not say
  std::string requests;
  std::string out;
  bool raw = false;
};

struct ChatFlags {
  ModelFlags model;
  EngineConfig config;
  SamplingFlags sampling;
  std::optional<std::string> system;
  bool pin_system = false;
};

struct CacheFlagChoice {
  bool prompt_eviction = false;  // whether the command reads prompts of known length
  bool one_size = true;          // --max-cache-size and --no-eviction; a sweep has a list
};

// Each adds its flags under headings of its own; the defaults that the help shows are what the
// targets hold.
void AddModelFlags(FlagSet* flags, ModelFlags* target);
void AddCacheFlags(FlagSet* flags, CacheFlagChoice choice, ConfigDraft* target);
// Of commands that answer many requests.
void AddSchedulingFlags(FlagSet* flags, ConfigDraft* target);
// Of others, whose answers are to be those.
void AddBatchInvariantFlag(FlagSet* flags, ConfigDraft* target);
// All but --logprobs, which --json alone shows.
void AddSamplingFlags(FlagSet* flags, SamplingFlags* target);
void AddLogprobsFlag(FlagSet* flags, SamplingFlags* target);
void AddBeamFlags(FlagSet* flags, BeamParams* target);
void AddPinSystemFlag(FlagSet* flags, bool* target);
void AddJsonFlag(FlagSet* flags, const std::string& description, std::string* target);

// What the defaults that gave way came to, for a note; empty: none did. `asked` comes from a
// ConfigDraft, `settled` is the engine's.
std::string YieldedSizes(const EngineConfig& asked, const EngineConfig& settled);

// Flags that --no-eviction makes meaningless and that were given all the same; for a note.
std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const ConfigDraft& cache);

// The same of beams where there is no search.
std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const GenerateFlags& generate);

}  // namespace carousel
