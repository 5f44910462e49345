// SPDX-License-Identifier: Apache-2.0
#include "openvino/graph_rewrite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <openvino/op/constant.hpp>
#include <openvino/op/gather.hpp>
#include <openvino/op/matmul.hpp>
#include <openvino/op/parameter.hpp>
#include <openvino/op/result.hpp>
#include <openvino/op/util/read_value_base.hpp>
#include <openvino/pass/sdpa_to_paged_attention.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "carousel/error.h"
#include "openvino/attention_node.h"
#include "openvino/constants.h"
#include "openvino/fuse_projections.h"
#include "openvino/model_files.h"
#include "openvino/one_token_branch.h"

namespace carousel {
namespace {

using NodePtr = std::shared_ptr<ov::Node>;
using Parameter = ov::op::v0::Parameter;
using Result = ov::op::v0::Result;

[[noreturn]] void Refuse(const std::string& problem) {
  throw Error(ErrorCode::kModel, "model", problem);
}

bool HasName(const Parameter& parameter, const std::string& name) {
  return parameter.get_friendly_name() == name ||
         parameter.get_output_tensor(0).get_names().count(name) > 0;
}

void RefuseForeignInputs(const ov::Model& model) {
  static const std::set<std::string> known = {"input_ids", "attention_mask", "position_ids",
                                              "beam_idx"};
  std::set<std::string> missing = {"input_ids"};
  std::vector<std::string> foreign;
  for (const auto& parameter : model.get_parameters()) {
    const auto found = std::find_if(known.begin(), known.end(), [&](const std::string& name) {
      return HasName(*parameter, name);
    });
    if (found == known.end()) {
      foreign.push_back(parameter->get_friendly_name());
    } else {
      missing.erase(*found);
    }
  }
  if (!foreign.empty() && foreign[0].rfind("past_key_values", 0) == 0) {
    Refuse(
        "its keys and values are inputs (past_key_values) and not state; export it as a stateful "
        "model (optimum-cli export openvino --task text-generation-with-past)");
  }
  if (!foreign.empty()) {
    Refuse(
        fmt::format("it needs inputs that a stream of text cannot give: {}; only decoders of "
                    "tokens are supported",
                    fmt::join(foreign, ", ")));
  }
  if (!missing.empty()) Refuse("it has no input input_ids; only decoders of tokens are supported");
}

void RunPass(const std::shared_ptr<ov::Model>& model, const OriginalAttention& first) {
  if (model->get_variables().empty()) {
    Refuse(
        fmt::format("its attention ({}) keeps no keys and values as state; export it as a stateful "
                    "model (optimum-cli export openvino --task text-generation-with-past)",
                    first.name));
  }
  try {
    // Block tables of their own number the layers' nodes; all other options stay off.
    ov::pass::SDPAToPagedAttention(/*use_per_layer_block_indices_inputs=*/true).run_on_model(model);
  } catch (const std::exception& failure) {
    Refuse(
        fmt::format("OpenVINO's SDPAToPagedAttention cannot rewrite its attention ({} and on): {}",
                    first.name, BriefReason(failure)));
  }
}

std::vector<AttentionLayerSpec> ReplaceAttention(const ov::Model& model,
                                                 const std::vector<OriginalAttention>& originals,
                                                 const std::shared_ptr<AttentionSlot>& slot) {
  const std::vector<NodePtr> paged = FindPagedAttention(model, originals);
  std::vector<AttentionLayerSpec> layers;
  for (std::size_t layer = 0; layer < paged.size(); ++layer) {
    const NodePtr& node = paged[layer];
    layers.push_back(ReadLayerSpec(node, originals[layer]));
    const auto ours = std::make_shared<AttentionOp>(
        node->input_value(kQueryInput), node->input_value(kKeyInput),
        node->input_value(kValueInput),
        AttentionOp::Attributes{
            .layer = static_cast<std::int64_t>(layer),
            .output_width = layers.back().query_heads * layers.back().value_dim,
            .slot = slot,
        });
    ours->set_friendly_name(originals[layer].name + "/carousel");
    node->output(0).replace(ours->output(0));
  }
  return layers;
}

void RefuseStateLeft(const std::shared_ptr<ov::Model>& model) {
  for (const auto& node : model->get_ordered_ops()) {
    const auto state = ov::as_type_ptr<ov::op::util::ReadValueBase>(node);
    if (!state) continue;
    Refuse(
        fmt::format("{} keeps a state, {}, that is not attention's keys and values (a recurrent "
                    "or convolutional layer); that is not supported",
                    state->get_friendly_name(), state->get_variable_id()));
  }
  // Those of the caches, which nothing reads any more. A copy: the list changes under the loop.
  const ov::op::util::VariableVector variables = model->get_variables();
  for (const auto& variable : variables) model->remove_variable(variable);
}

void KeepInputsThatAreRead(RewrittenGraph& graph) {
  // A copy: the list changes under the loop.
  const ov::ParameterVector parameters = graph.model->get_parameters();
  for (const auto& parameter : parameters) {
    const auto readers = parameter->output(0).get_target_inputs();
    if (readers.empty()) {
      graph.model->remove_parameter(parameter);
    } else if (HasName(*parameter, kPositionIdsInput)) {
      graph.reads_positions = true;
    } else if (HasName(*parameter, kContextLengthInput)) {
      graph.reads_context_length = true;
    } else if (!HasName(*parameter, kTokenIdsInput)) {
      Refuse(fmt::format(
          "its {} still reads {} when its attention is taken out; that is not supported",
          readers.begin()->get_node()->get_friendly_name(), parameter->get_friendly_name()));
    }
  }
}

std::shared_ptr<Result> KeepLogitsOnly(ov::Model& model) {
  const ov::ResultVector results = model.get_results();
  std::shared_ptr<Result> logits;
  for (const auto& result : results) {
    const auto& names = result->get_output_tensor(0).get_names();
    if (results.size() == 1 || names.count(kLogitsOutput) > 0) logits = result;
  }
  if (!logits) Refuse("it has no output named logits");
  for (const auto& result : results) {
    if (result != logits) model.remove_result(result);
  }
  return logits;
}

// The vocabulary projection behind the logits: through what computes each logit from one logit (a
// soft cap, a scale, a cast). Null when something else is there.
NodePtr FindProjection(const NodePtr& result) {
  static const std::set<std::string> elementwise = {"Convert", "Multiply", "Divide", "Tanh",
                                                    "Add",     "Subtract", "Clamp"};
  NodePtr node = result->get_input_node_shared_ptr(0);
  while (!ov::is_type<ov::op::v0::MatMul>(node)) {
    if (elementwise.count(node->get_type_name()) == 0) return nullptr;
    for (std::size_t input = 1; input < node->get_input_size(); ++input) {
      if (!DependsOnConstantsOnly(node->input_value(input))) return nullptr;
    }
    node = node->get_input_node_shared_ptr(0);
  }
  return node;
}

// Which axis runs over tokens: the first that is not of a fixed size.
std::optional<std::int64_t> TokenAxis(const ov::PartialShape& shape) {
  if (shape.rank().is_dynamic()) return std::nullopt;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (shape[axis].is_dynamic()) return static_cast<std::int64_t>(axis);
  }
  return std::nullopt;
}

// The vocabulary projection is a fifth of a small model's weights: only wanted rows go through it.
void GatherLogitRows(ov::Model& model, const std::shared_ptr<Result>& logits) {
  const NodePtr projection = FindProjection(logits);
  const NodePtr consumer = projection ? projection : logits;
  const ov::Output<ov::Node> all_rows = consumer->input_value(0);
  const std::optional<std::int64_t> axis = TokenAxis(all_rows.get_partial_shape());
  if (!axis) {
    Refuse(fmt::format("the rows of its logits cannot be told apart: {} has the shape {}",
                       all_rows.get_node()->get_friendly_name(),
                       all_rows.get_partial_shape().to_string()));
  }
  auto rows = std::make_shared<Parameter>(ov::element::i64, ov::PartialShape{-1});
  rows->set_friendly_name(kLogitRowsInput);
  rows->get_output_tensor(0).set_names({kLogitRowsInput});
  const auto axis_constant = ov::op::v0::Constant::create(ov::element::i64, ov::Shape{}, {*axis});
  const auto gather = std::make_shared<ov::op::v8::Gather>(all_rows, rows, axis_constant);
  gather->set_friendly_name("carousel/wanted_rows");
  consumer->input(0).replace_source_output(gather->output(0));
  model.add_parameters({rows});
  logits->get_output_tensor(0).set_names({kLogitsOutput});
}

std::int64_t VocabularySize(const Result& logits) {
  const ov::PartialShape& shape = logits.get_input_partial_shape(0);
  const bool is_known =
      shape.rank().is_static() && shape.size() > 0 && shape[shape.size() - 1].is_static();
  if (!is_known)
    Refuse(fmt::format("its logits have the shape {}; the last size must be fixed",
                       shape.to_string()));
  return shape[shape.size() - 1].get_length();
}

}  // namespace

RewrittenGraph RewriteAttention(ov::Core& core, std::shared_ptr<ov::Model> model,
                                const RewriteOptions& options) {
  RefuseForeignInputs(*model);
  const std::vector<OriginalAttention> originals =
      FindOriginalAttention(core, model, options.trained_window);
  RunPass(model, originals.front());
  RewrittenGraph graph;
  graph.model = std::move(model);
  graph.layers = ReplaceAttention(*graph.model, originals, options.slot);
  RefuseStateLeft(graph.model);
  const auto logits = KeepLogitsOnly(*graph.model);
  KeepInputsThatAreRead(graph);
  GatherLogitRows(*graph.model, logits);
  FuseProjections(*graph.model);
  graph.model->validate_nodes_and_infer_types();
  graph.vocabulary_size = VocabularySize(*logits);
  graph.model = WithOneTokenBranch(graph.model);
  return graph;
}

}  // namespace carousel
