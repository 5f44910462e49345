// SPDX-License-Identifier: Apache-2.0
#include "openvino/attention_mask.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <openvino/op/convert.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/op/scaled_dot_product_attention.hpp>
#include <openvino/op/util/read_value_base.hpp>
#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/infer_request.hpp>
#include <openvino/runtime/properties.hpp>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "openvino/model_files.h"

namespace carousel {
namespace {

using NodePtr = std::shared_ptr<ov::Node>;
using Attention = ov::op::v13::ScaledDotProductAttention;

[[noreturn]] void Refuse(const std::string& node, const std::string& problem) {
  throw Error(ErrorCode::kModel, "model",
              fmt::format("the mask of its attention {} {}", node, problem));
}

// The distinct masks of a model as a model of its own, whose states have become inputs.
struct MaskModel {
  std::shared_ptr<ov::Model> model;
  std::vector<std::string> names;  // of each result's first attention node
  std::vector<bool> is_boolean;    // of each result: true means visible
  std::vector<std::optional<std::size_t>>
      mask;  // of each attention node; nullopt: causal by attribute
};

// Parameters that the outputs depend on.
ov::ParameterVector ParametersBehind(const ov::OutputVector& outputs) {
  ov::ParameterVector found;
  std::unordered_set<ov::Node*> seen;
  std::vector<NodePtr> open;
  for (const auto& output : outputs) open.push_back(output.get_node_shared_ptr());
  while (!open.empty()) {
    const NodePtr node = open.back();
    open.pop_back();
    if (!seen.insert(node.get()).second) continue;
    if (auto parameter = ov::as_type_ptr<ov::op::v0::Parameter>(node)) found.push_back(parameter);
    for (const auto& input : node->input_values()) open.push_back(input.get_node_shared_ptr());
  }
  return found;
}

void TurnStatesIntoInputs(ov::Model& model) {
  for (const NodePtr& node : model.get_ordered_ops()) {
    if (!ov::is_type<ov::op::util::ReadValueBase>(node)) continue;
    const auto state = std::make_shared<ov::op::v0::Parameter>(node->get_output_element_type(0),
                                                               node->get_output_partial_shape(0));
    state->set_friendly_name(node->get_friendly_name());
    node->output(0).replace(state->output(0));
  }
}

MaskModel CutOutMasks(const std::shared_ptr<ov::Model>& original) {
  const std::shared_ptr<ov::Model> model = original->clone();
  TurnStatesIntoInputs(*model);
  MaskModel cut;
  ov::OutputVector outputs;
  std::map<ov::Output<ov::Node>, std::size_t> index_of;
  for (const NodePtr& node : model->get_ordered_ops()) {
    const auto attention = ov::as_type_ptr<Attention>(node);
    if (!attention) continue;
    if (attention->get_causal() || attention->get_input_size() < 4) {
      cut.mask.emplace_back(std::nullopt);
      continue;
    }
    const ov::Output<ov::Node> mask = attention->input_value(3);
    const auto [found, is_new] = index_of.emplace(mask, outputs.size());
    if (is_new) {
      cut.names.push_back(attention->get_friendly_name());
      // One type to read: booleans become 0 and 1.
      outputs.push_back(
          mask.get_element_type() == ov::element::f32
              ? mask
              : std::make_shared<ov::op::v0::Convert>(mask, ov::element::f32)->output(0));
      cut.is_boolean.push_back(mask.get_element_type() == ov::element::boolean);
    }
    cut.mask.emplace_back(found->second);
  }
  if (!outputs.empty()) cut.model = std::make_shared<ov::Model>(outputs, ParametersBehind(outputs));
  return cut;
}

// `tokens` tokens after `past` others.
struct Situation {
  std::int64_t past = 0;
  std::int64_t tokens = 0;
};

// Feeds what a runtime would feed. The states' contents do not matter, only how long they are: all
// of a size share one tensor.
class MaskRunner {
 public:
  MaskRunner(ov::Core& core, const std::shared_ptr<ov::Model>& model)
      : model_(model),
        compiled_(core.compile_model(model, "CPU", ov::num_streams(1),
                                     ov::hint::inference_precision(ov::element::f32))),
        request_(compiled_.create_infer_request()) {}

  // The masks' values, valid until the next call.
  std::vector<ov::Tensor> Run(const Situation& situation) {
    std::map<std::pair<std::string, ov::Shape>, ov::Tensor> states;
    for (std::size_t i = 0; i < compiled_.inputs().size(); ++i) {
      const ov::Output<const ov::Node> input = compiled_.input(i);
      const std::optional<ov::Tensor> named = NamedInput(input, situation);
      if (named) {
        request_.set_tensor(input, *named);
        continue;
      }
      const ov::Shape shape = StateShape(input.get_partial_shape(), situation);
      ov::Tensor& state = states[{input.get_element_type().get_type_name(), shape}];
      if (!state) {
        state = ov::Tensor(input.get_element_type(), shape);
        std::fill_n(static_cast<char*>(state.data()), state.get_byte_size(), char{0});
      }
      request_.set_tensor(input, state);
    }
    request_.infer();
    std::vector<ov::Tensor> masks;
    for (std::size_t i = 0; i < compiled_.outputs().size(); ++i)
      masks.push_back(request_.get_output_tensor(i));
    return masks;
  }

