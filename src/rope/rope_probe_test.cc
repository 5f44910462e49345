// SPDX-License-Identifier: Apache-2.0
#include "rope/rope_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "carousel/error.h"
#include "rope/rotate.h"

namespace carousel {
namespace {

using testing::HasSubstr;

// What a layer does to a key or a query that stands at a position.
enum class Part { kKey, kQuery };
using Transform =
    std::function<void(std::int64_t position, Part part, std::vector<double>& vector)>;

struct TinyLayer {
  std::int64_t key_dim = 16;
  Transform transform;
};

struct TinyConfig {
  std::vector<TinyLayer> layers;
  bool learned_positions = false;
  std::int64_t last_position = 1 << 24;  // the model fails past it, in its second layer
  double hidden_noise = 0.0;             // of a runtime that does not repeat itself to the last bit
  std::int64_t vocabulary_size = 100;
};

// A decoder of random weights, run in double: hidden -> q, k, v -> attention -> hidden, layer by
// layer.
class TinyModel : public Model {
 public:
  explicit TinyModel(TinyConfig config) : config_(std::move(config)) {
    spec_.vocabulary_size = config_.vocabulary_size;
    for (const TinyLayer& layer : config_.layers) {
      AttentionLayerSpec attention;
      attention.query_heads = kQueryHeads;
      attention.kv_heads = kKvHeads;
      attention.key_dim = layer.key_dim;
      attention.value_dim = kValueDim;
      attention.scale = 1.0F;
      spec_.layers.push_back(attention);
    }
  }

  const ModelSpec& spec() const override { return spec_; }
  std::int64_t runs() const { return runs_; }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    EXPECT_EQ(input.token_ids.size(), 1U);
    EXPECT_TRUE(input.logit_rows.empty());
    ++runs_;
    const std::int64_t position = input.position_ids[0];
    EXPECT_GE(input.token_ids[0], 0);
    EXPECT_LT(input.token_ids[0], spec_.vocabulary_size);
    std::vector<double> hidden = Random(1000 + static_cast<unsigned>(input.token_ids[0]), kHidden);
    if (config_.learned_positions) {
      const std::vector<double> embedding = Random(7777 + static_cast<unsigned>(position), kHidden);
      for (std::size_t i = 0; i < kHidden; ++i) hidden[i] += embedding[i];
    }
    const std::vector<double> noise = Random(555 + static_cast<unsigned>(position), kHidden);
    for (std::size_t i = 0; i < kHidden; ++i) hidden[i] += config_.hidden_noise * noise[i];
    for (std::size_t layer = 0; layer < spec_.layers.size(); ++layer) {
      if (layer == 1 && position > config_.last_position) {
        throw Error(ErrorCode::kModel, "positions", "no such row");
      }
      RunLayer(layer, position, hidden, attention);
    }
    return {};
  }

 private:
  static constexpr std::int64_t kQueryHeads = 4;
  static constexpr std::int64_t kKvHeads = 2;
  static constexpr std::int64_t kValueDim = 6;
  static constexpr std::size_t kHidden = 12;

  static std::vector<double> Random(unsigned seed, std::size_t count) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    std::vector<double> values(count);
    for (double& value : values) value = normal(random);
    return values;
  }

  // hidden times a random matrix, rounded to float as a runtime would.
  static std::vector<double> Project(unsigned seed, const std::vector<double>& hidden,
                                     std::int64_t rows) {
    const std::vector<double> weights =
        Random(seed, static_cast<std::size_t>(rows) * hidden.size());
    std::vector<double> result(static_cast<std::size_t>(rows), 0.0);
    for (std::size_t row = 0; row < result.size(); ++row) {
      for (std::size_t i = 0; i < hidden.size(); ++i) {
        result[row] += weights[row * hidden.size() + i] * hidden[i];
      }
      result[row] = static_cast<float>(result[row]);
    }
    return result;
  }

  static void Apply(const Transform& transform, std::int64_t position, Part part, std::int64_t dim,
                    std::vector<double>& heads) {
    if (!transform) return;
    for (auto head = heads.begin(); head != heads.end(); head += dim) {
      std::vector<double> vector(head, head + dim);
      transform(position, part, vector);
      std::copy(vector.begin(), vector.end(), head);
    }
  }

