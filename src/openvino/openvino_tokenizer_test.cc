// SPDX-License-Identifier: Apache-2.0
// The default model's tokenizer, with the promises of tokenizer.h tried on it.
#include "openvino/openvino_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <openvino/op/add.hpp>
#include <openvino/op/concat.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/slice.hpp>
#include <openvino/pass/serialize.hpp>
#include <random>
#include <string>
#include <thread>

#include "carousel/error.h"
#include "models/temporary_directory.h"
#include "openvino/model_files.h"
#include "openvino/tokenizer_graph.h"
#include "testing/default_model.h"

namespace carousel {
namespace {

using ::carousel::testing::DefaultModelDirectory;
using ::carousel::testing::TemporaryDirectory;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

// Of the default model.
constexpr std::int64_t kVocabulary = 49152;
constexpr TokenId kUnknown = 0;  // what a byte becomes that has no token

std::string EncodeError(const Tokenizer& tokenizer, const std::string& text) {
  try {
    tokenizer.Encode(text, {});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "text");
    return error.what();
  }
  return "encoded";
}

class OpenVinoTokenizerTest : public ::testing::Test {
 protected:
  // Loading takes a quarter of a second, so once.
  static void SetUpTestSuite() {
    if (!fs::exists(DefaultModelDirectory())) return;
    tokenizer_ = LoadOpenVinoTokenizer(DefaultModelDirectory(), kVocabulary).release();
  }
  static void TearDownTestSuite() {
    delete tokenizer_;
    tokenizer_ = nullptr;
  }
  void SetUp() override {
    if (tokenizer_ == nullptr) GTEST_SKIP() << "there is no model at " << DefaultModelDirectory();
  }
  static std::vector<TokenId> Encode(std::string_view text) { return tokenizer_->Encode(text, {}); }
  static std::string RoundTrip(std::string_view text) { return tokenizer_->Decode(Encode(text)); }

  static Tokenizer* tokenizer_;
};

Tokenizer* OpenVinoTokenizerTest::tokenizer_ = nullptr;

TEST_F(OpenVinoTokenizerTest, EncodesAsTheModelWasTrained) {
  EXPECT_THAT(Encode("The capital of France is"), ElementsAre(504, 3575, 282, 4649, 314));
  EXPECT_THAT(Encode(""), IsEmpty());
  EXPECT_EQ(tokenizer_->Decode({}), "");
}

TEST_F(OpenVinoTokenizerTest, TextComesBack) {
  for (const std::string text :
       {"Hello, world!", " leading", "trailing ", "two  spaces\n\n\tand a tab",
        "caf\u00e9 \u4f60\u597d \U0001F984", "e\u0301 \u200d \u00a0 \ufeff", "1234567890",
        "\r\n\r\n", "x", "\x01\x7f"}) {
    EXPECT_EQ(RoundTrip(text), text);
  }
}

TEST_F(OpenVinoTokenizerTest, LongTextIsNotCut) {
  std::string text;
  std::mt19937 random(3);
  // More than the 8192 tokens at which the exported graph cuts, and as long as the demonstration's
  // text.
  while (text.size() < 465000) {
    text += "the bank of river " + std::to_string(random() % 100000) +
            (random() % 9 == 0 ? ".\n" : " ");
  }
  const std::vector<TokenId> tokens = Encode(text);
  EXPECT_THAT(tokens.size(), Gt(80000));
  EXPECT_EQ(tokenizer_->Decode(tokens), text);
}

TEST_F(OpenVinoTokenizerTest, OneWordOfAnyLength) {
  for (const char letter : {'a', ' ', '\n', '7', '-'}) {
    const std::string text(30000, letter);
    EXPECT_EQ(RoundTrip(text), text) << letter;
  }
}

TEST_F(OpenVinoTokenizerTest, PiecesAreAsGoodAsTheWhole) {
  ASSERT_TRUE(tokenizer_->CanEncodeInPieces());
  const std::vector<std::string> parts = {"word",
                                          " word",
                                          "  ",
                                          "\n",
                                          " 1",
                                          "23",
                                          "\t",
                                          "'s",
                                          " caf\u00e9",
                                          ".",
                                          " \u4f60\u597d",
                                          "\U0001F984",
                                          " <",
                                          "|im_end|>",
                                          "<|im_start|>",
                                          "--"};
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    std::string text;
    for (int i = 0; i < 40; ++i) text += parts[random() % parts.size()];
    std::vector<TokenId> joined;
    std::size_t begin = 0;
    for (std::size_t i = 1; i <= text.size(); ++i) {
      const bool is_cut =
          i == text.size() ||
          (text[i] == ' ' && !std::isspace(static_cast<unsigned char>(text[i - 1])));
      if (!is_cut || (i < text.size() && random() % 2 == 0)) continue;
      const auto piece =
          tokenizer_->Encode(text.substr(begin, i - begin), {.add_special_tokens = false});
      joined.insert(joined.end(), piece.begin(), piece.end());
      begin = i;
    }
    EXPECT_EQ(joined, Encode(text)) << text;
  }
}