 private:
  static ov::Tensor Filled(ov::element::Type type, const ov::Shape& shape, std::int64_t first,
                           std::int64_t step) {
    ov::Tensor tensor(type, shape);
    for (std::size_t i = 0; i < tensor.get_size(); ++i) {
      const std::int64_t value = first + step * static_cast<std::int64_t>(i);
      if (type == ov::element::i64) tensor.data<std::int64_t>()[i] = value;
      if (type == ov::element::i32)
        tensor.data<std::int32_t>()[i] = static_cast<std::int32_t>(value);
    }
    return tensor;
  }

  static std::optional<ov::Tensor> NamedInput(const ov::Output<const ov::Node>& input,
                                              const Situation& situation) {
    const auto tokens = static_cast<std::size_t>(situation.tokens);
    const auto whole = static_cast<std::size_t>(situation.past + situation.tokens);
    const auto has_name = [&](const char* name) { return input.get_names().count(name) > 0; };
    const ov::element::Type type = input.get_element_type();
    if (has_name("input_ids")) return Filled(type, {1, tokens}, 0, 0);
    if (has_name("attention_mask")) return Filled(type, {1, whole}, 1, 0);
    if (has_name("position_ids")) return Filled(type, {1, tokens}, situation.past, 1);
    if (has_name("beam_idx")) return Filled(type, {1}, 0, 0);
    return std::nullopt;
  }

  // [batch, heads, past, dim] with the first unknown size the batch and the next the past.
  static ov::Shape StateShape(const ov::PartialShape& partial, const Situation& situation) {
    ov::Shape shape;
    bool has_batch = false;
    for (const ov::Dimension& size : partial) {
      if (size.is_static()) {
        shape.push_back(static_cast<std::size_t>(size.get_length()));
      } else {
        shape.push_back(has_batch ? static_cast<std::size_t>(situation.past) : 1);
        has_batch = true;
      }
    }
    return shape;
  }

  std::shared_ptr<ov::Model> model_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
};

// Exports write -inf, the lowest float or the lowest half into hidden places; no bias comes near.
constexpr float kHidden = -6e4F;

// A mask of one situation: [heads or 1, tokens or 1, past + tokens], whatever ones its shape has in
// front.
class MaskView {
 public:
  MaskView(const ov::Tensor& tensor, bool is_boolean, const Situation& situation)
      : values_(tensor.data<const float>()), is_boolean_(is_boolean), situation_(situation) {
    ov::Shape shape = tensor.get_shape();
    while (shape.size() < 4) shape.insert(shape.begin(), 1);
    heads_ = static_cast<std::int64_t>(shape[1]);
    rows_ = static_cast<std::int64_t>(shape[2]);
    keys_ = static_cast<std::int64_t>(shape[3]);
    fits_ = shape.size() == 4 && shape[0] == 1 && (rows_ == 1 || rows_ == situation.tokens) &&
            keys_ == situation.past + situation.tokens;
  }

  bool fits() const { return fits_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t rows() const { return situation_.tokens; }
  std::int64_t keys() const { return keys_; }
  // The row's own place among the keys.
  std::int64_t Place(std::int64_t row) const { return situation_.past + row; }
  float Bias(std::int64_t head, std::int64_t row, std::int64_t key) const {
    return is_boolean_ ? 0.0F : Value(head, row, key);
  }
  bool IsVisible(std::int64_t head, std::int64_t row, std::int64_t key) const {
    const float value = Value(head, row, key);
    return is_boolean_ ? value != 0.0F : value > kHidden;
  }

 private:
  float Value(std::int64_t head, std::int64_t row, std::int64_t key) const {
    return values_[(head * rows_ + (rows_ == 1 ? 0 : row)) * keys_ + key];
  }

  const float* values_;
  bool is_boolean_;
  Situation situation_;
  std::int64_t heads_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t keys_ = 0;
  bool fits_ = false;
};

// Reads one mask's facts off its values in several situations.
class FactsReader {
 public:
  explicit FactsReader(std::string name) : name_(std::move(name)) {}

  // Situations with later positions first: slopes are taken from the longest distance.
  void Add(const MaskView& mask) {
    if (!mask.fits()) Refuse(name_, "does not run over the tokens and the keys before them");
    for (std::int64_t head = 0; head < mask.heads(); ++head) {
      for (std::int64_t row = 0; row < mask.rows(); ++row) {
        const std::int64_t first = FirstVisible(mask, head, row);
        AddWindow(mask.Place(row), first);
        AddSlope(mask, head, row, first);
      }
    }
  }

