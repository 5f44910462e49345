// SPDX-License-Identifier: Apache-2.0
#include "cli/backend.h"

#include <fmt/format.h>

#include <string>
#include <utility>

namespace carousel {

void TellYieldedSizes(const EngineConfig& asked, const EngineConfig& settled,
                      const ModelSpec& model, TextOutput* err) {
  const std::string sizes = YieldedSizes(asked, settled);
  if (sizes.empty()) return;
  err->TryWrite(
      fmt::format("carousel: note: defaults gave way to what was asked for and to the "
                  "window of {} tokens that the model was trained on: {}\n",
                  model.trained_window, sizes));
}

LoadedEngine Load(Backend* backend, const ModelFlags& flags, const EngineConfig& config,
                  TextOutput* err) {
  std::unique_ptr<Model> model = backend->LoadModel(flags);
  std::unique_ptr<Tokenizer> tokenizer =
      backend->LoadTokenizer(flags, model->spec().vocabulary_size);
  LoadedEngine loaded{std::move(tokenizer), backend->CreateEngine(std::move(model), config)};
  TellYieldedSizes(config, loaded.engine->config(), loaded.engine->model().spec(), err);
  return loaded;
}

}  // namespace carousel
