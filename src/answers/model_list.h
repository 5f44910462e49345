// SPDX-License-Identifier: Apache-2.0
// What models lie in a folder, by what their files say. Nothing is loaded.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace carousel {

// What one folder's files say; zeros and empty where they do not.
struct ModelSummary {
  std::string name;
  std::string architecture;
  std::string weights;
  std::int64_t bytes = 0;
  std::int64_t trained_window = 0;
  std::int64_t sliding_window = 0;
  // A token's keys and values as f16, in all layers, and in those without a window.
  std::int64_t cache_bytes_per_token = 0;
  std::int64_t global_cache_bytes_per_token = 0;
};

// The models in the folders of `directory`, by name. Throws carousel::Error (field "models_dir")
// for a directory that cannot be read.
std::vector<ModelSummary> FindModels(const std::string& directory);

// {"type": "model", "model": its name, ...}
nlohmann::ordered_json JsonOf(const ModelSummary& model);

}  // namespace carousel
