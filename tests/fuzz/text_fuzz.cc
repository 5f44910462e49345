// SPDX-License-Identifier: Apache-2.0
// Bytes as a text that comes in reads of any size: the pieces join to what all bytes are at once.
#include <algorithm>

#include "base/check.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "text/mended_whole.h"
#include "text/text_pieces.h"

namespace carousel {
namespace {

// Reads of the sizes that the first bytes say, again and again; 0 stands for being woken.
class FuzzSource : public ByteSource {
 public:
  FuzzSource(std::string_view text, std::vector<std::size_t> reads)
      : text_(text), reads_(std::move(reads)) {}
  std::optional<std::size_t> Read(std::span<char> buffer) override {
    const std::size_t wanted = reads_[next_++ % reads_.size()];
    if (wanted == 0) return std::nullopt;
    const std::size_t bytes = text_.copy(buffer.data(), std::min(wanted, buffer.size()));
    text_.remove_prefix(bytes);
    return bytes;
  }

 private:
  std::string_view text_;
  std::vector<std::size_t> reads_;
  std::size_t next_ = 0;
};

std::string Seed(std::string_view sizes, std::string_view text) {
  std::string seed(sizes);
  seed += text;
  return seed;
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  return {
      Seed({"\x08\x10\x03\x01\x05\x00", 6}, "some words, caf\xC3\xA9 \xE2\x82\xAC\n"),
      Seed({"\x04\x04\x01\x01\x01\x02", 6}, "caf\xE9 \xF0\x9F\x98\x80\xF0\x9F"),
      Seed({"\x10\x20\x40\x02\x01\x01", 6}, "a" + std::string(40, '\0') + "\xED\xA0\x80 b"),
  };
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  FuzzInput input(data, size);
  const std::size_t piece_bytes = 4 + input.Bits(1);
  const std::size_t max_piece_bytes = piece_bytes + input.Bits(1);
  std::vector<std::size_t> reads;
  for (int i = 0; i < 4; ++i) reads.push_back(input.Bits(1) % 40);
  reads.push_back(7);  // or nothing might ever come
  const std::string_view bytes(reinterpret_cast<const char*>(data) + std::min<std::size_t>(6, size),
                               size - std::min<std::size_t>(6, size));
  FuzzSource source(bytes, reads);
  TextPieces pieces(source, {.piece_bytes = piece_bytes, .max_piece_bytes = max_piece_bytes});
  std::string text;
  while (true) {
    const auto piece = pieces.Next();
    if (!piece && !pieces.interrupted()) break;
    if (!piece) continue;
    CAROUSEL_CHECK(!piece->empty() && piece->size() <= max_piece_bytes);
    text += *piece;
  }
  const MendedText expected = MendedWhole(bytes);
  CAROUSEL_CHECK(text == expected.text);
  CAROUSEL_CHECK_EQ(pieces.replaced(), expected.replaced);
  return 0;
}