  void RunLayer(std::size_t layer, std::int64_t position, std::vector<double>& hidden,
                AttentionCallback& attention) {
    const std::int64_t dim = spec_.layers[layer].key_dim;
    const unsigned seed = static_cast<unsigned>(10 * layer);
    std::vector<double> q = Project(seed + 1, hidden, kQueryHeads * dim);
    std::vector<double> k = Project(seed + 2, hidden, kKvHeads * dim);
    const std::vector<double> v = Project(seed + 3, hidden, kKvHeads * kValueDim);
    Apply(config_.layers[layer].transform, position, Part::kQuery, dim, q);
    Apply(config_.layers[layer].transform, position, Part::kKey, dim, k);
    const std::vector<float> query(q.begin(), q.end());
    const std::vector<float> key(k.begin(), k.end());
    const std::vector<float> value(v.begin(), v.end());
    std::vector<float> out(static_cast<std::size_t>(kQueryHeads * kValueDim));
    attention.Attend(static_cast<std::int64_t>(layer), 1, query.data(), key.data(), value.data(),
                     out.data());
    const std::vector<double> attended(out.begin(), out.end());
    const std::vector<double> added =
        Project(seed + 4, attended, static_cast<std::int64_t>(kHidden));
    for (std::size_t i = 0; i < kHidden; ++i) hidden[i] += 0.1 * added[i];
  }

  TinyConfig config_;
  ModelSpec spec_;
  std::int64_t runs_ = 0;
};

// Rules by which models choose their rotation.

LayerRope Plain(double theta, std::int64_t rotated_dims, Pairing pairing = Pairing::kHalves,
                std::int64_t first_dim = 0) {
  return {.pairing = pairing,
          .first_dim = first_dim,
          .rotated_dims = rotated_dims,
          .frequencies = PlainFrequencies(theta, rotated_dims)};
}

// R(position) in double, times the attention factor.
Transform Rotate(const LayerRope& rope) {
  return [rope](std::int64_t position, Part, std::vector<double>& vector) {
    RotateVectorReference(rope, static_cast<double>(position),
                          static_cast<std::int64_t>(vector.size()), vector.data(), vector.data());
    for (std::size_t dim = 0; dim < vector.size(); ++dim) {
      const auto index = static_cast<std::int64_t>(dim);
      const bool rotated = index >= rope.first_dim && index < rope.first_dim + rope.rotated_dims;
      if (rotated) vector[dim] *= rope.attention_factor;
    }
  };
}

// As rotate_half does in float32: the frequency, the angle, its sine and each product are rounded.
Transform RotateInFloat(const LayerRope& rope) {
  return [rope](std::int64_t position, Part, std::vector<double>& vector) {
    const std::size_t half = rope.frequencies.size();
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * static_cast<float>(rope.frequencies[i]);
      const float x = static_cast<float>(vector[i]);
      const float y = static_cast<float>(vector[half + i]);
      const float x_cos = x * std::cos(angle);
      const float y_sin = y * std::sin(angle);
      const float y_cos = y * std::cos(angle);
      const float x_sin = x * std::sin(angle);
      vector[i] = x_cos - y_sin;
      vector[half + i] = y_cos + x_sin;
    }
  };
}

float RoundToBf16(double value) {
  float rounded = static_cast<float>(value);
  std::uint32_t bits = 0;
  std::memcpy(&bits, &rounded, sizeof(bits));
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000U;
  std::memcpy(&rounded, &bits, sizeof(bits));
  return rounded;
}

Transform ThenRound(const Transform& transform) {
  return [transform](std::int64_t position, Part part, std::vector<double>& vector) {
    transform(position, part, vector);
    for (double& value : vector) value = RoundToBf16(value);
  };
}

// Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, the ones between
// interpolated.
std::vector<double> Llama3Frequencies(double theta, std::int64_t dims) {
  constexpr double kFactor = 8.0;
  constexpr double kLowFactor = 1.0;
  constexpr double kHighFactor = 4.0;
  constexpr double kOriginalWindow = 1024.0;
  std::vector<double> frequencies = PlainFrequencies(theta, dims);
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    const double smooth = std::clamp(
        (kOriginalWindow / wavelength - kLowFactor) / (kHighFactor - kLowFactor), 0.0, 1.0);
    frequency *= (1.0 - smooth) / kFactor + smooth;
  }
  return frequencies;
}

