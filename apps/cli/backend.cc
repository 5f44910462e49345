// SPDX-License-Identifier: Apache-2.0
#include "cli/backend.h"

#include <fmt/format.h>

#include <string>
#include <utility>

namespace carousel {

LoadedEngine Load(Backend* backend, const ModelFlags& flags, const EngineConfig& config,
                  TextOutput* err) {
  std::unique_ptr<Model> model = backend->LoadModel(flags);
  std::unique_ptr<Tokenizer> tokenizer =
      backend->LoadTokenizer(flags, model->spec().vocabulary_size);
  LoadedEngine loaded{std::move(tokenizer), backend->CreateEngine(std::move(model), config)};
  const std::string sizes = YieldedSizes(config, loaded.engine->config());
  if (!sizes.empty())
    err->TryWrite(
        fmt::format("carousel: note: defaults gave way to what was asked for and to the "
                    "window of {} tokens that the model was trained on: {}\n",
                    loaded.engine->model().spec().trained_window, sizes));
  return loaded;
}

}  // namespace carousel
