// SPDX-License-Identifier: Apache-2.0
#include "openvino/openvino_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/infer_request.hpp>
#include <openvino/runtime/properties.hpp>
#include <thread>
#include <utility>

#include "base/check.h"
#include "carousel/error.h"
#include "openvino/attention_op.h"
#include "openvino/context_length.h"
#include "openvino/graph_rewrite.h"
#include "openvino/model_files.h"
#include "openvino/one_token_branch.h"
#include "openvino/rope_file.h"
#include "openvino/row_buckets.h"

namespace carousel {
namespace {

// Makes the slot's callback the running one for as long as this lives.
class CallbackScope {
 public:
  CallbackScope(AttentionSlot& slot, AttentionCallback& callback, std::size_t tokens)
      : slot_(slot) {
    slot_.callback = &callback;
    slot_.tokens = static_cast<std::int64_t>(tokens);
    slot_.failure = nullptr;
  }
  ~CallbackScope() { slot_.callback = nullptr; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

 private:
  AttentionSlot& slot_;
};

// An input that grows with the step and keeps its memory when the step shrinks. It is padded with
// its last value to one of the row counts of row_buckets.h, of at least `least`.
class GrowingInput {
 public:
  GrowingInput(ov::InferRequest& request, const char* name)
      : request_(&request), name_(name), tensor_(ov::element::i64, ov::Shape{kInitialCapacity}) {}

  template <typename T>
  void Set(std::span<const T> values, std::size_t least) {
    const std::size_t rows = PaddedRows(values.size(), least);
    tensor_.set_shape({rows});
    std::int64_t* data = tensor_.data<std::int64_t>();
    std::copy(values.begin(), values.end(), data);
    if (!values.empty()) std::fill(data + values.size(), data + rows, std::int64_t{values.back()});
    request_->set_tensor(name_, tensor_);
  }

 private:
  static constexpr std::size_t kInitialCapacity = 256;
  ov::InferRequest* request_;
  const char* name_;
  ov::Tensor tensor_;  // [values]
};

class OpenVinoModel final : public Model {
 public:
  OpenVinoModel(ModelSpec spec, ov::CompiledModel compiled, const RewrittenGraph& graph,
                std::shared_ptr<AttentionSlot> slot, RopeFile rope_file)
      : spec_(std::move(spec)),
        rope_file_(std::move(rope_file)),
        slot_(std::move(slot)),
        reads_positions_(graph.reads_positions),
        reads_context_length_(graph.reads_context_length),
        compiled_(std::move(compiled)),
        request_(compiled_.create_infer_request()),
        token_ids_(request_, kTokenIdsInput),
        position_ids_(request_, kPositionIdsInput),
        logit_rows_(request_, kLogitRowsInput),
        context_length_(ov::element::i32, ov::Shape{}),
        is_one_token_(ov::element::boolean, ov::Shape{1}) {
    request_.set_tensor(kOneTokenInput, is_one_token_);
  }

  const ModelSpec& spec() const override { return spec_; }
  void KeepRope(std::string_view found) noexcept override { rope_file_.Keep(found); }

  std::span<const float> Forward(const ForwardInput& input, AttentionCallback& attention) override {
    Check(input);
    const CallbackScope scope(*slot_, attention, input.token_ids.size());
    try {
      SetInputs(input);
      request_.infer();
    } catch (const std::exception& failure) {
      if (!slot_->failure) {
        throw Error(ErrorCode::kModel, "model",
                    fmt::format("a step of {} tokens failed in OpenVINO: {}",
                                input.token_ids.size(), BriefReason(failure)));
      }
    }
    if (slot_->failure) std::rethrow_exception(std::exchange(slot_->failure, nullptr));
    const ov::Tensor logits = request_.get_output_tensor(0);  // [padded rows, 1, vocabulary]
    const auto vocabulary = static_cast<std::size_t>(spec_.vocabulary_size);
    const std::size_t wanted = input.logit_rows.size();
    const std::size_t given = PaddedRows(wanted, LeastRows(input));
    if (logits.get_size() != given * vocabulary) {
      throw Error(ErrorCode::kModel, "model",
                  fmt::format("a step gave {} logits and not {}; its graph is damaged",
                              logits.get_size(), given * vocabulary));
    }
    if (wanted == 0) return {};
    return {logits.data<const float>(), wanted * vocabulary};
  }

 private:
  static std::size_t LeastRows(const ForwardInput& input) {
    return static_cast<std::size_t>(input.least_rows);
  }

  void Check(const ForwardInput& input) const {
    const auto tokens = static_cast<std::int64_t>(input.token_ids.size());
    CAROUSEL_CHECK_GT(tokens, 0);
    CAROUSEL_CHECK_GE(input.least_rows, 0);
    CAROUSEL_CHECK_EQ(input.position_ids.size(), input.token_ids.size());
    if (spec_.one_sequence_per_step) CAROUSEL_CHECK_LE(std::ssize(input.sequences), 1);
    for (const TokenId token : input.token_ids) {
      CAROUSEL_CHECK_GE(token, 0);
      CAROUSEL_CHECK_LT(token, spec_.vocabulary_size);
    }
    for (const std::int64_t row : input.logit_rows) {
      CAROUSEL_CHECK_GE(row, 0);
      CAROUSEL_CHECK_LT(row, tokens);
    }
  }