// YaRN (Peng et al. 2023): a linear ramp over pairs between extrapolation and interpolation.
std::vector<double> YarnFrequencies(double theta, std::int64_t dims) {
  constexpr double kFactor = 4.0;
  constexpr double kOriginalWindow = 1024.0;
  const auto pair_of_turns = [&](double turns) {
    return static_cast<double>(dims) *
           std::log(kOriginalWindow / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
  };
  const double low = std::max(std::floor(pair_of_turns(32.0)), 0.0);
  const double high = std::min(std::ceil(pair_of_turns(1.0)), static_cast<double>(dims - 1));
  std::vector<double> frequencies = PlainFrequencies(theta, dims);
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= ramp / kFactor + (1.0 - ramp);
  }
  return frequencies;
}

// The theta of HF's dynamic NTK scaling for a largest position.
double DynamicTheta(double theta, std::int64_t dims, std::int64_t window, std::int64_t position) {
  constexpr double kFactor = 2.0;
  const double length = static_cast<double>(std::max(position + 1, window));
  const double scale = kFactor * length / static_cast<double>(window) - (kFactor - 1.0);
  return theta * std::pow(scale, static_cast<double>(dims) / static_cast<double>(dims - 2));
}

RopeProbeResult Probe(const TinyConfig& config, std::int64_t trained_window = 2048) {
  TinyModel model(config);
  return ProbeRope(model, {.tokens = {}, .trained_window = trained_window});
}

TinyConfig Uniform(const Transform& transform, std::int64_t key_dim = 16) {
  return {.layers = {TinyLayer{key_dim, transform}, TinyLayer{key_dim, transform}}};
}

// Everything but the frequencies must be exact. They may be off by a rounding of float32, the
// precision that models have them in, and by what turns a key by `angle_error` at the window's end.
void ExpectRope(const LayerRope& found, const LayerRope& expected, double angle_error,
                std::int64_t window = 2048) {
  EXPECT_EQ(found.pairing, expected.pairing);
  EXPECT_EQ(found.first_dim, expected.first_dim);
  ASSERT_EQ(found.rotated_dims, expected.rotated_dims);
  ASSERT_EQ(found.frequencies.size(), expected.frequencies.size());
  for (std::size_t i = 0; i < found.frequencies.size(); ++i) {
    const double rounding = 0x1p-24 * std::abs(expected.frequencies[i]);
    EXPECT_NEAR(found.frequencies[i], expected.frequencies[i],
                angle_error / static_cast<double>(window) + rounding)
        << "pair " << i;
  }
  EXPECT_EQ(found.attention_factor, 1.0);
}

// Keys rounded once to float32.
constexpr double kFloatAngleError = 1e-6;

TEST(RopeProbe, FindsHalves) {
  const LayerRope rope = Plain(100000.0, 16);
  const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ASSERT_EQ(result.layers.size(), 2U);
  for (const LayerRopeFinding& layer : result.layers) {
    ExpectRope(layer.rope, rope, kFloatAngleError);
    EXPECT_NEAR(layer.fitted_theta, 100000.0, 1.0);
    EXPECT_LT(layer.largest_deviation, 1e-5);
    EXPECT_LT(layer.largest_residual, 1e-5);
  }
  EXPECT_THAT(result.reason,
              HasSubstr("2 of 2 layers rotate: halves pairing, 16 of 16 dimensions, theta 100000 "
                        "(frequencies within "));
  EXPECT_EQ(result.spec().layers[1], result.layers[1].rope);
}

TEST(RopeProbe, FindsNeighbours) {
  const LayerRope rope = Plain(10000.0, 16, Pairing::kNeighbours);
  const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ExpectRope(result.layers[0].rope, rope, kFloatAngleError);
  EXPECT_THAT(result.reason, HasSubstr("neighbours pairing, 16 of 16 dimensions, theta 10000 "));
}

TEST(RopeProbe, FindsPartialRotationOfFirstAndOfLastDimensions) {
  for (const Pairing pairing : {Pairing::kHalves, Pairing::kNeighbours}) {
    for (const std::int64_t rotated : {2, 6, 8, 14}) {
      for (const std::int64_t first : {std::int64_t{0}, 16 - rotated}) {
        const LayerRope rope = Plain(10000.0, rotated, pairing, first);
        const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
        EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
        LayerRope expected = rope;
        if (rotated == 2) expected.pairing = Pairing::kHalves;  // one pair is the same in both
        ExpectRope(result.layers[0].rope, expected, kFloatAngleError);
      }
    }
  }
}

