// SPDX-License-Identifier: Apache-2.0
// generate MODEL_DIR PROMPT: loads a model's folder and answers one prompt, as its chat template
// says, in a cache of fixed size.
#include <cstdio>
#include <string>

#include "carousel/defaults.h"
#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "openvino/openvino_model.h"
#include "openvino/openvino_tokenizer.h"
#include "text/incremental_detokenizer.h"
#include "text/prompt_encoder.h"
#include "text/turn_format.h"

namespace {

int Generate(const std::string& directory, const std::string& prompt) {
  auto model = carousel::LoadOpenVinoModel({.directory = directory});
  const auto tokenizer = carousel::LoadOpenVinoTokenizer(directory, model->spec().vocabulary_size);
  carousel::EngineConfig config = carousel::DefaultEngineConfig();
  config.eviction->max_cache_size = 512;
  const auto engine = carousel::SingleSequenceEngine::Create(std::move(model), config);

  // What a user writes stays text, whatever words are in it; the template's marks are marks.
  const carousel::TurnFormat turns = carousel::TurnFormat::Load(directory);
  carousel::PromptEncoder encoder(*tokenizer);
  carousel::Request request{.penalise_prompt = false, .max_new_tokens = 100};
  request.prompt = encoder.Encode(turns.FirstTurn(std::nullopt, prompt));
  if (const auto end = encoder.ControlToken(turns.end_of_turn())) request.stop_tokens = {*end};

  carousel::IncrementalDetokenizer text(*tokenizer);
  engine->Submit(std::move(request));
  while (engine->HasWork()) {
    const carousel::StepResult step = engine->Step();
    if (step.sampled) std::printf("%s", text.Push(step.sampled->token).c_str());
    std::fflush(stdout);
  }
  std::printf("%s\n", text.Flush().c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: generate MODEL_DIR PROMPT\n");
    return 2;
  }
  try {
    return Generate(argv[1], argv[2]);
  } catch (const carousel::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
