// SPDX-License-Identifier: Apache-2.0
#include "openvino/rope_file.h"

#include <fmt/format.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

namespace carousel {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kName = "rope_probe.txt";

// XXH3 of a file's bytes. Throws where it cannot be read.
std::uint64_t HashOf(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> bytes(std::size_t{1} << 20);
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  while (file) {
    file.read(bytes.data(), std::ssize(bytes));
    XXH3_64bits_update(&state, bytes.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (!file.eof()) throw std::runtime_error("cannot read " + path.string());
  return XXH3_64bits_digest(&state);
}

}  // namespace

RopeFile::RopeFile(const fs::path& directory, std::string_view precision)
    : directory_(directory), precision_(precision) {}

std::string RopeFile::FirstLine() const {
  return fmt::format("of openvino_model.xml {:016x} openvino_model.bin {:016x} precision {}\n",
                     HashOf(directory_ / "openvino_model.xml"),
                     HashOf(directory_ / "openvino_model.bin"), precision_);
}

std::string RopeFile::Read() const noexcept {
  try {
    std::ifstream file(directory_ / kName, std::ios::binary);
    if (!file) return "";
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const std::string first = FirstLine();
    return text.starts_with(first) ? text.substr(first.size()) : "";
  } catch (const std::exception&) {
    return "";
  }
}

void RopeFile::Keep(std::string_view found) const noexcept {
  const fs::path path = directory_ / kName;
  const fs::path part = path.string() + fmt::format(".{}.part", getpid());
  try {
    {
      std::ofstream file(part, std::ios::binary);
      file << FirstLine() << found;
      file.close();
      if (!file) throw std::runtime_error("cannot write " + part.string());
    }
    fs::rename(part, path);
  } catch (const std::exception&) {
    std::error_code ignored;
    fs::remove(part, ignored);
  }
}

}  // namespace carousel
