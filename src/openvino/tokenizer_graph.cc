// SPDX-License-Identifier: Apache-2.0
#include "openvino/tokenizer_graph.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <openvino/core/version.hpp>
#include <openvino/op/constant.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "carousel/error.h"
#include "openvino/model_files.h"

#ifndef CAROUSEL_TOKENIZERS_LIBRARY_DEFAULT
#define CAROUSEL_TOKENIZERS_LIBRARY_DEFAULT ""
#endif

namespace carousel {
namespace {

namespace fs = std::filesystem;
using NodePtr = std::shared_ptr<ov::Node>;

constexpr const char* kLibraryVariable = "CAROUSEL_TOKENIZERS_LIBRARY";
constexpr const char* kLibraryName = "libopenvino_tokenizers.so";
constexpr std::int32_t kNoLimit = std::numeric_limits<std::int32_t>::max();

// site-packages/openvino/libs/libopenvino.so -> site-packages/openvino_tokenizers/lib/...
fs::path LibraryInTheWheel() {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&ov::get_openvino_version), &info) == 0 ||
      info.dli_fname == nullptr) {
    return {};
  }
  std::error_code error;
  const fs::path runtime = fs::weakly_canonical(info.dli_fname, error);
  return runtime.parent_path().parent_path().parent_path() / "openvino_tokenizers" / "lib" /
         kLibraryName;
}

bool IsType(const NodePtr& node, std::string_view type) { return node->get_type_name() == type; }

// The value of a constant that is one integer.
std::optional<std::int64_t> IntegerConstant(const ov::Output<ov::Node>& output) {
  const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(output.get_node_shared_ptr());
  if (!constant || !constant->get_element_type().is_integral_number() ||
      ov::shape_size(constant->get_shape()) != 1) {
    return std::nullopt;
  }
  return constant->cast_vector<std::int64_t>()[0];
}

// A constant's values, or those of the constant that a Slice takes a part of; empty: it is neither.
std::vector<std::int32_t> IntegersOf(const ov::Output<ov::Node>& output) {
  const NodePtr node = output.get_node_shared_ptr();
  if (IsType(node, "Slice")) return IntegersOf(node->input_value(0));
  const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(node);
  if (!constant || !constant->get_element_type().is_integral_number()) return {};
  return constant->cast_vector<std::int32_t>();
}

// The tokens that a VocabDecoder leaves out, with their texts. Its inputs are tokens, then where
// each token's bytes begin and end, all bytes, and the tokens that are left out.
std::vector<ControlToken> ControlTokensOf(const ov::Node& decoder) {
  if (decoder.get_input_size() < 5) return {};
  const std::vector<std::int32_t> begins = IntegersOf(decoder.input_value(1));
  const std::vector<std::int32_t> ends = IntegersOf(decoder.input_value(2));
  const auto bytes = ov::as_type_ptr<ov::op::v0::Constant>(decoder.get_input_node_shared_ptr(3));
  if (!bytes || begins.size() != ends.size()) return {};
  const std::string_view text(static_cast<const char*>(bytes->get_data_ptr()),
                              bytes->get_byte_size());
  std::vector<ControlToken> found;
  for (const std::int32_t token : IntegersOf(decoder.input_value(4))) {
    if (token < 0 || static_cast<std::size_t>(token) >= begins.size()) continue;
    const auto begin = static_cast<std::size_t>(begins[static_cast<std::size_t>(token)]);
    const auto end = static_cast<std::size_t>(ends[static_cast<std::size_t>(token)]);
    if (begin >= end || end > text.size()) continue;
    found.push_back({.token = token, .text = std::string(text.substr(begin, end - begin))});
  }
  return found;
}

void ReplaceByConstant(ov::Input<ov::Node> input, std::int64_t value) {
  const auto constant =
      ov::op::v0::Constant::create(input.get_element_type(), input.get_shape(), {value});
  input.replace_source_output(constant->output(0));
}

// The limit may be chosen by a flag in the graph: the smallest constant that it is made of.
std::int64_t SmallestConstantOf(const ov::Output<ov::Node>& output) {
  std::int64_t smallest = kNoLimit;
  if (const auto value = IntegerConstant(output)) return std::min(smallest, *value);
  for (const auto& input : output.get_node()->input_values()) {
    if (const auto value = IntegerConstant(input)) smallest = std::min(smallest, *value);
  }
  return smallest;
}

}  // namespace

void AddTokenizerOperations(ov::Core& core) {
  std::vector<std::string> candidates;
  const char* chosen = std::getenv(kLibraryVariable);
  if (chosen != nullptr && *chosen != '\0') {
    candidates.emplace_back(chosen);
  } else {
    candidates.push_back(LibraryInTheWheel().string());
    candidates.emplace_back(CAROUSEL_TOKENIZERS_LIBRARY_DEFAULT);
  }
  for (const std::string& candidate : candidates) {
    std::error_code error;
    if (candidate.empty() || !fs::is_regular_file(candidate, error)) continue;
    try {
      core.add_extension(candidate);
      return;
    } catch (const std::exception& failure) {
      throw Error(
          ErrorCode::kModel, "tokenizer",
          fmt::format("{} cannot be loaded: {}; it must be of the same release as OpenVINO ({})",
                      candidate, BriefReason(failure), ov::get_openvino_version().buildNumber));
    }
  }
  throw Error(
      ErrorCode::kModel, "tokenizer",
      fmt::format(
          "{} was not found at {}; pip install openvino-tokenizers beside openvino, or set {}",
          kLibraryName, fmt::join(candidates, " or "), kLibraryVariable));
}

std::int64_t LiftTruncation(ov::Model& tokenizer) {
  std::int64_t limit = kNoLimit;
  for (const NodePtr& node : tokenizer.get_ordered_ops()) {
    if (IsType(node, "Truncate")) {
      // Ragged inputs, then the limit, the side and the mode.
      const std::size_t input = node->get_input_size() - 3;
      limit = std::min(limit, SmallestConstantOf(node->input_value(input)));
      ReplaceByConstant(node->input(input), kNoLimit);
    } else if (IsType(node, "Minimum")) {
      for (std::size_t input = 0; input < 2; ++input) {
        const auto value = IntegerConstant(node->input_value(input));
        if (!value || *value < 1) continue;
        limit = std::min(limit, *value);
        ReplaceByConstant(node->input(input), kNoLimit);
      }
    }
  }
  return limit == kNoLimit ? 0 : limit;
}

DetokenizerFacts AdaptDetokenizer(ov::Model& detokenizer) {
  DetokenizerFacts facts;
  for (const NodePtr& node : detokenizer.get_ordered_ops()) {
    if (IsType(node, "VocabDecoder")) {
      const ov::PartialShape& begins = node->get_input_partial_shape(1);
      if (begins.is_static())
        facts.vocabulary_size = static_cast<std::int64_t>(ov::shape_size(begins.to_shape()));
      facts.control_tokens = ControlTokensOf(*node);
      // Exports keep the special tokens' ids behind a Slice whose end switches them on and off.
      const bool has_switch =
          node->get_input_size() > 4 && IsType(node->get_input_node_shared_ptr(4), "Slice");
      if (has_switch) ReplaceByConstant(node->get_input_node_ptr(4)->input(2), kNoLimit);
    } else if (IsType(node, "UTF8Validate")) {
      // It would drop a character's first bytes where the tokens end inside it.
      for (std::size_t output = 0; output < node->get_output_size(); ++output) {
        node->output(output).replace(node->input_value(output));
      }
    }
  }
  detokenizer.validate_nodes_and_infer_types();
  return facts;
}

}  // namespace carousel