TEST_F(OpenVinoTokenizerTest, SpecialTokensAreOneTokenAndAreNotDecoded) {
  const std::vector<TokenId> tokens = Encode("<|im_start|>user\nHi<|im_end|>\n");
  ASSERT_EQ(tokens.size(), 6);
  EXPECT_EQ(tokens[0], 1);
  EXPECT_EQ(tokens[4], 2);
  EXPECT_EQ(tokenizer_->Decode(tokens), "user\nHi\n");
}

TEST_F(OpenVinoTokenizerTest, EndsInsideACharacterAsBytes) {
  const std::string text = "a \U0001F984";
  const std::vector<TokenId> tokens = Encode(text);
  std::string before;
  for (std::size_t count = 1; count <= tokens.size(); ++count) {
    const std::string now = tokenizer_->Decode(std::span(tokens).first(count));
    EXPECT_EQ(now.substr(0, before.size()), before);
    EXPECT_EQ(text.substr(0, now.size()), now);
    EXPECT_THAT(now.size(), Gt(before.size()));
    before = now;
  }
}

TEST_F(OpenVinoTokenizerTest, TokensThatAreNotInTheVocabularyAreLeftOut) {
  const std::vector<TokenId> tokens = {504, kVocabulary, 3575, -1, 2147483647};
  EXPECT_EQ(tokenizer_->Decode(tokens), "The capital");
}

TEST_F(OpenVinoTokenizerTest, EveryTokenDecodes) {
  std::vector<TokenId> all;
  for (TokenId token = 0; token < kVocabulary; ++token) all.push_back(token);
  std::size_t bytes = 0;
  for (const TokenId token : all) bytes += tokenizer_->Decode(std::span(&token, 1)).size();
  EXPECT_EQ(tokenizer_->Decode(all).size(), bytes);
}

TEST_F(OpenVinoTokenizerTest, InvalidTextIsRefusedWithItsPlace) {
  using std::string_literals::operator""s;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"ab\xff", "byte 2"},           {"\x80", "byte 0"},
      {"caf\u00e9\xc3", "byte 5"},    {"\xc0\xaf", "byte 0"},
      {"x\xe0\x80\x80", "byte 1"},    {"x\xed\xa0\x80", "byte 1"},
      {"\xf0\x82\x82\xac", "byte 0"}, {"\xf4\x90\x80\x80", "byte 0"},
      {"ok\xf0\x9f\xa6", "byte 2"},   {"a\0b"s, "NUL at byte 1"},
  };
  for (const auto& [text, place] : cases) {
    EXPECT_THAT(EncodeError(*tokenizer_, text), HasSubstr(place)) << ::testing::PrintToString(text);
  }
}