TEST(RopeProbe, NamesWhereAPartialRotationBegins) {
  EXPECT_THAT(Probe(Uniform(Rotate(Plain(10000.0, 8, Pairing::kNeighbours, 8)))).reason,
              HasSubstr("neighbours pairing, 8 of 16 dimensions from 8 on, theta 10000"));
}

TEST(RopeProbe, FindsPairsThatDoNotTurnAmongPairsThatDo) {
  // Proportional rotation: pairs span the whole head, and only the first quarter of them turns.
  LayerRope rope = Plain(10000.0, 16);
  std::fill(rope.frequencies.begin() + 2, rope.frequencies.end(), 0.0);
  const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  EXPECT_EQ(result.layers[0].fitted_theta, 0.0);
  // Smallest: fewer dimensions would pair others.
  ExpectRope(result.layers[0].rope, rope, kFloatAngleError);
}

TEST(RopeProbe, FindsRotationAgainstTheUsualDirection) {
  LayerRope rope = Plain(10000.0, 16);
  for (double& frequency : rope.frequencies) frequency = -frequency;
  const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ExpectRope(result.layers[0].rope, rope, kFloatAngleError);
  EXPECT_EQ(result.layers[0].fitted_theta, 0.0);
}

TEST(RopeProbe, FindsScaledFrequencies) {
  LayerRope linear = Plain(10000.0, 16);
  for (double& frequency : linear.frequencies) frequency /= 4.0;
  LayerRope llama3 = Plain(10000.0, 16);
  llama3.frequencies = Llama3Frequencies(500000.0, 16);
  LayerRope yarn = Plain(10000.0, 16);
  yarn.frequencies = YarnFrequencies(10000.0, 16);
  yarn.attention_factor = 0.1 * std::log(4.0) + 1.0;
  for (const LayerRope& rope : {linear, llama3, yarn}) {
    const RopeProbeResult result = Probe(Uniform(Rotate(rope)));
    EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
    ExpectRope(result.layers[0].rope, rope, kFloatAngleError);
    EXPECT_EQ(result.layers[0].fitted_theta, 0.0);
    EXPECT_GT(result.layers[0].largest_deviation, 1e-3);
    EXPECT_THAT(result.reason, HasSubstr("scaled or special frequencies"));
  }
}

TEST(RopeProbe, FindsThetaSizeAndPairingPerLayer) {
  const std::vector<LayerRope> ropes = {Plain(10000.0, 16), Plain(1000000.0, 32),
                                        Plain(10000.0, 16),
                                        Plain(10000.0, 16, Pairing::kNeighbours)};
  TinyConfig config;
  for (const LayerRope& rope : ropes) config.layers.push_back({rope.rotated_dims, Rotate(rope)});
  const RopeProbeResult result = Probe(config);
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  const RopeSpec spec = result.spec();
  for (std::size_t i = 0; i < ropes.size(); ++i)
    ExpectRope(spec.layers[i], ropes[i], kFloatAngleError);
  EXPECT_NEAR(result.layers[0].fitted_theta, 1e4, 0.1);
  EXPECT_NEAR(result.layers[1].fitted_theta, 1e6, 20.0);
  EXPECT_THAT(
      result.reason,
      HasSubstr("4 of 4 layers rotate: 2 with halves pairing, 16 of 16 dimensions, theta 10000; "
                "1 with halves pairing, 32 of 32 dimensions, theta 1000000; 1 with neighbours"));
}

TEST(RopeProbe, FindsLayersWithoutRotationAmongOthers) {
  const LayerRope rope = Plain(10000.0, 16);
  TinyConfig config = Uniform(Rotate(rope));
  config.layers.insert(config.layers.begin() + 1, TinyLayer{24, nullptr});
  const RopeProbeResult result = Probe(config);
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  EXPECT_EQ(result.layers[1].verdict, RopeVerdict::kDoesNotRotate);
  EXPECT_FALSE(result.spec().layers[1].rotates());
  ExpectRope(result.spec().layers[2], rope, kFloatAngleError);
  EXPECT_THAT(result.reason, HasSubstr("2 of 3 layers rotate"));
  EXPECT_THAT(result.reason, HasSubstr("in 1 keys do not depend on position"));
}

