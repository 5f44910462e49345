// SPDX-License-Identifier: Apache-2.0
#include "openvino/openvino_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>
#include <openvino/runtime/infer_request.hpp>
#include <openvino/runtime/properties.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/utf8.h"
#include "carousel/error.h"
#include "openvino/model_files.h"
#include "openvino/tokenizer_graph.h"

namespace carousel {
namespace {

using Tokens = std::vector<TokenId>;

[[noreturn]] void Refuse(const std::string& problem) {
  throw Error(ErrorCode::kModel, "tokenizer", problem);
}

void CheckText(std::string_view text) {
  for (std::size_t begin = 0; begin < text.size();) {
    const Utf8Unit unit = FirstUtf8Unit(text.substr(begin));
    if (unit.kind != Utf8Unit::Kind::kCharacter) {
      throw Error(
          ErrorCode::kInvalidArgument, "text",
          fmt::format("invalid UTF-8 at byte {} (0x{:02x}); convert the text to UTF-8 first", begin,
                      static_cast<unsigned char>(text[begin])));
    }
    if (unit.code_point == 0) {
      throw Error(ErrorCode::kInvalidArgument, "text",
                  fmt::format("NUL at byte {}; text cannot hold it", begin));
    }
    begin += unit.bytes;
  }
}

// A graph with one request, which calls share.
class Runner {
 public:
  Runner(ov::Core& core, const std::shared_ptr<ov::Model>& graph)
      // One thread: a text is one item of a batch, which is what the operations spread over
      // threads.
      : compiled_(
            core.compile_model(graph, "CPU", ov::num_streams(1), ov::inference_num_threads(1))),
        request_(compiled_.create_infer_request()) {}

  // Runs the graph, then `read` on the request, while no one else does.
  template <typename Read>
  auto Run(const ov::Tensor& input, const Read& read) {
    const std::lock_guard<std::mutex> lock(mutex_);
    request_.set_input_tensor(0, input);
    request_.infer();
    return read(request_);
  }

 private:
  ov::CompiledModel compiled_;
  ov::InferRequest request_;
  std::mutex mutex_;
};

class OpenVinoTokenizer final : public Tokenizer {
 public:
  OpenVinoTokenizer(ov::Core core, const std::filesystem::path& directory,
                    std::int64_t vocabulary_size)
      : directory_(directory.string()), vocabulary_size_(vocabulary_size), core_(std::move(core)) {
    AddTokenizerOperations(core_);
    std::int64_t limit = 0;
    {
      const auto graph = ReadIr(core_, directory, "openvino_tokenizer", "tokenizer");
      if (graph->inputs().size() != 1)
        Refuse(fmt::format("{}: the tokenizer takes {} texts and not one", directory_,
                           graph->inputs().size()));
      ReadSpecialTokens(*graph);
      limit = LiftTruncation(*graph);
      tokenizer_.emplace(core_, graph);
    }
    const auto graph = ReadIr(core_, directory, "openvino_detokenizer", "tokenizer");
    DetokenizerFacts facts = AdaptDetokenizer(*graph);
    decodable_tokens_ = facts.vocabulary_size;
    control_tokens_ = std::move(facts.control_tokens);
    if (decodable_tokens_ > vocabulary_size_) RefuseVocabulary(decodable_tokens_);
    detokenizer_.emplace(core_, graph);
    FindAddedTokens();
    FindOutWhatStandsInFront();
    FindOutWhetherPiecesFit();
    CheckLongText(limit);
  }

  Tokens Encode(std::string_view text, const EncodeOptions& options) const override {
    CheckText(text);
    if (options.continues_text && !front_.empty()) {
      if (std::optional<Tokens> tokens = EncodeBehindFront(text)) return *std::move(tokens);
    }
    Tokens tokens = EncodeWhole(text);
    if (options.add_special_tokens) return tokens;
    return WithoutAdded(std::move(tokens));
  }

  std::string Decode(std::span<const TokenId> tokens) const override {
    std::vector<std::int64_t> shown;
    for (const TokenId token : tokens) {
      const bool is_known = token >= 0 && token < vocabulary_size_ &&
                            (decodable_tokens_ == 0 || token < decodable_tokens_);
      if (is_known && special_tokens_.count(token) == 0) shown.push_back(token);
    }
    if (shown.empty()) return {};
    const ov::Tensor input(ov::element::i64, ov::Shape{1, shown.size()}, shown.data());
    return detokenizer_->Run(input, [](ov::InferRequest& request) {
      return std::string(request.get_output_tensor(0).data<std::string>()[0]);
    });
  }

