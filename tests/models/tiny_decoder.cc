// SPDX-License-Identifier: Apache-2.0
#include "models/tiny_decoder.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <numbers>
#include <openvino/core/graph_util.hpp>
#include <openvino/op/ops.hpp>
#include <openvino/op/util/variable.hpp>
#include <random>
#include <string>
#include <utility>

namespace carousel::testing {
namespace {

namespace v0 = ov::op::v0;
namespace v1 = ov::op::v1;
using ov::element::f32;
using ov::element::i32;
using ov::element::i64;
using Out = ov::Output<ov::Node>;
using Axes = std::vector<std::int64_t>;

template <typename T>
T ForLayer(const std::vector<T>& values, std::int64_t layer) {
  return values.size() == 1 ? values[0] : values.at(static_cast<std::size_t>(layer));
}

Out Ints(const Axes& values) { return v0::Constant::create(i64, ov::Shape{values.size()}, values); }
Out Int(std::int64_t value) { return v0::Constant::create(i64, ov::Shape{}, {value}); }
Out Float(double value) { return v0::Constant::create(f32, ov::Shape{}, {value}); }
Out Add(const Out& a, const Out& b) { return std::make_shared<v1::Add>(a, b); }
Out Subtract(const Out& a, const Out& b) { return std::make_shared<v1::Subtract>(a, b); }
Out Multiply(const Out& a, const Out& b) { return std::make_shared<v1::Multiply>(a, b); }
Out Transpose(const Out& x, const Axes& order) {
  return std::make_shared<v1::Transpose>(x, Ints(order));
}
Out Reshape(const Out& x, const Axes& shape) {
  return std::make_shared<v1::Reshape>(x, Ints(shape), /*special_zero=*/true);
}
Out Unsqueeze(const Out& x, const Axes& axes) {
  return std::make_shared<v0::Unsqueeze>(x, Ints(axes));
}
Out Concat(const ov::OutputVector& parts, std::int64_t axis) {
  return std::make_shared<v0::Concat>(parts, axis);
}
// x[..., begin:end:step]
Out SliceLast(const Out& x, std::int64_t begin, std::int64_t end, std::int64_t step) {
  return std::make_shared<ov::op::v8::Slice>(x, Ints({begin}), Ints({end}), Ints({step}),
                                             Ints({-1}));
}
// Size of one dimension, as a scalar.
Out SizeOf(const Out& x, std::int64_t axis) {
  const auto shape = std::make_shared<ov::op::v3::ShapeOf>(x, i64);
  return std::make_shared<ov::op::v8::Gather>(shape, Int(axis), Int(0));
}
Out Range(const Out& begin, const Out& end) {
  return std::make_shared<ov::op::v4::Range>(begin, end, Int(1), i64);
}
Out And(const Out& a, const Out& b) { return std::make_shared<ov::op::v13::BitwiseAnd>(a, b); }

double Llama3Frequency(double frequency, const TinyDecoderOptions& options) {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  const auto window = static_cast<double>(options.trained_window);
  const double turns = window * frequency / (2.0 * std::numbers::pi);
  if (turns < kLow) return frequency / options.factor;
  if (turns > kHigh) return frequency;
  const double smooth = (turns - kLow) / (kHigh - kLow);
  return (1.0 - smooth) * frequency / options.factor + smooth * frequency;
}

double YarnFrequency(double frequency, double pair, double theta,
                     const TinyDecoderOptions& options) {
  const auto dims = static_cast<double>(options.rotated_dims);
  const auto window = static_cast<double>(options.trained_window);
  const auto pair_of_turns = [&](double turns) {
    return dims * std::log(window / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
  };
  const double low = std::max(std::floor(pair_of_turns(32.0)), 0.0);
  const double high = std::min(std::ceil(pair_of_turns(1.0)), dims - 1.0);
  const double ramp = std::clamp((pair - low) / std::max(high - low, 1e-3), 0.0, 1.0);
  return frequency / options.factor * ramp + frequency * (1.0 - ramp);
}

bool IsDynamic(TinyScaling scaling) {
  return scaling == TinyScaling::kDynamicNtk || scaling == TinyScaling::kDynamicNtkByCache ||
         scaling == TinyScaling::kDynamicNtkByMask;
}

// Builds one decoder. Members are what all layers share.
class Builder {
 public:
  explicit Builder(const TinyDecoderOptions& options)
      : options_(options),
        random_(options.seed),
        heads_per_kv_(options.query_heads / options.kv_heads) {}

  std::shared_ptr<ov::Model> Build() {
    input_ids_ = AddInput("input_ids", i64, {-1, -1});
    attention_mask_ = AddInput("attention_mask", i64, {-1, -1});
    position_ids_ = AddInput("position_ids", i64, {-1, -1});
    beam_idx_ = AddInput("beam_idx", i32, {-1});
    const auto table = Weights({options_.vocabulary_size, options_.hidden_size}, 1.0);
    Out hidden = std::make_shared<ov::op::v8::Gather>(table, input_ids_, Int(0));
    for (std::int64_t layer = 0; layer < options_.layers; ++layer) {
      hidden = Add(hidden, Attention(Norm(hidden), layer));
      hidden = Add(hidden, FeedForward(Norm(hidden)));
    }
    Out logits = Linear(Norm(hidden), options_.hidden_size, options_.vocabulary_size);
    if (options_.has_soft_capped_logits) {
      logits = Multiply(std::make_shared<v0::Tanh>(Multiply(logits, Float(0.5))), Float(2.0));
    }
    const auto result = std::make_shared<v0::Result>(logits);
    result->get_output_tensor(0).set_names({"logits"});
    return std::make_shared<ov::Model>(ov::ResultVector{result}, sinks_, inputs_, "tiny_decoder");
  }

 private:
  Out AddInput(const std::string& name, ov::element::Type type, const ov::PartialShape& shape) {
    auto parameter = std::make_shared<v0::Parameter>(type, shape);
    parameter->set_friendly_name(name);
    parameter->get_output_tensor(0).set_names({name});
    inputs_.push_back(parameter);
    return parameter;
  }

  Out Weights(const std::vector<std::int64_t>& shape, double deviation) {
    const ov::Shape sizes(shape.begin(), shape.end());
    std::vector<float> values(ov::shape_size(sizes));
    std::normal_distribution<float> distribution(0.0F, static_cast<float>(deviation));
    for (float& value : values) value = distribution(random_);
    return v0::Constant::create(f32, sizes, values);
  }

  // y = x W^T, W [outputs, inputs]
  Out Linear(const Out& x, std::int64_t inputs, std::int64_t outputs) {
    const Out weights = Weights({outputs, inputs}, 1.0 / std::sqrt(static_cast<double>(inputs)));
    return std::make_shared<v0::MatMul>(x, weights, false, true);
  }

  Out Norm(const Out& x) {
    const Out square = std::make_shared<v1::Power>(x, Float(2.0));
    const Out mean = std::make_shared<v1::ReduceMean>(square, Ints({-1}), true);
    const Out root = std::make_shared<v0::Sqrt>(Add(mean, Float(1e-5)));
    const Out gain = Add(Weights({1, 1, options_.hidden_size}, 0.1), Float(1.0));
    return Multiply(std::make_shared<v1::Divide>(x, root), gain);
  }

  Out FeedForward(const Out& x) {
    const std::int64_t inner = 2 * options_.hidden_size;
    const Out gate = std::make_shared<ov::op::v4::Swish>(Linear(x, options_.hidden_size, inner));
    const Out up = Linear(x, options_.hidden_size, inner);
    return Linear(Multiply(gate, up), inner, options_.hidden_size);
  }

  // [batch, heads, length, dim]
  Out Heads(const Out& x, std::int64_t heads, std::int64_t dim) {
    const Out projected = Linear(x, options_.hidden_size, heads * dim);
    return Transpose(Reshape(projected, {0, 0, heads, dim}), {0, 2, 1, 3});
  }

  // --- RoPE ---

  // Tokens so far, those of this step included, as the model's scaling sees it.
  Out WholeLength(const Out& past) {
    if (options_.scaling == TinyScaling::kDynamicNtkByMask) return SizeOf(attention_mask_, 1);
    if (options_.scaling == TinyScaling::kDynamicNtkByCache) {
      return Add(SizeOf(past, 2), SizeOf(input_ids_, 1));
    }
    return Add(std::make_shared<v1::ReduceMax>(position_ids_, Ints({0, 1}), false), Int(1));
  }

  // Angles [batch, length, rotated_dims / 2].
  Out Angles(std::int64_t layer, const Out& past) {
    const Out positions = Unsqueeze(std::make_shared<v0::Convert>(position_ids_, f32), {-1});
    const std::vector<double> frequencies = TinyFrequencies(options_, layer);
    if (!IsDynamic(options_.scaling)) {
      return Multiply(positions,
                      v0::Constant::create(f32, ov::Shape{1, 1, frequencies.size()}, frequencies));
    }
    // theta * (factor * length / window - (factor - 1)) ^ (dims / (dims - 2)), length at least the
    // window.
    const Out length = std::make_shared<v0::Convert>(WholeLength(past), f32);
    const auto window = static_cast<double>(options_.trained_window);
    const auto dims = static_cast<double>(options_.rotated_dims);
    const Out at_least = std::make_shared<v1::Maximum>(length, Float(window));
    const Out grown =
        Add(Multiply(at_least, Float(options_.factor / window)), Float(1.0 - options_.factor));
    const Out base = std::make_shared<v1::Power>(grown, Float(dims / (dims - 2.0)));
    const Out theta = Multiply(base, Float(ForLayer(options_.layer_theta, layer)));
    std::vector<double> exponents;
    for (std::int64_t i = 0; i < options_.rotated_dims / 2; ++i)
      exponents.push_back(-2.0 * static_cast<double>(i) / dims);
    const Out exponent = v0::Constant::create(f32, ov::Shape{1, 1, exponents.size()}, exponents);
    return Multiply(positions, std::make_shared<v1::Power>(theta, exponent));
  }

  // x [batch, heads, length, key_dim], rotated by the layer's angles.
  Out Rotate(const Out& x, const Out& angles) {
    const std::int64_t first = options_.first_dim;
    const std::int64_t end = first + options_.rotated_dims;
    const Out rotated = RotatePart(SliceLast(x, first, end, 1), angles);
    ov::OutputVector parts;
    if (first > 0) parts.push_back(SliceLast(x, 0, first, 1));
    parts.push_back(rotated);
    if (end < options_.key_dim) parts.push_back(SliceLast(x, end, options_.key_dim, 1));
    return parts.size() == 1 ? parts[0] : Concat(parts, -1);
  }

  Out RotatePart(const Out& x, const Out& angles) {
    const bool is_halves = options_.pairing == TinyPairing::kHalves;
    const std::int64_t dims = options_.rotated_dims;
    const std::int64_t pairs = dims / 2;
    const Out a = is_halves ? SliceLast(x, 0, pairs, 1) : SliceLast(x, 0, dims, 2);
    const Out b = is_halves ? SliceLast(x, pairs, dims, 1) : SliceLast(x, 1, dims, 2);
    const Out minus_b = Multiply(b, Float(-1.0));
    const Out turned = is_halves ? Concat({minus_b, a}, -1) : Interleave(minus_b, a, dims);
    const Out both = is_halves ? Concat({angles, angles}, -1) : InterleaveAngles(angles, dims);
    const Out factor = Float(TinyAttentionFactor(options_));
    const Out cos = Unsqueeze(Multiply(std::make_shared<v0::Cos>(both), factor), {1});
    const Out sin = Unsqueeze(Multiply(std::make_shared<v0::Sin>(both), factor), {1});
    return Add(Multiply(x, cos), Multiply(turned, sin));
  }

  Out Interleave(const Out& a, const Out& b, std::int64_t dims) {
    const Out stacked = Concat({Unsqueeze(a, {-1}), Unsqueeze(b, {-1})}, -1);
    return Reshape(stacked, {0, 0, -1, dims});
  }

  Out InterleaveAngles(const Out& angles, std::int64_t dims) {
    const Out stacked = Concat({Unsqueeze(angles, {-1}), Unsqueeze(angles, {-1})}, -1);
    return Reshape(stacked, {0, -1, dims});
  }

  // --- Keys and values ---

  // [batch, kv_heads, past, dim] of an earlier step.
  struct State {
    std::shared_ptr<ov::op::util::Variable> variable;
    Out past;
  };

  State ReadState(std::int64_t heads, std::int64_t dim, const std::string& name) {
    const Out batch = std::make_shared<ov::op::v8::Gather>(
        std::make_shared<ov::op::v3::ShapeOf>(input_ids_, i64), Ints({0}), Int(0));
    const Out shape = Concat({batch, Ints({heads}), Ints({0}), Ints({dim})}, 0);
    const Out empty = std::make_shared<ov::op::v3::Broadcast>(Float(0.0), shape);
    const ov::PartialShape state_shape{-1, heads, -1, dim};
    const auto variable = std::make_shared<ov::op::util::Variable>(
        ov::op::util::VariableInfo{state_shape, f32, name});
    const auto read = std::make_shared<ov::op::v6::ReadValue>(empty, variable);
    return {variable, std::make_shared<ov::op::v8::Gather>(read, beam_idx_, Int(0))};
  }

  // [batch, kv_heads, past + length, dim], which is what the next step reads.
  Out Append(const State& state, const Out& fresh) {
    const Out whole = Concat({state.past, fresh}, 2);
    sinks_.push_back(std::make_shared<ov::op::v6::Assign>(whole, state.variable));
    return whole;
  }

  // Each KV head once for each query head that reads it.
  Out ForQueryHeads(const Out& x, std::int64_t dim) {
    if (heads_per_kv_ == 1) return x;
    const Out unsqueezed = Unsqueeze(x, {2});
    const Out shape =
        Concat({Ints({1}), Ints({1}), Ints({heads_per_kv_}), Ints({1}), Ints({1})}, 0);
    const Out repeated = std::make_shared<ov::op::v3::Broadcast>(
        unsqueezed, shape, ov::op::BroadcastType::BIDIRECTIONAL);
    return Reshape(repeated, {0, options_.query_heads, -1, dim});
  }

  // --- Masks: [1 or batch, 1 or heads, length, past + length], added to the scores ---

  struct Places {
    Out q;   // [1, 1, length, 1], logical positions
    Out kv;  // [1, 1, 1, past + length]
  };

  Places FindPlaces(const Out& past) {
    const Out begin = SizeOf(past, 2);
    const Out end = Add(begin, SizeOf(input_ids_, 1));
    return {Unsqueeze(Range(begin, end), {0, 1, 3}), Unsqueeze(Range(Int(0), end), {0, 1, 2})};
  }

  Out Visible(const Out& allowed) {
    return std::make_shared<v1::Select>(allowed, Float(0.0), Float(-65504.0));
  }

  Out Mask(const Out& past, std::int64_t layer) {
    const Places places = FindPlaces(past);
    const Out causal = std::make_shared<v1::LessEqual>(places.kv, places.q);
    switch (ForLayer(options_.layer_mask, layer)) {
      case TinyMask::kCausal:
        return Visible(causal);
      case TinyMask::kSlidingGptOss:
        return SlidingMask(places, causal);
      case TinyMask::kSlidingUnknown: {
        const Out distance = Subtract(places.q, places.kv);
        const Out near = std::make_shared<v1::Less>(distance, Int(options_.sliding_window));
        return Visible(std::make_shared<v1::LogicalAnd>(causal, near));
      }
      case TinyMask::kAlibi:
        return AlibiMask(places, causal);
      case TinyMask::kBidirectional:
        return Visible(std::make_shared<v1::GreaterEqual>(places.kv, Multiply(places.q, Int(0))));
      case TinyMask::kChunked: {
        const Out chunk = std::make_shared<v1::Divide>(places.q, Int(options_.sliding_window));
        const Out begin_of_chunk = Multiply(chunk, Int(options_.sliding_window));
        const Out near = std::make_shared<v1::GreaterEqual>(places.kv, begin_of_chunk);
        return Visible(std::make_shared<v1::LogicalAnd>(causal, near));
      }
      case TinyMask::kSquareBias: {
        const Out distance = std::make_shared<v0::Convert>(Subtract(places.q, places.kv), f32);
        return Add(Visible(causal), Multiply(Multiply(distance, distance), Float(-0.01)));
      }
    }
    return {};
  }

  Out SlidingMask(const Places& places, const Out& causal) {
    const Out oldest = Add(places.q, Int(-options_.sliding_window));
    const Out near = std::make_shared<v1::Greater>(places.kv, oldest);
    const Out yes = v0::Constant::create(ov::element::boolean, ov::Shape{1, 1, 1, 1}, {true});
    const Out exists = std::make_shared<v1::GreaterEqual>(places.kv, Int(0));
    const Out all = And(And(yes, And(And(yes, near), causal)), exists);
    const Out wide = std::make_shared<ov::op::v3::Broadcast>(all, Ints({1, 1, 1, 1}),
                                                             ov::op::BroadcastType::BIDIRECTIONAL);
    const Out end = SizeOf(places.kv, 3);
    return std::make_shared<ov::op::v8::Slice>(Visible(wide), Ints({0}), Unsqueeze(end, {0}),
                                               Ints({1}), Ints({3}));
  }

  Out AlibiMask(const Places& places, const Out& causal) {
    const Out slopes =
        v0::Constant::create(f32, ov::Shape{1, static_cast<std::size_t>(options_.query_heads), 1},
                             TinyAlibiSlopes(options_));
    const Out positions = Reshape(std::make_shared<v0::Convert>(places.kv, f32), {1, 1, -1});
    const Out bias = Multiply(slopes, positions);  // [1, heads, past + length]
    const Out flat = Reshape(bias, {options_.query_heads, 1, -1});
    const Out by_head =
        std::make_shared<v1::Reshape>(flat, Ints({1, options_.query_heads, 1, -1}), false);
    const Out hidden = std::make_shared<v1::LogicalNot>(causal);
    return std::make_shared<v1::Select>(hidden, Float(-65504.0), by_head);
  }

  // --- A layer ---

  Out Attention(const Out& x, std::int64_t layer) {
    const std::string suffix = std::to_string(layer);
    const State keys = ReadState(options_.kv_heads, options_.key_dim, "key." + suffix);
    const State values = ReadState(options_.kv_heads, options_.value_dim, "value." + suffix);
    Out q = Heads(x, options_.query_heads, options_.key_dim);
    Out k = Heads(x, options_.kv_heads, options_.key_dim);
    const Out v = Heads(x, options_.kv_heads, options_.value_dim);
    if (ForLayer(options_.layer_theta, layer) > 0.0) {
      const Out angles = Angles(layer, keys.past);
      q = Rotate(q, angles);
      k = Rotate(k, angles);
    }
    ov::OutputVector arguments = {q, ForQueryHeads(Append(keys, k), options_.key_dim),
                                  ForQueryHeads(Append(values, v), options_.value_dim),
                                  Mask(keys.past, layer)};
    if (options_.soft_cap > 0.0) arguments[3] = SoftCapped(arguments);
    AppendScaleAndSinks(q, arguments);
    const auto attended =
        std::make_shared<ov::op::v13::ScaledDotProductAttention>(arguments, false);
    attended->set_friendly_name("attention." + suffix);
    const std::int64_t width = options_.query_heads * options_.value_dim;
    Out joined = Reshape(Transpose(attended, {0, 2, 1, 3}), {0, 0, width});
    if (options_.has_recurrent_state) joined = AddRecurrentState(joined, width, suffix);
    return Linear(joined, width, options_.hidden_size);
  }

  double Scale() const {
    return options_.scale.value_or(1.0 / std::sqrt(static_cast<double>(options_.key_dim)));
  }

  // The mask, and what makes cap * tanh(s / cap) of the scores s, as tools/decoder_graph.py has it.
  Out SoftCapped(const ov::OutputVector& arguments) {
    const double scale = options_.caps_other_scores ? 2.0 * Scale() : Scale();
    const Out product = std::make_shared<v0::MatMul>(arguments[0], arguments[1], false, true);
    const Out scores = Multiply(product, Float(scale));
    const Out cap = Float(options_.soft_cap);
    const Out tanh = std::make_shared<v0::Tanh>(std::make_shared<v1::Divide>(scores, cap));
    return Add(arguments[3], Subtract(Multiply(tanh, cap), scores));
  }

  void AppendScaleAndSinks(const Out& q, ov::OutputVector& arguments) {
    const bool is_left_out = !options_.scale && !options_.has_sinks && !options_.scale_from_input &&
                             options_.soft_cap == 0.0;
    if (is_left_out) return;
    Out scale = Float(Scale());
    if (options_.scale_from_input) {
      scale = Multiply(scale, std::make_shared<v0::Convert>(SizeOf(q, 2), f32));
    }
    arguments.push_back(scale);
    if (options_.has_sinks) arguments.push_back(Weights({1, options_.query_heads, 1, 1}, 1.0));
  }

  // A running sum over steps, as a recurrent layer would keep.
  Out AddRecurrentState(const Out& x, std::int64_t width, const std::string& suffix) {
    const auto variable = std::make_shared<ov::op::util::Variable>(
        ov::op::util::VariableInfo{ov::PartialShape{1, 1, width}, f32, "recurrent." + suffix});
    const Out zero =
        v0::Constant::create(f32, ov::Shape{1, 1, static_cast<std::size_t>(width)}, {0.0F});
    const auto read = std::make_shared<ov::op::v6::ReadValue>(zero, variable);
    const Out sum = Add(read, std::make_shared<v1::ReduceSum>(x, Ints({1}), true));
    sinks_.push_back(std::make_shared<ov::op::v6::Assign>(sum, variable));
    return Add(x, sum);
  }

  TinyDecoderOptions options_;
  std::mt19937_64 random_;
  std::int64_t heads_per_kv_;
  ov::ParameterVector inputs_;
  ov::SinkVector sinks_;
  Out input_ids_, attention_mask_, position_ids_, beam_idx_;
};

}  // namespace

std::vector<double> TinyFrequencies(const TinyDecoderOptions& options, std::int64_t layer) {
  const double theta = ForLayer(options.layer_theta, layer);
  std::vector<double> frequencies;
  for (std::int64_t i = 0; i < options.rotated_dims / 2; ++i) {
    const auto pair = static_cast<double>(i);
    double frequency = std::pow(theta, -2.0 * pair / static_cast<double>(options.rotated_dims));
    if (options.scaling == TinyScaling::kLinear) frequency /= options.factor;
    if (options.scaling == TinyScaling::kLlama3) frequency = Llama3Frequency(frequency, options);
    if (options.scaling == TinyScaling::kYarn)
      frequency = YarnFrequency(frequency, pair, theta, options);
    frequencies.push_back(frequency);
  }
  return frequencies;
}

double TinyAttentionFactor(const TinyDecoderOptions& options) {
  return options.scaling == TinyScaling::kYarn ? 0.1 * std::log(options.factor) + 1.0 : 1.0;
}

std::vector<float> TinyAlibiSlopes(const TinyDecoderOptions& options) {
  std::vector<float> slopes;
  for (std::int64_t head = 1; head <= options.query_heads; ++head) {
    slopes.push_back(static_cast<float>(std::pow(
        2.0, -8.0 * static_cast<double>(head) / static_cast<double>(options.query_heads))));
  }
  return slopes;
}

std::shared_ptr<ov::Model> BuildTinyDecoder(const TinyDecoderOptions& options) {
  return Builder(options).Build();
}

void SaveTinyDecoder(const TinyDecoderOptions& options, const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  ov::save_model(BuildTinyDecoder(options), (directory / "openvino_model.xml").string(),
                 options.has_half_weights);
  std::ofstream config(directory / "config.json");
  config << "{\"model_type\": \"tiny\", \"max_position_embeddings\": " << options.trained_window
         << ", \"eos_token_id\": [2, 3]";
  if (ForLayer(options.layer_theta, 0) > 0.0)
    config << ", \"rope_theta\": " << ForLayer(options.layer_theta, 0);
  if (options.scaling == TinyScaling::kYarn) {
    config << ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": " << options.factor << "}";
  }
  config << "}\n";
}

}  // namespace carousel::testing
