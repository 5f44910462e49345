// SPDX-License-Identifier: Apache-2.0
// What a probe has found of a model's RoPE, in a file beside the model: rope_probe.txt. It names
// the graph and the weights that it is of, so that a folder whose files have changed is probed
// again.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace carousel {

class RopeFile {
 public:
  // `precision`: what the model computes in, which rounds what a probe sees.
  RopeFile(const std::filesystem::path& directory, std::string_view precision);

  // What was kept for this very model; empty where nothing was, or no longer holds.
  std::string Read() const noexcept;
  // Writes it beside the model, whole or not at all. A folder that cannot be written to is no
  // error: the model is then probed at each start.
  void Keep(std::string_view found) const noexcept;

 private:
  std::string FirstLine() const;

  std::filesystem::path directory_;
  std::string precision_;
};

}  // namespace carousel