  bool CanEncodeInPieces() const override { return can_encode_in_pieces_; }

  const std::vector<ControlToken>& control_tokens() const override { return control_tokens_; }

 private:
  [[noreturn]] void RefuseVocabulary(std::int64_t tokens) const {
    Refuse(
        fmt::format("{}: the tokenizer has {} tokens and the model's vocabulary {}; they do not "
                    "belong together",
                    directory_, tokens, vocabulary_size_));
  }

  // What the export noted beside the graph; the detokenizer has its own list, which may be empty.
  void ReadSpecialTokens(const ov::Model& graph) {
    for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
      const auto found = graph.get_rt_info().find(key);
      if (found == graph.get_rt_info().end()) continue;
      try {
        special_tokens_.insert(static_cast<TokenId>(found->second.as<std::int64_t>()));
      } catch (const std::exception&) {
        // A list, or none: then only the detokenizer's own list counts.
      }
    }
  }

  // Padding left out, which some exports add.
  Tokens EncodeWhole(std::string_view text) const {
    ov::Tensor input(ov::element::string, ov::Shape{1});
    input.data<std::string>()[0] = text;
    return tokenizer_->Run(input, [&](ov::InferRequest& request) {
      const ov::Tensor ids = request.get_tensor("input_ids");        // [1, tokens]
      const ov::Tensor mask = request.get_tensor("attention_mask");  // likewise
      if (ids.get_element_type() != ov::element::i64 ||
          mask.get_element_type() != ov::element::i64 || ids.get_shape() != mask.get_shape()) {
        Refuse(fmt::format("{}: the tokenizer's input_ids and attention_mask are not alike",
                           directory_));
      }
      Tokens tokens;
      for (std::size_t i = 0; i < ids.get_size(); ++i) {
        if (mask.data<std::int64_t>()[i] == 0) continue;
        const std::int64_t id = ids.data<std::int64_t>()[i];
        if (id < 0 || id >= vocabulary_size_) RefuseVocabulary(id + 1);
        tokens.push_back(static_cast<TokenId>(id));
      }
      return tokens;
    });
  }

  Tokens WithoutAdded(Tokens tokens) const {
    const auto added = static_cast<std::ptrdiff_t>(added_before_ + added_after_);
    if (static_cast<std::ptrdiff_t>(tokens.size()) < added) return {};
    tokens.resize(tokens.size() - added_after_);
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(added_before_));
    return tokens;
  }

  // The empty text gives only what is added; how much of it stands in front shows before different
  // texts.
  void FindAddedTokens() {
    const Tokens added = EncodeWhole("");
    std::size_t before = added.size();
    std::size_t after = added.size();
    for (const char* text : {"a", "1", "?"}) {
      const Tokens probe = EncodeWhole(text);
      const auto front = std::mismatch(added.begin(), added.end(), probe.begin(), probe.end());
      const auto back = std::mismatch(added.rbegin(), added.rend(), probe.rbegin(), probe.rend());
      before = std::min(before, static_cast<std::size_t>(front.first - added.begin()));
      after = std::min(after, static_cast<std::size_t>(back.first - added.rbegin()));
    }
    if (before + after < added.size()) {
      Refuse(
          fmt::format("{}: which of the {} tokens that the tokenizer adds to a text stand in front "
                      "cannot be told",
                      directory_, added.size()));
    }
    added_before_ = before;
    added_after_ = added.size() - before;
  }

  // A character that merges with nothing, put in front of a text, takes the space that the
  // tokenizer would put there. nullopt: it merged after all.
  std::optional<Tokens> EncodeBehindFront(std::string_view text) const {
    std::string in_front(kFront);
    in_front += text;
    Tokens tokens = WithoutAdded(EncodeWhole(in_front));
    if (tokens.size() < front_.size() || !std::equal(front_.begin(), front_.end(), tokens.begin()))
      return std::nullopt;
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(front_.size()));
    return tokens;
  }

  // Whether a word is written with other tokens at a text's beginning than behind another text.
  void FindOutWhatStandsInFront() {
    front_ = WithoutAdded(EncodeWhole(kFront));
    const std::optional<Tokens> behind = EncodeBehindFront("a");
    if (!behind || *behind == WithoutAdded(EncodeWhole("a"))) front_.clear();
  }

  void FindOutWhetherPiecesFit();
  void CheckLongText(std::int64_t limit) const;

  std::string directory_;
  std::int64_t vocabulary_size_;
  std::int64_t decodable_tokens_ = 0;  // 0: unknown
  std::set<TokenId> special_tokens_;
  std::vector<ControlToken> control_tokens_;
  static constexpr const char* kFront = "\x01";
  Tokens front_;  // of kFront; empty: nothing is put in front of a text
  std::size_t added_before_ = 0;
  std::size_t added_after_ = 0;
  bool can_encode_in_pieces_ = false;
  ov::Core core_;  // before the runners: it holds the library whose operations they run
  mutable std::optional<Runner> tokenizer_;
  mutable std::optional<Runner> detokenizer_;
};