  void SetInputs(const ForwardInput& input) {
    const std::size_t least = LeastRows(input);
    *is_one_token_.data<bool>() = PaddedRows(input.token_ids.size(), least) == 1 &&
                                  PaddedRows(input.logit_rows.size(), least) == 1;
    token_ids_.Set(input.token_ids, least);
    logit_rows_.Set(input.logit_rows, least);
    if (reads_positions_) position_ids_.Set(input.position_ids, least);
    if (reads_context_length_) {
      *context_length_.data<std::int32_t>() = ContextLength(input.position_ids);
      request_.set_tensor(kContextLengthInput, context_length_);
    }
  }

  ModelSpec spec_;
  RopeFile rope_file_;
  std::shared_ptr<AttentionSlot> slot_;
  bool reads_positions_;
  bool reads_context_length_;
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  GrowingInput token_ids_;
  GrowingInput position_ids_;
  GrowingInput logit_rows_;
  ov::Tensor context_length_;  // []
  ov::Tensor is_one_token_;    // [1]
};

std::string_view Name(ModelPrecision precision) {
  switch (precision) {
    case ModelPrecision::kF32:
      return "f32";
    case ModelPrecision::kBf16:
      return "bf16";
    case ModelPrecision::kInt8Activations:
      return "int8";
  }
  return "";
}

// How many threads the runtime is asked for; 0: as many as there are processors. In bf16 at least
// two: on CPUs with AMX its fused feed-forward operation gives weights that are not quantised to
// pairs of threads, and with one thread it divides by none (2026.4.1).
std::int64_t RuntimeThreads(const OpenVinoModelOptions& options) {
  if (options.precision != ModelPrecision::kBf16) return options.threads;
  constexpr std::int64_t kPair = 2;
  if (options.threads == 0) return std::thread::hardware_concurrency() == 1 ? kPair : 0;
  return std::max(options.threads, kPair);
}

ov::AnyMap CompileProperties(const OpenVinoModelOptions& options) {
  // Both are said explicitly: on CPUs that can, the defaults are bf16 and groups of 32.
  const bool is_bf16 = options.precision == ModelPrecision::kBf16;
  const std::uint64_t group = options.precision == ModelPrecision::kInt8Activations ? 32 : 0;
  ov::AnyMap properties = {
      ov::hint::inference_precision(is_bf16 ? ov::element::bf16 : ov::element::f32),
      ov::hint::dynamic_quantization_group_size(group),
      ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
      ov::num_streams(1),
      // One process among others: threads pinned to cores that someone else uses wait for each
      // other.
      ov::hint::enable_cpu_pinning(false),
  };
  if (const std::int64_t threads = RuntimeThreads(options); threads > 0)
    properties.insert(ov::inference_num_threads(static_cast<std::int32_t>(threads)));
  return properties;
}

ov::CompiledModel Compile(ov::Core& core, const RewrittenGraph& graph,
                          const OpenVinoModelOptions& options) {
  try {
    return core.compile_model(graph.model, "CPU", CompileProperties(options));
  } catch (const std::exception& failure) {
    throw Error(ErrorCode::kModel, "model",
                fmt::format("{} cannot be compiled for the CPU: {}", options.directory.string(),
                            BriefReason(failure)));
  }
}

ModelSpec MakeSpec(const OpenVinoModelOptions& options, const DeclaredConfig& declared,
                   RewrittenGraph& graph) {
  ModelSpec spec;
  const std::filesystem::path absolute =
      std::filesystem::absolute(options.directory).lexically_normal();
  spec.name = (absolute.has_filename() ? absolute : absolute.parent_path()).filename().string();
  spec.architecture = declared.architecture;
  spec.vocabulary_size = graph.vocabulary_size;
  spec.trained_window = declared.trained_window;
  spec.declared_rope_theta = declared.rope_theta;
  spec.declared_attention_factor = declared.attention_factor;
  spec.declared_rope = declared.rope;
  spec.end_tokens = declared.end_tokens;
  spec.one_sequence_per_step = graph.reads_context_length;
  spec.layers = std::move(graph.layers);
  for (const TokenId token : spec.end_tokens) {
    if (token < spec.vocabulary_size) continue;
    throw Error(ErrorCode::kModel, "model",
                fmt::format("eos_token_id {} in {} is outside the model's vocabulary of {}; the "
                            "files do not belong "
                            "together",
                            token, options.directory.string(), spec.vocabulary_size));
  }
  return spec;
}

}  // namespace

std::unique_ptr<Model> LoadOpenVinoModel(const OpenVinoModelOptions& options) {
  if (options.threads < 0) {
    throw Error(ErrorCode::kInvalidArgument, "threads",
                fmt::format("{} is negative; 0 means all cores", options.threads));
  }
  const DeclaredConfig declared = ReadDeclaredConfig(options.directory);
  ov::Core core;
  auto slot = std::make_shared<AttentionSlot>();
  RewrittenGraph graph;
  try {
    graph = RewriteAttention(core, ReadIr(core, options.directory, "openvino_model", "model"),
                             {.trained_window = declared.trained_window, .slot = slot});
  } catch (const Error& error) {
    if (error.problem().find(options.directory.string()) != std::string::npos) throw;
    throw Error(error.code(), error.field(),
                fmt::format("{}: {}", options.directory.string(), error.problem()));
  } catch (const std::exception& failure) {
    throw Error(ErrorCode::kModel, "model",
                fmt::format("{}: its graph cannot be rewritten: {}", options.directory.string(),
                            BriefReason(failure)));
  }
  ModelSpec spec = MakeSpec(options, declared, graph);
  RopeFile rope_file(options.directory, Name(options.precision));
  spec.known_rope = rope_file.Read();
  return std::make_unique<OpenVinoModel>(std::move(spec), Compile(core, graph, options), graph,
                                         std::move(slot), std::move(rope_file));
}

}  // namespace carousel
