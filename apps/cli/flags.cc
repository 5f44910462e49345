// SPDX-License-Identifier: Apache-2.0
#include "cli/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <string_view>

#include "config/setting_table.h"

namespace carousel {
namespace {

constexpr std::string_view kEvictionHeading = "Eviction";
constexpr std::string_view kRecallHeading = "Recall";
constexpr std::string_view kBeamHeading = "Beam search";

std::optional<Precision> ParsePrecision(const std::string& name) {
  if (name == "f32") return Precision::kF32;
  if (name == "bf16") return Precision::kBf16;
  if (name == "int8") return Precision::kInt8;
  return std::nullopt;
}

std::string WithDefault(std::string_view description, const auto& value) {
  return fmt::format("{} (default {})", description, value);
}

// The settings of a group, but for some.
void AddSettings(FlagSet* flags, SettingGroup group, const std::vector<std::string_view>& but,
                 SettingsTarget target, const std::function<void(const Setting&)>& given) {
  for (const Setting& setting : SettingTable()) {
    const bool is_wanted = setting.group == group && !setting.flag.empty() &&
                           std::find(but.begin(), but.end(), setting.name) == but.end();
    if (is_wanted) flags->Add(setting, target, given);
  }
}

}  // namespace

void AddModelFlags(FlagSet* flags, ModelFlags* target) {
  flags->Heading("Model");
  flags->Text({"--model", "DIR", WithDefault("Folder of the OpenVINO IR model", target->directory)},
              &target->directory);
  flags->Integer({"--threads", "N", "CPU threads; 0: all cores (default 0)"}, {0, 1024},
                 &target->threads);
  flags->OneOf({"--precision", "P",
                "What the model computes in: f32, bf16, or int8, f32 with activations rounded "
                "where weights are "
                "quantised: faster prompts on CPUs with VNNI, less exact (default f32)"},
               {"f32", "bf16", "int8"}, ParsePrecision, &target->precision);
}

void AddCacheFlags(FlagSet* flags, CacheFlagChoice choice, ConfigDraft* target) {
  std::vector<std::string_view> but;
  if (!choice.one_size) but.emplace_back("max_cache_size");
  if (!choice.prompt_eviction) but.emplace_back("prompt_eviction");
  const auto add = [&](SettingGroup group) {
    AddSettings(flags, group, but, {.engine = &target->config},
                [target](const Setting& setting) { target->NoteGiven(setting); });
  };
  flags->Heading(std::string(kEvictionHeading), "Cache");
  add(SettingGroup::kEviction);
  flags->Heading(std::string(kRecallHeading), "Cache");
  add(SettingGroup::kRecall);
  flags->Heading("Cache");
  if (choice.one_size) flags->Switch({"--no-eviction", "", "Keep every token"}, &target->keeps_all);
  add(SettingGroup::kCache);
}

void AddSchedulingFlags(FlagSet* flags, ConfigDraft* target) {
  flags->Heading("Many at once");
  AddSettings(flags, SettingGroup::kScheduling, {}, {.engine = &target->config},
              [target](const Setting& setting) { target->NoteGiven(setting); });
}

void AddBatchInvariantFlag(FlagSet* flags, ConfigDraft* target) {
  flags->Heading("Many at once");
  flags->Add(*FindSetting("batch_invariant"), {.engine = &target->config}, {});
}

void AddSamplingFlags(FlagSet* flags, SamplingFlags* target) {
  flags->Heading("Sampling");
  flags->Integer(
      {"--max-new-tokens", "N", WithDefault("Most tokens of an answer", target->max_new_tokens)},
      {1, INT64_MAX}, &target->max_new_tokens);
  AddSettings(flags, SettingGroup::kSampling, {"logprobs"}, {.sampling = &target->params}, {});
  flags->Texts({.flag = "--stop",
                .value_name = "TEXT",
                .description = "End the answer before this text; may be given more than once",
                .rare = true},
               &target->stops);
}

void AddLogprobsFlag(FlagSet* flags, SamplingFlags* target) {
  flags->Add(*FindSetting("logprobs"), {.sampling = &target->params}, {});
}

void AddBeamFlags(FlagSet* flags, BeamParams* target) {
  flags->Heading(std::string(kBeamHeading));
  AddSettings(flags, SettingGroup::kBeams, {}, {.beams = target}, {});
}

void AddPinSystemFlag(FlagSet* flags, bool* target) {
  flags->Switch({.flag = "--pin-system",
                 .description = "Never evict the system message",
                 .field = "pinned",
                 .rare = true},
                target);
}

void AddJsonFlag(FlagSet* flags, const std::string& description, std::string* target) {
  flags->Text({"--json", "FILE", description}, target);
}

std::string YieldedSizes(const EngineConfig& asked, const EngineConfig& settled) {
  if (!asked.eviction) return "";
  std::string sizes;
  const auto add = [&sizes](std::string_view flag, std::int64_t before, std::int64_t now) {
    if (now == before) return;
    sizes += fmt::format("{}{} {} and not {}", sizes.empty() ? "" : ", ", flag, now, before);
  };
  add("--max-cache-size", asked.eviction->max_cache_size, settled.eviction->max_cache_size);
  add("--start-size", asked.eviction->start_size, settled.eviction->start_size);
  add("--recent-size", asked.eviction->recent_size, settled.eviction->recent_size);
  add("--block-size", asked.cache.block_size, settled.cache.block_size);
  add("--chunk", asked.chunk_size, settled.chunk_size);
  return sizes;
}

std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const ConfigDraft& cache) {
  if (!cache.keeps_all) return {};
  std::vector<std::string> without = flags.GivenUnder(kEvictionHeading);
  const std::vector<std::string> recall = flags.GivenUnder(kRecallHeading);
  without.insert(without.end(), recall.begin(), recall.end());
  return without;
}

std::vector<std::string> FlagsWithoutEffect(const FlagSet& flags, const GenerateFlags& generate) {
  std::vector<std::string> without;
  if (generate.searches()) return without;
  for (const std::string& flag : flags.GivenUnder(kBeamHeading)) {
    if (flag != "--num-beams" && flag != "--no-repeat-ngram-size") without.push_back(flag);
  }
  return without;
}

}  // namespace carousel