TEST(RopeProbe, SaysWhenNothingRotates) {
  const RopeProbeResult result = Probe(Uniform(nullptr));
  EXPECT_EQ(result.verdict, RopeVerdict::kDoesNotRotate);
  EXPECT_EQ(result.reason, "keys do not depend on position in any of the 2 layers");
  EXPECT_EQ(result.spec().layers, std::vector<LayerRope>(2));
}

TEST(RopeProbe, RefusesDynamicScalingPastTheWindow) {
  const RopeProbeResult result =
      Probe(Uniform([](std::int64_t position, Part part, std::vector<double>& vector) {
        Rotate(Plain(DynamicTheta(10000.0, 16, 2048, position), 16))(position, part, vector);
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  // The slowest pair: 10000^(-7/8) before, (10000 * 3.001^(8/7))^(-7/8), a third of it, after.
  EXPECT_THAT(
      result.reason,
      HasSubstr("layer 0: past the trained window the frequencies change (dynamic or long-context "
                "scaling): pair 7 turns by 0.000316228 radians per token up to position 2047, by "
                "0.000105375 at position 4096"));
}

TEST(RopeProbe, RefusesDynamicScalingInsideTheWindowThatIsClaimed) {
  const RopeProbeResult result =
      Probe(Uniform([](std::int64_t position, Part part, std::vector<double>& vector) {
              Rotate(Plain(DynamicTheta(10000.0, 16, 512, position), 16))(position, part, vector);
            }),
            2048);
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(result.reason, HasSubstr("frequencies depend on the position"));
  EXPECT_THAT(result.reason, HasSubstr("0.000316228 radians per token up to position 256"));
}

TEST(RopeProbe, RefusesASwitchToLongFactors) {
  // longrope: other frequencies, and another attention factor, as soon as a position passes the
  // window.
  for (const double factor : {1.0, 1.2}) {
    const RopeProbeResult result =
        Probe(Uniform([factor](std::int64_t position, Part part, std::vector<double>& vector) {
          LayerRope rope = Plain(10000.0, 16);
          if (position >= 2048) {
            rope.attention_factor = factor;
            for (std::size_t i = 0; i < 8; ++i) rope.frequencies[i] /= 1.0 + static_cast<double>(i);
          }
          Rotate(rope)(position, part, vector);
        }));
    EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
    EXPECT_THAT(result.reason, HasSubstr("past the trained window"));
    EXPECT_THAT(result.reason, HasSubstr("4096"));
    EXPECT_THAT(result.reason, HasSubstr(factor == 1.0 ? "0.000316228" : "0.2 of it"));
  }
}

TEST(RopeProbe, RefusesLearnedPositions) {
  TinyConfig config = Uniform(nullptr);
  config.learned_positions = true;
  const RopeProbeResult learned = Probe(config);
  EXPECT_EQ(learned.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(learned.reason, HasSubstr("layer 0: values change with position"));
  EXPECT_THAT(learned.reason, HasSubstr("hidden state depends on position"));
  config = Uniform(Rotate(Plain(10000.0, 16)));
  config.learned_positions = true;
  EXPECT_EQ(Probe(config).verdict, RopeVerdict::kRefused);
}

TEST(RopeProbe, RefusesKeysWithoutAnyLaw) {
  const RopeProbeResult result =
      Probe(Uniform([](std::int64_t position, Part, std::vector<double>& vector) {
        std::mt19937 random(static_cast<unsigned>(position));
        std::normal_distribution<double> normal;
        for (double& value : vector) value += normal(random);
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(result.reason, HasSubstr("keys change their length with position"));
  EXPECT_DEATH(result.spec(), "kRefused");
}

TEST(RopeProbe, RefusesTurnsThatAreNotLinearInPosition) {
  // Lengths hold, so only the phases can tell. Equal to a rotation at powers of two.
  const LayerRope rope = Plain(10000.0, 16);
  const RopeProbeResult result =
      Probe(Uniform([&](std::int64_t position, Part, std::vector<double>& vector) {
        const bool power = (position & (position - 1)) == 0;
        const double turned = static_cast<double>(position) + (power ? 0.0 : 0.01);
        RotateVectorReference(rope, turned, 16, vector.data(), vector.data());
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused) << result.reason;
  EXPECT_THAT(result.reason, HasSubstr("up to position 2, by"));
}

TEST(RopeProbe, RefusesLengthsThatDecayWithPosition) {
  // xPos (Sun et al. 2022).
  const LayerRope rope = Plain(10000.0, 16);
  const RopeProbeResult result =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        Rotate(rope)(position, part, vector);
        const double decay = std::pow(0.9, static_cast<double>(position) / 512.0);
        for (double& value : vector) value *= decay;
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(result.reason, HasSubstr("keys change their length with position"));
}

TEST(RopeProbe, RefusesOneLayerAmongManyAndNamesIt) {
  TinyConfig config = Uniform(Rotate(Plain(10000.0, 16)));
  config.layers.push_back({16, [](std::int64_t position, Part, std::vector<double>& vector) {
                             vector[3] += static_cast<double>(position);
                           }});
  const RopeProbeResult result = Probe(config);
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  EXPECT_EQ(result.layers[0].verdict, RopeVerdict::kRotates);
  EXPECT_THAT(result.reason, HasSubstr("layer 2: "));
}

TEST(RopeProbe, RefusesQueriesThatDoNotTurnAsKeysDo) {
  const LayerRope rope = Plain(10000.0, 16);
  const RopeProbeResult turned =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        if (part == Part::kKey) Rotate(rope)(position, part, vector);
      }));
  EXPECT_EQ(turned.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(turned.reason, HasSubstr("queries do not turn as keys do"));
  // A temperature that grows with position, as some long-context models give to queries alone.
  const RopeProbeResult scaled =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        if (part == Part::kKey) return;
        for (double& value : vector)
          value *= 1.0 + 0.1 * std::log1p(static_cast<double>(position / 512));
      }));
  EXPECT_EQ(scaled.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(scaled.reason, HasSubstr("queries do not turn as keys do"));
}

TEST(RopeProbe, RefusesWhatIsNotFinite) {
  const RopeProbeResult result =
      Probe(Uniform([](std::int64_t position, Part, std::vector<double>& vector) {
        if (position == 64) vector[5] = NAN;
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(result.reason, HasSubstr("position 64 are not finite"));
}

TEST(RopeProbe, UnderstandsFloatAngles) {
  // Angles of thousands of radians are wrong by up to 2^-24 of themselves, 5e-4 here at twice the
  // window.
  const LayerRope rope = Plain(100000.0, 64);
  const RopeProbeResult result = Probe(Uniform(RotateInFloat(rope), 64), 8192);
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  // The frequency itself is rounded to float: that is the model's, and no error.
  LayerRope rounded = rope;
  for (double& frequency : rounded.frequencies) frequency = static_cast<float>(frequency);
  ExpectRope(result.layers[0].rope, rounded, kFloatAngleError, 8192);
  EXPECT_NEAR(result.layers[0].fitted_theta, 100000.0, 0.1);
  EXPECT_LT(result.layers[0].largest_deviation, 1e-6);
  EXPECT_THAT(result.reason, HasSubstr("theta 100000"));
}

TEST(RopeProbe, FindsKeysRoundedToBf16WithLessPrecision) {
  const LayerRope rope = Plain(10000.0, 32);
  const RopeProbeResult result = Probe(Uniform(ThenRound(Rotate(rope)), 32));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ExpectRope(result.layers[0].rope, rope, 0x1p-8);
  EXPECT_GT(result.layers[0].largest_residual, 1e-5);
  // The law shows through, as far as such keys show anything.
  EXPECT_NEAR(result.layers[0].fitted_theta, 10000.0, 30.0);
  EXPECT_THAT(result.reason,
              HasSubstr("2 of 2 layers rotate: halves pairing, 32 of 32 dimensions, theta 1"));
}

TEST(RopeProbe, AllowsForARuntimeThatRoundsDifferentlyEachTime) {
  const LayerRope rope = Plain(10000.0, 8, Pairing::kHalves, 8);
  TinyConfig config = Uniform(Rotate(rope));
  config.layers.push_back({16, nullptr});
  config.hidden_noise = 1e-6;
  const RopeProbeResult result = Probe(config);
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ExpectRope(result.layers[0].rope, rope, 2e-5);
  ExpectRope(result.layers[1].rope, rope, 2e-5);
  EXPECT_EQ(result.layers[2].verdict, RopeVerdict::kDoesNotRotate);
}

TEST(RopeProbe, RefusesWhatBeginsToChangePastTheWindow) {
  const LayerRope rope = Plain(10000.0, 8);
  const auto late = [](std::int64_t position, Part, std::vector<double>& vector) {
    if (position >= 2048) vector[12] += 1.0;
  };
  const RopeProbeResult outside =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        Rotate(rope)(position, part, vector);
        late(position, part, vector);
      }));
  EXPECT_EQ(outside.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(outside.reason, HasSubstr("at position 4096, dimension 12 begins to change"));
  const RopeProbeResult constant = Probe(Uniform(late));
  EXPECT_EQ(constant.verdict, RopeVerdict::kRefused);
  EXPECT_THAT(constant.reason, HasSubstr("keys begin to change past the trained window of 2048"));
}

TEST(RopeProbe, ForgivesATableThatEndsAtTheWindow) {
  const LayerRope rope = Plain(10000.0, 8, Pairing::kNeighbours);
  TinyConfig fails = Uniform(Rotate(rope));
  fails.last_position = 2047;
  const TinyConfig zeros =
      Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        Rotate(rope)(position, part, vector);
        if (position >= 2048) std::fill(vector.begin(), vector.begin() + 8, 0.0);
      });
  for (const TinyConfig& config : {fails, zeros}) {
    const RopeProbeResult result = Probe(config);
    EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
    ExpectRope(result.layers[0].rope, rope, kFloatAngleError);
  }
  EXPECT_THAT(Probe(zeros).layers[0].reason, HasSubstr("no rotation past position 2047"));
  // A failure inside the window is the model's own.
  fails.last_position = 1024;
  EXPECT_THROW(Probe(fails), Error);
}

TEST(RopeProbe, TakesTheLawOfOthersForAPairThatIsAlwaysZero) {
  const LayerRope rope = Plain(10000.0, 16);
  const auto zero_pair = [](std::vector<double>& vector) { vector[5] = vector[13] = 0.0; };
  const RopeProbeResult result =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        zero_pair(vector);
        Rotate(rope)(position, part, vector);
      }));
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  ExpectRope(result.layers[0].rope, rope, 1e-5);
  // But a zero that grows with position is no rotation.
  const RopeProbeResult added =
      Probe(Uniform([&](std::int64_t position, Part part, std::vector<double>& vector) {
        zero_pair(vector);
        Rotate(rope)(position, part, vector);
        vector[5] += static_cast<double>(position);
      }));
  EXPECT_EQ(added.verdict, RopeVerdict::kRefused);
}

TEST(RopeProbe, WorksWithUnknownAndWithTinyWindowsAndTokensOfOurs) {
  const LayerRope rope = Plain(10000.0, 16);
  for (const std::int64_t window : {0, 2, 3, 17, 131072}) {
    const RopeProbeResult result = Probe(Uniform(Rotate(rope)), window);
    EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << window << ": " << result.reason;
    ExpectRope(result.layers[0].rope, rope, 2.0 * kFloatAngleError,
               window == 0 ? 8192 : std::min<std::int64_t>(window, 8192));
  }
  TinyModel model(Uniform(Rotate(rope)));
  const RopeProbeResult result = ProbeRope(model, {.tokens = {5}, .trained_window = 64});
  EXPECT_EQ(result.verdict, RopeVerdict::kRotates) << result.reason;
  EXPECT_LE(model.runs(), 16);
  TinyConfig one_word = Uniform(Rotate(rope));
  one_word.vocabulary_size = 1;
  EXPECT_EQ(Probe(one_word).verdict, RopeVerdict::kRotates);
}

TEST(RopeProbe, RunsTheModelSomeDozensOfTimes) {
  TinyModel model(Uniform(Rotate(Plain(10000.0, 16))));
  ProbeRope(model, {.tokens = {}, .trained_window = 8192});
  EXPECT_LE(model.runs(), 44);  // about a second of SmolLM2
}

// A model that forgets a layer is told so, not read past its end.
class LazyModel : public Model {
 public:
  LazyModel() {
    spec_.vocabulary_size = 1;
    spec_.layers.resize(1);
  }
  const ModelSpec& spec() const override { return spec_; }
  std::span<const float> Forward(const ForwardInput&, AttentionCallback&) override { return {}; }

 private:
  ModelSpec spec_;
};

TEST(RopeProbe, RejectsAModelThatSkipsAttention) {
  LazyModel model;
  EXPECT_THROW(ProbeRope(model, {.tokens = {}, .trained_window = 64}), Error);
}

}  // namespace
}  // namespace carousel
