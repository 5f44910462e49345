// SPDX-License-Identifier: Apache-2.0
#include "engine/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "rope/rotate.h"

namespace carousel {
namespace {

// Uniform in [-1, 1) times `scale`; the same everywhere for the same generator state.
std::vector<float> RandomMatrix(std::mt19937_64* generator, std::int64_t outputs,
                                std::int64_t inputs) {
  std::vector<float> matrix(static_cast<std::size_t>(outputs * inputs));
  const double scale = std::sqrt(3.0 / static_cast<double>(inputs));  // keeps variances near 1
  for (float& weight : matrix) {
    weight =
        static_cast<float>((static_cast<double>((*generator)() >> 11) * 0x1.0p-52 - 1.0) * scale);
  }
  return matrix;
}

std::vector<float> Normalise(const float* from, std::int64_t count) {
  double squares = 1e-6;
  for (std::int64_t i = 0; i < count; ++i)
    squares += static_cast<double>(from[i]) * static_cast<double>(from[i]);
  const double factor = 1.0 / std::sqrt(squares / static_cast<double>(count));
  std::vector<float> to(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    to[static_cast<std::size_t>(i)] = static_cast<float>(static_cast<double>(from[i]) * factor);
  }
  return to;
}

// to[outputs] = matrix [outputs, inputs] from[inputs].
void Multiply(const std::vector<float>& matrix, const float* from, std::int64_t inputs,
              std::int64_t outputs, float* to) {
  for (std::int64_t o = 0; o < outputs; ++o) {
    float sum = 0.0F;
    for (std::int64_t i = 0; i < inputs; ++i)
      sum += matrix[static_cast<std::size_t>(o * inputs + i)] * from[i];
    to[o] = sum;
  }
}

void RotateHeads(const LayerRope& rope, std::int64_t position, std::int64_t heads, std::int64_t dim,
                 float* vectors) {
  if (!rope.rotates()) return;
  std::vector<double> plain(static_cast<std::size_t>(dim));
  std::vector<double> rotated(static_cast<std::size_t>(dim));
  for (std::int64_t head = 0; head < heads; ++head) {
    float* vector = vectors + head * dim;
    std::copy(vector, vector + dim, plain.begin());
    RotateVectorReference(rope, static_cast<double>(position), dim, plain.data(), rotated.data());
    std::transform(rotated.begin(), rotated.end(), vector,
                   [](double x) { return static_cast<float>(x); });
  }
}

}  // namespace

TinyModel::TinyModel(const TinyModelOptions& options) : options_(options) {
  spec_.name = "tiny";
  spec_.architecture = "tiny";
  spec_.vocabulary_size = options.vocabulary_size;
  spec_.trained_window = options.trained_window;
  spec_.declared_rope_theta = options.rope_theta;
  spec_.end_tokens = options.end_tokens;
  if (options.rope_theta > 0) {
    rope_ = {.pairing = options.pairing,
             .rotated_dims = options.key_dim,
             .frequencies = PlainFrequencies(options.rope_theta, options.key_dim)};
  }
  std::mt19937_64 generator(options.seed);
  embedding_ = RandomMatrix(&generator, options.vocabulary_size, options.width);
  for (std::int64_t i = 0; i < options.layers; ++i) {
    AttentionLayerSpec attention{.name = "layer " + std::to_string(i),
                                 .query_heads = options.query_heads,
                                 .kv_heads = options.kv_heads,
                                 .key_dim = options.key_dim,
                                 .value_dim = options.value_dim,
                                 .scale = 2.0F / std::sqrt(static_cast<float>(options.key_dim))};
    if (!options.sliding_window.empty()) {
      attention.sliding_window = options.sliding_window[static_cast<std::size_t>(i)];
    }
    for (std::int64_t head = 0; options.alibi && head < options.query_heads; ++head) {
      attention.alibi_slopes.push_back(std::pow(2.0F, -static_cast<float>(head + 1)));
    }
    spec_.layers.push_back(attention);
    const std::int64_t width = options.width;
    layers_.push_back(
        {.query = RandomMatrix(&generator, options.query_heads * options.key_dim, width),
         .key = RandomMatrix(&generator, options.kv_heads * options.key_dim, width),
         .value = RandomMatrix(&generator, options.kv_heads * options.value_dim, width),
         .output = RandomMatrix(&generator, width, options.query_heads * options.value_dim),
         .gate = RandomMatrix(&generator, 2 * width, width),
         .up = RandomMatrix(&generator, 2 * width, width),
         .down = RandomMatrix(&generator, width, 2 * width)});
  }
}

void TinyModel::Attention(std::int64_t index, const ForwardInput& input,
                          AttentionCallback& attention) {
  const AttentionLayerSpec& spec = spec_.layers[static_cast<std::size_t>(index)];
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const auto tokens = static_cast<std::int64_t>(input.token_ids.size());
  const std::int64_t q_size = spec.query_heads * spec.key_dim;
  const std::int64_t k_size = spec.kv_heads * spec.key_dim;
  const std::int64_t v_size = spec.kv_heads * spec.value_dim;
  const std::int64_t out_size = spec.query_heads * spec.value_dim;
  std::vector<float> q(static_cast<std::size_t>(tokens * q_size));
  std::vector<float> k(static_cast<std::size_t>(tokens * k_size));
  std::vector<float> v(static_cast<std::size_t>(tokens * v_size));
  std::vector<float> out(static_cast<std::size_t>(tokens * out_size));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto normalised = Normalise(hidden_.data() + t * options_.width, options_.width);
    Multiply(layer.query, normalised.data(), options_.width, q_size, q.data() + t * q_size);
    Multiply(layer.key, normalised.data(), options_.width, k_size, k.data() + t * k_size);
    Multiply(layer.value, normalised.data(), options_.width, v_size, v.data() + t * v_size);
    const std::int64_t position = input.position_ids[static_cast<std::size_t>(t)];
    RotateHeads(rope_, position, spec.query_heads, spec.key_dim, q.data() + t * q_size);
    RotateHeads(rope_, position, spec.kv_heads, spec.key_dim, k.data() + t * k_size);
  }
  attention.Attend(index, tokens, q.data(), k.data(), v.data(), out.data());
  std::vector<float> projected(static_cast<std::size_t>(options_.width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    Multiply(layer.output, out.data() + t * out_size, out_size, options_.width, projected.data());
    for (std::int64_t i = 0; i < options_.width; ++i) {
      hidden_[static_cast<std::size_t>(t * options_.width + i)] +=
          projected[static_cast<std::size_t>(i)];
    }
  }
}

void TinyModel::FeedForward(const Layer& layer, std::int64_t tokens) {
  const std::int64_t inner = 2 * options_.width;
  std::vector<float> gate(static_cast<std::size_t>(inner));
  std::vector<float> up(static_cast<std::size_t>(inner));
  std::vector<float> down(static_cast<std::size_t>(options_.width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    float* hidden = hidden_.data() + t * options_.width;
    const auto normalised = Normalise(hidden, options_.width);
    Multiply(layer.gate, normalised.data(), options_.width, inner, gate.data());
    Multiply(layer.up, normalised.data(), options_.width, inner, up.data());
    for (std::size_t i = 0; i < gate.size(); ++i)
      gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
    Multiply(layer.down, gate.data(), inner, options_.width, down.data());
    for (std::int64_t i = 0; i < options_.width; ++i)
      hidden[i] += down[static_cast<std::size_t>(i)];
  }
}

std::span<const float> TinyModel::Forward(const ForwardInput& input, AttentionCallback& attention) {
  const auto tokens = static_cast<std::int64_t>(input.token_ids.size());
  hidden_.resize(static_cast<std::size_t>(tokens * options_.width));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const float* row =
        embedding_.data() + input.token_ids[static_cast<std::size_t>(t)] * options_.width;
    float* hidden = hidden_.data() + t * options_.width;
    std::copy(row, row + options_.width, hidden);
    if (options_.absolute_positions) {
      hidden[0] += std::sin(static_cast<float>(input.position_ids[static_cast<std::size_t>(t)]));
    }
  }
  for (std::int64_t layer = 0; layer < options_.layers; ++layer) {
    Attention(layer, input, attention);
    FeedForward(layers_[static_cast<std::size_t>(layer)], tokens);
  }
  logits_.resize(input.logit_rows.size() * static_cast<std::size_t>(options_.vocabulary_size));
  for (std::size_t row = 0; row < input.logit_rows.size(); ++row) {
    const auto normalised =
        Normalise(hidden_.data() + input.logit_rows[row] * options_.width, options_.width);
    Multiply(embedding_, normalised.data(), options_.width, options_.vocabulary_size,
             logits_.data() + static_cast<std::int64_t>(row) * options_.vocabulary_size);
  }
  return logits_;
}

}  // namespace carousel