TEST_F(OpenVinoTokenizerTest, RandomBytesAreEncodedOrRefused) {
  std::mt19937 random(17);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes(random() % 40, '\0');
    for (char& byte : bytes) {
      // Mostly bytes of longer characters, so that some are whole.
      byte = static_cast<char>(random() % 3 == 0 ? random() % 256 : 0x80 + random() % 0x75);
    }
    const std::string error = EncodeError(*tokenizer_, bytes);
    if (error == "encoded") {
      const std::vector<TokenId> tokens = Encode(bytes);
      const bool has_unknown = std::count(tokens.begin(), tokens.end(), kUnknown) > 0;
      EXPECT_TRUE(has_unknown || tokenizer_->Decode(tokens) == bytes);
    } else {
      EXPECT_THAT(error, HasSubstr(" at byte "));
    }
  }
}

TEST_F(OpenVinoTokenizerTest, RandomCharactersComeBack) {
  std::mt19937 random(23);
  const auto append = [](std::string& text, std::uint32_t code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
    } else if (code < 0x800) {
      text += {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    } else if (code < 0x10000) {
      text += {static_cast<char>(0xe0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3f)),
               static_cast<char>(0x80 | (code & 0x3f))};
    } else {
      text +=
          {static_cast<char>(0xf0 | code >> 18), static_cast<char>(0x80 | (code >> 12 & 0x3f)),
           static_cast<char>(0x80 | (code >> 6 & 0x3f)), static_cast<char>(0x80 | (code & 0x3f))};
    }
  };
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) {
      // The default model's vocabulary has no tokens for some control characters and bytes 0xf1,
      // 0xf2.
      const std::uint32_t ranges[] = {0x7f, 0x7ff, 0xffff, 0x3ffff};
      const std::uint32_t range = ranges[random() % 4] - 0x20;
      const auto code = static_cast<std::uint32_t>(0x20 + random() % range);
      if (code < 0xd800 || code > 0xdfff) append(text, code);
    }
    EXPECT_EQ(RoundTrip(text), text);
  }
}