  MaskFacts Finish() const {
    // A row that saw everything from farther away than the window.
    if (window_ > 0 && longest_whole_row_ > window_) RefuseWindow(window_, longest_whole_row_);
    const bool has_bias =
        std::any_of(slopes_.begin(), slopes_.end(), [](double slope) { return slope != 0.0; });
    MaskFacts facts;
    facts.sliding_window = window_;
    facts.measured_tokens = longest_whole_row_;
    if (has_bias) facts.alibi_slopes.assign(slopes_.begin(), slopes_.end());
    return facts;
  }

 private:
  [[noreturn]] void RefuseWindow(std::int64_t one, std::int64_t other) const {
    Refuse(name_,
           fmt::format("lets one token see {} tokens and another {}, which no sliding window does "
                       "(chunked attention is not supported)",
                       one, other));
  }

  std::int64_t FirstVisible(const MaskView& mask, std::int64_t head, std::int64_t row) const {
    const std::int64_t place = mask.Place(row);
    std::int64_t first = place;
    while (first > 0 && mask.IsVisible(head, row, first - 1)) --first;
    for (std::int64_t key = 0; key < mask.keys(); ++key) {
      const bool is_expected = key >= first && key <= place;
      if (mask.IsVisible(head, row, key) == is_expected) continue;
      Refuse(
          name_,
          fmt::format("{} token {} from token {}: only causal attention, with or without a sliding "
                      "window, is supported",
                      is_expected ? "hides" : "does not hide", key, place));
    }
    return first;
  }

  void AddWindow(std::int64_t place, std::int64_t first) {
    const std::int64_t seen = place - first + 1;
    if (first == 0) {
      longest_whole_row_ = std::max(longest_whole_row_, seen);
      return;
    }
    if (window_ > 0 && window_ != seen) RefuseWindow(window_, seen);
    window_ = seen;
  }

  void AddSlope(const MaskView& mask, std::int64_t head, std::int64_t row, std::int64_t first) {
    const std::int64_t place = mask.Place(row);
    if (place == first) return;
    const double here = mask.Bias(head, row, place);
    if (head == std::ssize(slopes_)) {
      slopes_.push_back((here - mask.Bias(head, row, first)) / static_cast<double>(place - first));
    }
    CAROUSEL_CHECK_LT(head, std::ssize(slopes_));
    const double slope = slopes_[static_cast<std::size_t>(head)];
    for (std::int64_t key = first; key < place; ++key) {
      const double fall = slope * static_cast<double>(place - key);
      const double deviation = std::abs(here - mask.Bias(head, row, key) - fall);
      // Graphs may compute the bias in halves.
      if (deviation <= 1e-2 * std::abs(fall) + 1e-3) continue;
      Refuse(name_, fmt::format(
                        "adds a bias that is not in proportion to distance ({} at {} tokens); only "
                        "ALiBi is supported",
                        mask.Bias(head, row, key), place - key));
    }
  }

  std::string name_;
  std::int64_t window_ = 0;
  std::int64_t longest_whole_row_ = 0;
  std::vector<double> slopes_;  // [heads]
};

std::vector<MaskFacts> ReadAll(ov::Core& core, const MaskModel& cut, std::int64_t longest) {
  MaskRunner runner(core, cut.model);
  std::vector<FactsReader> readers(cut.names.begin(), cut.names.end());
  // A few tokens far on, where a window shows and chunks of attention would not be equally long;
  // then a prompt's beginning, where looking ahead shows.
  for (const Situation& situation : {Situation{longest, 3}, Situation{0, 24}}) {
    const std::vector<ov::Tensor> masks = runner.Run(situation);
    for (std::size_t i = 0; i < masks.size(); ++i) {
      readers[i].Add(MaskView(masks[i], cut.is_boolean[i], situation));
    }
  }
  std::vector<MaskFacts> facts;
  for (const FactsReader& reader : readers) facts.push_back(reader.Finish());
  return facts;
}

}  // namespace

std::vector<MaskFacts> MeasureMasks(ov::Core& core, const std::shared_ptr<ov::Model>& model,
                                    std::int64_t longest) {
  // Beyond, the states' memory would be felt; a longer window is as good as none for a cache of
  // fixed size.
  constexpr std::int64_t kUsual = 8192;
  constexpr std::int64_t kLongest = 32768;
  const MaskModel cut = CutOutMasks(model);
  std::vector<MaskFacts> distinct;
  if (cut.model) {
    try {
      distinct = ReadAll(core, cut, longest > 0 ? std::min(longest, kLongest) : kUsual);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& failure) {
      Refuse(cut.names.front(),
             fmt::format("cannot be computed on its own: {}", BriefReason(failure)));
    }
  }
  std::vector<MaskFacts> facts;
  for (const auto& index : cut.mask) facts.push_back(index ? distinct[*index] : MaskFacts{});
  return facts;
}

}  // namespace carousel
