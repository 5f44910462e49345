// SPDX-License-Identifier: Apache-2.0
#include "cli/openvino_backend.h"

#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "openvino/openvino_model.h"
#include "openvino/openvino_tokenizer.h"
#include "openvino/rival_attention.h"

namespace carousel {
namespace {

ModelPrecision PrecisionOf(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return ModelPrecision::kF32;
    case Precision::kBf16:
      return ModelPrecision::kBf16;
    case Precision::kInt8:
      return ModelPrecision::kInt8Activations;
  }
  CAROUSEL_CHECK(false);
}

class OpenVinoBackend : public Backend {
 public:
  std::unique_ptr<Model> LoadModel(const ModelFlags& flags) override {
    SetThreadCount(flags.threads);
    return LoadOpenVinoModel({.directory = flags.directory,
                              .threads = flags.threads,
                              .precision = PrecisionOf(flags.precision)});
  }

  std::unique_ptr<Tokenizer> LoadTokenizer(const ModelFlags& flags,
                                           std::int64_t vocabulary_size) override {
    return LoadOpenVinoTokenizer(flags.directory, vocabulary_size);
  }

  std::unique_ptr<SingleSequenceEngine> CreateEngine(std::unique_ptr<Model> model,
                                                     const EngineConfig& config) override {
    return SingleSequenceEngine::Create(std::move(model), config);
  }

  std::vector<std::unique_ptr<AttentionContender>> RivalAttention(
      const AttentionLoad& load) override {
    std::vector<std::unique_ptr<AttentionContender>> rivals;
    for (const RivalKvType type : {RivalKvType::kF16, RivalKvType::kU8})
      rivals.push_back(MakeRivalAttention(load, type));
    return rivals;
  }
};

}  // namespace

std::unique_ptr<Backend> MakeOpenVinoBackend() { return std::make_unique<OpenVinoBackend>(); }

}  // namespace carousel