TEST_F(OpenVinoTokenizerTest, SeveralThreadsMayUseIt) {
  const std::vector<TokenId> want = Encode("The capital of France is Paris.");
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& count : wrong) {
    threads.emplace_back([&want, &count] {
      for (int i = 0; i < 100; ++i) {
        count += Encode("The capital of France is Paris.") != want;
        count += tokenizer_->Decode(want) != "The capital of France is Paris.";
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ::testing::Each(0));
}

// --- Folders ---

std::string LoadError(const fs::path& folder, std::int64_t vocabulary) {
  try {
    LoadOpenVinoTokenizer(folder, vocabulary);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kModel);
    EXPECT_EQ(error.field(), "tokenizer");
    EXPECT_THAT(std::string(error.what()),
                AllOf(::testing::Not(HasSubstr("\n")), HasSubstr(folder.string())));
    return error.what();
  }
  return "loaded";
}

TEST_F(OpenVinoTokenizerTest, AModelOfAnotherVocabularyIsRefusedWithBothSizes) {
  EXPECT_THAT(LoadError(DefaultModelDirectory(), 32000),
              AllOf(HasSubstr("49152"), HasSubstr("32000")));
  // Models may have rows to spare.
  EXPECT_EQ(LoadError(DefaultModelDirectory(), 50000), "loaded");
}

// The default model's tokenizer with its graph changed, in a folder of its own.
class EditedTokenizer {
 public:
  explicit EditedTokenizer(const std::function<void(ov::Model&)>& edit) {
    for (const char* name : {"openvino_detokenizer.xml", "openvino_detokenizer.bin"}) {
      fs::copy_file(DefaultModelDirectory() / name, folder_.path() / name);
    }
    ov::Core core;
    AddTokenizerOperations(core);
    const auto graph = ReadIr(core, DefaultModelDirectory(), "openvino_tokenizer", "tokenizer");
    edit(*graph);
    graph->validate_nodes_and_infer_types();
    ov::pass::Serialize((folder_.path() / "openvino_tokenizer.xml").string(),
                        (folder_.path() / "openvino_tokenizer.bin").string())
        .run_on_model(graph);
  }
  const fs::path& folder() const { return folder_.path(); }
  std::unique_ptr<Tokenizer> Load() const { return LoadOpenVinoTokenizer(folder(), kVocabulary); }

 private:
  TemporaryDirectory folder_;
};

std::shared_ptr<ov::Node> Integers(const ov::Shape& shape,
                                   const std::vector<std::int64_t>& values) {
  return ov::op::v0::Constant::create(ov::element::i64, shape, values);
}

// Puts `make`'s node between each result (tokens first, then their mask) and what gives it.
void ChangeOutputs(ov::Model& graph,
                   const std::function<std::shared_ptr<ov::Node>(const ov::Output<ov::Node>&,
                                                                 bool is_mask)>& make) {
  for (const auto& result : graph.get_results()) {
    const bool is_mask = result->get_output_tensor(0).get_names().count("attention_mask") > 0;
    const auto names = result->get_output_tensor(0).get_names();
    const ov::Output<ov::Node> source = result->input_value(0);
    source.get_tensor().set_names({});
    result->input(0).replace_source_output(make(source, is_mask));
    result->get_output_tensor(0).set_names(names);
  }
}

TEST_F(OpenVinoTokenizerTest, AnyLimitIsLifted) {
  const EditedTokenizer edited([](ov::Model& graph) {
    for (const auto& node : graph.get_ordered_ops()) {
      if (std::string(node->get_type_name()) != "Minimum") continue;
      node->input(1).replace_source_output(
          ov::op::v0::Constant::create(ov::element::i32, ov::Shape{}, {16}));
    }
  });
  const std::string text =
      "one two three four five six seven eight nine ten eleven twelve, thirteen, fourteen";
  EXPECT_EQ(edited.Load()->Encode(text, {}), Encode(text));
}

TEST_F(OpenVinoTokenizerTest, ALimitOfAnotherKindIsNoticed) {
  const EditedTokenizer edited([](ov::Model& graph) {
    ChangeOutputs(graph, [](const ov::Output<ov::Node>& source, bool) {
      return std::make_shared<ov::op::v8::Slice>(source, Integers({1}, {0}), Integers({1}, {5000}),
                                                 Integers({1}, {1}), Integers({1}, {1}));
    });
  });
  EXPECT_THAT(LoadError(edited.folder(), kVocabulary), HasSubstr("after 5000 tokens"));
}

TEST_F(OpenVinoTokenizerTest, WhatATokenizerAddsCanBeLeftOut) {
  for (const bool is_in_front : {true, false}) {
    const EditedTokenizer edited([&](ov::Model& graph) {
      ChangeOutputs(graph, [&](const ov::Output<ov::Node>& source, bool is_mask) {
        const auto added = Integers(
            {1, 2}, is_mask ? std::vector<std::int64_t>{1, 1} : std::vector<std::int64_t>{1, 2});
        const ov::OutputVector parts =
            is_in_front ? ov::OutputVector{added, source} : ov::OutputVector{source, added};
        return std::make_shared<ov::op::v0::Concat>(parts, 1);
      });
    });
    // A batch of one text only: the constant is not broadcast. So pieces are tried on one text
    // each.
    const auto tokenizer = edited.Load();
    const std::vector<TokenId> bare = Encode("Hello there");
    std::vector<TokenId> whole = {1, 2};
    whole.insert(is_in_front ? whole.end() : whole.begin(), bare.begin(), bare.end());
    EXPECT_EQ(tokenizer->Encode("Hello there", {}), whole);
    EXPECT_EQ(tokenizer->Encode("Hello there", {.add_special_tokens = false}), bare);
    EXPECT_THAT(tokenizer->Encode("", {}), ElementsAre(1, 2));
    EXPECT_THAT(tokenizer->Encode("", {.add_special_tokens = false}), IsEmpty());
    EXPECT_TRUE(tokenizer->CanEncodeInPieces());
  }
}

TEST_F(OpenVinoTokenizerTest, PiecesThatDifferAreNoticed) {
  const EditedTokenizer edited([](ov::Model& graph) {
    ChangeOutputs(graph, [](const ov::Output<ov::Node>& source, bool) {
      return std::make_shared<ov::op::v8::Slice>(
          source, Integers({1}, {-1}), Integers({1}, {std::numeric_limits<std::int64_t>::min()}),
          Integers({1}, {-1}), Integers({1}, {1}));
    });
  });
  EXPECT_FALSE(edited.Load()->CanEncodeInPieces());
}

TEST_F(OpenVinoTokenizerTest, TokensBeyondTheVocabularyAreRefused) {
  const EditedTokenizer edited([](ov::Model& graph) {
    ChangeOutputs(graph, [](const ov::Output<ov::Node>& source, bool is_mask) {
      return std::make_shared<ov::op::v1::Add>(source, Integers({}, {is_mask ? 0 : kVocabulary}));
    });
  });
  EXPECT_THAT(LoadError(edited.folder(), kVocabulary),
              AllOf(HasSubstr("49152"), HasSubstr("vocabulary")));
}

TEST_F(OpenVinoTokenizerTest, AGraphWithoutAMaskIsRefused) {
  const EditedTokenizer edited([](ov::Model& graph) {
    for (const auto& result : graph.get_results()) {
      const auto names = result->get_output_tensor(0).get_names();
      if (names.count("attention_mask") > 0) result->get_output_tensor(0).set_names({"other"});
    }
  });
  EXPECT_THAT(LoadError(edited.folder(), kVocabulary),
              AllOf(HasSubstr("does not run"), HasSubstr("attention_mask")));
}

TEST_F(OpenVinoTokenizerTest, TheTokenizersLibraryIsNamedWhenItIsMissing) {
  setenv("CAROUSEL_TOKENIZERS_LIBRARY", "/nowhere/libopenvino_tokenizers.so", 1);
  std::string message = "loaded";
  try {
    LoadOpenVinoTokenizer(DefaultModelDirectory(), kVocabulary);
  } catch (const Error& error) {
    message = error.what();
  }
  unsetenv("CAROUSEL_TOKENIZERS_LIBRARY");
  EXPECT_THAT(message, AllOf(HasSubstr("/nowhere/"), HasSubstr("CAROUSEL_TOKENIZERS_LIBRARY")));
}

TEST_F(OpenVinoTokenizerTest, DamagedFilesAreRefused) {
  const TemporaryDirectory folder;
  EXPECT_THAT(LoadError("/nowhere/at/all", kVocabulary), HasSubstr("not a folder"));
  EXPECT_THAT(LoadError(folder.path(), kVocabulary), HasSubstr("openvino_tokenizer.xml"));
  const std::vector<std::string> names = {"openvino_tokenizer.xml", "openvino_tokenizer.bin",
                                          "openvino_detokenizer.xml", "openvino_detokenizer.bin"};
  for (const std::string& name : names)
    fs::copy_file(DefaultModelDirectory() / name, folder.path() / name);
  EXPECT_EQ(LoadError(folder.path(), kVocabulary), "loaded");
  for (const std::string& name : names) {
    const auto size = fs::file_size(folder.path() / name);
    for (const double part : {0.0, 0.3, 0.9, 0.999}) {
      fs::resize_file(folder.path() / name,
                      static_cast<std::uintmax_t>(static_cast<double>(size) * part));
      EXPECT_THAT(LoadError(folder.path(), kVocabulary), HasSubstr(name.substr(0, name.find('.'))))
          << part;
      fs::remove(folder.path() / name);
      fs::copy_file(DefaultModelDirectory() / name, folder.path() / name);
    }
    fs::remove(folder.path() / name);
    EXPECT_THAT(LoadError(folder.path(), kVocabulary), HasSubstr("missing"));
    fs::copy_file(DefaultModelDirectory() / name, folder.path() / name);
  }
}

}  // namespace
}  // namespace carousel
