// SPDX-License-Identifier: Apache-2.0
#include "text/text_pieces.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <array>
#include <fstream>

#include "base/utf8.h"
#include "carousel/error.h"
#include "testing/random_text.h"
#include "testing/string_source.h"
#include "text/mended_whole.h"

namespace carousel {
namespace {

std::vector<std::string> AllPieces(ByteSource& source, TextPiecesOptions options) {
  TextPieces pieces(source, options);
  std::vector<std::string> all;
  while (true) {
    if (auto piece = pieces.Next()) {
      all.push_back(*std::move(piece));
    } else if (!pieces.interrupted()) {
      return all;
    }
  }
}

std::string Joined(ByteSource& source, TextPiecesOptions options) {
  std::string joined;
  for (const std::string& piece : AllPieces(source, options)) {
    RC_ASSERT(!piece.empty());
    RC_ASSERT(piece.size() <= options.max_piece_bytes);
    RC_ASSERT(!FindInvalidUtf8(piece));
    joined += piece;
  }
  return joined;
}

TextPiecesOptions AnyOptions() {
  const auto piece_bytes = *rc::gen::inRange<std::size_t>(4, 64);
  return {.piece_bytes = piece_bytes,
          .max_piece_bytes = *rc::gen::inRange<std::size_t>(piece_bytes, 128)};
}

std::vector<std::size_t> AnyReads() {
  return *rc::gen::nonEmpty(rc::gen::container<std::vector<std::size_t>>(rc::gen::inRange(1, 40)));
}

TEST(TextPieces, CutsBeforeASpaceThatFollowsANonSpace) {
  StringSource source("one two  three\nfour   five", {});
  const auto pieces = AllPieces(source, {.piece_bytes = 14, .max_piece_bytes = 20});
  EXPECT_EQ(pieces, (std::vector<std::string>{"one two", "  three\nfour", "   five"}));
}

TEST(TextPieces, CutsBeforeANewlineWhereThereAreNoSpaces) {
  StringSource source("\xE4\xB8\x80\xE4\xB8\x80\n\xE4\xB8\x80\xE4\xB8\x80\xE4\xB8\x80", {});
  const auto pieces = AllPieces(source, {.piece_bytes = 10, .max_piece_bytes = 20});
  EXPECT_EQ(pieces, (std::vector<std::string>{"\xE4\xB8\x80\xE4\xB8\x80",
                                              "\n\xE4\xB8\x80\xE4\xB8\x80\xE4\xB8\x80"}));
}

TEST(TextPieces, HandsOnWhatASlowSourceHasGiven) {
  StringSource source("hello big world", {9, 0, 3});
  TextPieces pieces(source, {.piece_bytes = 1000, .max_piece_bytes = 1000});
  EXPECT_EQ(pieces.Next(), "hello");
  EXPECT_EQ(pieces.Next(), std::nullopt);
  EXPECT_TRUE(pieces.interrupted());
  EXPECT_EQ(pieces.Next(), " big");
}

TEST(TextPieces, ReplacesWhatIsNoTextAndReadsOn) {
  StringSource source("caf\xE9 au lait, caf\xC3\xA9" + std::string(64, '\0') + "cut\xF0\x9F", {5});
  TextPieces pieces(source, {.piece_bytes = 8, .max_piece_bytes = 16});
  std::string text;
  while (const auto piece = pieces.Next()) text += *piece;
  EXPECT_EQ(text,
            "caf\xEF\xBF\xBD au lait, caf\xC3\xA9\xEF\xBF\xBD"
            "cut\xEF\xBF\xBD");
  EXPECT_EQ(pieces.replaced(), 3);
}

// Fails where its text ends.
TEST(TextPieces, AnErrorComesBehindWhatWasRead) {
  FailingSource source("one two three", {4});
  TextPieces pieces(source, {});
  std::string text;
  try {
    while (const auto piece = pieces.Next()) text += *piece;
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
  }
  EXPECT_EQ(text, "one two three");
  EXPECT_EQ(pieces.Next(), std::nullopt);
  EXPECT_FALSE(pieces.interrupted());
}

TEST(ValidateText, NamesTheByteAtFault) {
  const auto problem_of = [](const std::string& text) -> std::string {
    try {
      ValidateText(text, "prompt", 100);
    } catch (const Error& error) {
      EXPECT_EQ(error.field(), "prompt");
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      return error.problem();
    }
    return "";
  };
  EXPECT_EQ(problem_of("caf\xC3\xA9 au lait"), "");
  EXPECT_EQ(problem_of("some words, then caf\xE9!"),
            "is not valid UTF-8 (0xe9) at byte 120; convert it to UTF-8 first");
  EXPECT_EQ(problem_of("some words, then cut\xF0\x9F"),
            "is not valid UTF-8 (0xf0) at byte 120; convert it to UTF-8 first");
  EXPECT_EQ(problem_of(std::string("some words, then \0!", 19)),
            "has a NUL at byte 117; only text can be read");
}

TEST(TextPieces, AnEmptySourceHasNoPieces) {
  StringSource source("", {});
  EXPECT_TRUE(AllPieces(source, {}).empty());
}

RC_GTEST_PROP(TextPieces, PiecesJoinToTheTextAndStayBounded, ()) {
  const std::string text = *rc::gen::resize(300, ValidText());
  StringSource source(text, AnyReads());
  RC_ASSERT(Joined(source, AnyOptions()) == text);
}

// Whatever the bytes and wherever a read cuts them, the text is that of all bytes at once.
RC_GTEST_PROP(TextPieces, AnyBytesAreMendedAsAWhole, ()) {
  const std::string bytes = *rc::gen::resize(300, AnyBytes());
  StringSource source(bytes, AnyReads());
  RC_ASSERT(Joined(source, AnyOptions()) == MendedWhole(bytes).text);
}

TEST(ByteSource, ReadsAFileAndRefusesAFolder) {
  const std::string path = testing::TempDir() + "/byte_source_test.txt";
  std::ofstream(path) << "some text";
  const auto source = OpenByteSource(path, -1);
  EXPECT_EQ(ReadWholeText(*source, 100), "some text");
  EXPECT_THROW(ReadWholeText(*OpenByteSource(path, -1), 8), Error);
  EXPECT_THROW(OpenByteSource(testing::TempDir(), -1), Error);
  EXPECT_THROW(OpenByteSource(path + ".none", -1), Error);
}

TEST(ByteSource, IsWokenWhileItWaits) {
  std::array<int, 2> data{};
  std::array<int, 2> wake{};
  ASSERT_EQ(pipe(data.data()), 0);
  ASSERT_EQ(pipe(wake.data()), 0);
  const auto source = OpenByteSource("/dev/fd/" + std::to_string(data[0]), wake[0]);
  ASSERT_EQ(write(wake[1], "x", 1), 1);
  std::array<char, 8> buffer{};
  EXPECT_EQ(source->Read(buffer), std::nullopt);
  for (const int fd : {data[0], data[1], wake[0], wake[1]}) close(fd);
}

}  // namespace
}  // namespace carousel
