// SPDX-License-Identifier: Apache-2.0
// carousel models: what lies in the folder of models, by what its files say. Nothing is loaded.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "answers/model_list.h"
#include "cli/commands.h"
#include "cli/json_lines.h"
#include "cli/numbers.h"

namespace carousel {
namespace {

std::string OrUnknown(const std::string& text) { return text.empty() ? "unknown" : text; }

std::string OrUnknown(std::int64_t number) { return number == 0 ? "unknown" : Grouped(number); }

// Layers with a window stop growing at its end, so both numbers count.
std::string DescribeCache(const ModelSummary& model) {
  std::string text = OrUnknown(model.cache_bytes_per_token);
  if (model.global_cache_bytes_per_token != model.cache_bytes_per_token) {
    text += fmt::format(", {} past {} tokens", Grouped(model.global_cache_bytes_per_token),
                        Grouped(model.sliding_window));
  }
  return text;
}

void Print(const std::vector<ModelSummary>& models, const std::string& directory, TextOutput* out) {
  if (models.empty()) {
    out->Write(fmt::format("no models in {}; ./run model NAME brings one\n", directory));
    return;
  }
  out->Write(fmt::format("{:<28} {:<12} {:<8} {:>9} {:>8}  {}\n", "model", "architecture",
                         "weights", "size", "window", "cache bytes per token (f16)"));
  for (const ModelSummary& model : models) {
    out->Write(fmt::format("{:<28} {:<12} {:<8} {:>9} {:>8}  {}\n", model.name,
                           OrUnknown(model.architecture), OrUnknown(model.weights),
                           Megabytes(model.bytes), OrUnknown(model.trained_window),
                           DescribeCache(model)));
  }
}

}  // namespace

int RunModels(const ModelsFlags& flags, Backend* /*backend*/, Console* console) {
  std::optional<JsonLines> lines;
  if (!flags.json.empty()) lines.emplace(flags.json, console->out.fd());
  const std::vector<ModelSummary> models = FindModels(flags.directory);
  if (flags.json != "-") Print(models, flags.directory, &console->out);
  if (lines) {
    for (const ModelSummary& model : models) lines->Write(JsonOf(model));
    lines->Close();
  }
  return 0;
}

}  // namespace carousel
