// SPDX-License-Identifier: Apache-2.0
// What each command can be told, and the flags that several commands share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "carousel/config.h"
#include "carousel/engine.h"
#include "cli/flag_set.h"

namespace carousel {

enum class Precision { kF32, kBf16, kInt8 };

struct ModelFlags {
  std::string directory = "models/smollm2-135m-instruct";
  std::int64_t threads = 0;  // 0: all cores
  Precision precision = Precision::kF32;
};

// The cache flags write into an EngineConfig whose eviction is set; SettledConfig drops it
// afterwards.
struct CacheFlags {
  EngineConfig config{.yields = kAllSizesYield};  // but for those that were given
  bool no_eviction = false;
  std::string recall_store = "ram";  // or a file's name
  // What the program recalls where nothing is said; see SettledConfig.
  std::optional<std::int64_t> recall_blocks;
  std::optional<std::int64_t> recall_limit_tokens;
};

// What is recalled where nothing is said, as far as there is room for it: a quarter of a cache of
// 1,024 tokens, out of the last 16 caches' worth. Memory then stays flat, and what was said a few
// thousand tokens ago comes back (docs/decisions/0014-what-recall-finds.md).
inline constexpr std::int64_t kRecalledBlocks = 8;
inline constexpr std::int64_t kStoredCaches = 16;

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
  ModelFlags model;
  EngineConfig config;
  SamplingFlags sampling;
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

// Of every kind of cache, as --kv-type-k takes them.
const std::vector<std::string>& KvTypeNames();

// Each adds its flags under headings of its own; the defaults that the help shows are what the
// targets hold.
void AddModelFlags(FlagSet* flags, ModelFlags* target);
void AddCacheFlags(FlagSet* flags, CacheFlagChoice choice, CacheFlags* target);
void AddSamplingFlags(FlagSet* flags, SamplingFlags* target);
void AddPinSystemFlag(FlagSet* flags, bool* target);
void AddJsonFlag(FlagSet* flags, const std::string& description, std::string* target);

// What the defaults that gave way came to, for a note; empty: none did. `asked` comes from
// SettledConfig, `settled` is the engine's.
std::string YieldedSizes(const EngineConfig& asked, const EngineConfig& settled);

// What the engine is to be told. Throws carousel::Error for what Validate refuses.
EngineConfig SettledConfig(const CacheFlags& flags);

// Flags that --no-eviction makes meaningless and that were given all the same; for a note.
std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const CacheFlags& cache);

}  // namespace carousel