// What tokenizers are known to treat in their own way: runs of spaces and lines, digits, code,
// other scripts.
constexpr std::string_view kVariedText =
    "The quick brown fox doesn't jump; it'll wait, we've  seen   it 3 times (1,234.5 or 10 "
    "000).\n\n"
    "    def f(x):\n\treturn x ** 2 + y[ 0 ]  # not a comment \n \n  }\n"
    "Caf\u00e9 na\u00efve \u00fcber \u0411\u044b\u043b\u0430 \u0437\u0438\u043c\u0430 12 "
    "\u4f60\u597d \u4e16\u754c "
    "\u3053\u3093 \u306b\u3061\u306f \u0645\u0631\u062d\u0628\u0627 "
    "\u0928\u092e\u0938\u094d\u0924\u0947 "
    "\U0001F600 \U0001F468\u200D\U0001F469\u200D\U0001F467 e\u0301 \u00a0 x\n- a\r\n- B \t c  \n"
    "https://example.org/a?b=c&d=%20 <b>bold</b> \"quoted\" 'single' `code` $5 50% #1 a_b-c...  "
    "end ";

// Cut before every `stride`-th space that follows a non-space.
std::vector<std::string_view> CutInPieces(std::string_view text, int stride) {
  std::vector<std::string_view> pieces;
  std::size_t begin = 0;
  int seen = 0;
  for (std::size_t i = 1; i < text.size(); ++i) {
    const bool is_cut = text[i] == ' ' &&
                        std::string_view(" \t\r\n\f\v").find(text[i - 1]) == std::string_view::npos;
    if (!is_cut || ++seen % stride != 0) continue;
    pieces.emplace_back(text.substr(begin, i - begin));
    begin = i;
  }
  pieces.emplace_back(text.substr(begin));
  return pieces;
}

void OpenVinoTokenizer::FindOutWhetherPiecesFit() {
  const Tokens whole = WithoutAdded(EncodeWhole(kVariedText));
  can_encode_in_pieces_ = true;
  for (const int stride : {1, 2, 3, 7}) {
    Tokens joined;
    for (const std::string_view piece : CutInPieces(kVariedText, stride)) {
      const Tokens own = WithoutAdded(EncodeWhole(piece));
      joined.insert(joined.end(), own.begin(), own.end());
    }
    can_encode_in_pieces_ = can_encode_in_pieces_ && joined == whole;
  }
}

void OpenVinoTokenizer::CheckLongText(std::int64_t limit) const {
  constexpr std::int64_t kUsualLimit = 8192;
  constexpr std::int64_t kLongestCheck = 200000;  // a tenth of a second
  const std::int64_t words = std::clamp(limit, kUsualLimit, kLongestCheck) + 64;
  std::string text;
  for (std::int64_t i = 0; i < words; ++i) {
    text += static_cast<char>('a' + i % 26);
    text += ' ';
  }
  const std::size_t tokens = EncodeWhole(text).size();
  if (tokens < static_cast<std::size_t>(words)) {
    Refuse(
        fmt::format("{}: the tokenizer cuts a text of {} words after {} tokens, and the limit is "
                    "not where exports "
                    "put it; export it again with a larger model_max_length",
                    directory_, words, tokens));
  }
}

}  // namespace

std::unique_ptr<Tokenizer> LoadOpenVinoTokenizer(const std::filesystem::path& directory,
                                                 std::int64_t vocabulary_size) {
  // Made here and not by the tokenizer: an exception's type may live in a library that goes with
  // the core.
  const ov::Core core;
  try {
    return std::make_unique<OpenVinoTokenizer>(core, directory, vocabulary_size);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& failure) {
    Refuse(fmt::format("{} does not run: {}; export the tokenizer again (openvino_tokenizers)",
                       directory.string(), BriefReason(failure)));
  }
}

}  // namespace carousel
