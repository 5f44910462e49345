// SPDX-License-Identifier: Apache-2.0
#include "answers/model_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "carousel/error.h"

namespace carousel {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

json ReadConfig(const fs::path& folder) {
  std::ifstream file(folder / "config.json", std::ios::binary);
  json config = json::parse(file, nullptr, /*allow_exceptions=*/false);
  return config.is_object() ? config : json::object();
}

std::int64_t Count(const json& config, const char* key) {
  const auto found = config.find(key);
  const bool is_count = found != config.end() && found->is_number_integer() &&
                        found->get<std::int64_t>() > 0 && found->get<std::int64_t>() < INT32_MAX;
  return is_count ? found->get<std::int64_t>() : 0;
}

std::string Text(const json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_string() ? found->get<std::string>() : "";
}

// Layers that see everything, of `layers`.
std::int64_t GlobalLayers(const json& config, std::int64_t layers) {
  const auto types = config.find("layer_types");
  if (types == config.end() || !types->is_array()) return layers;
  return layers - std::count(types->begin(), types->end(), json("sliding_attention"));
}

void AddCacheSize(const json& config, ModelSummary* summary) {
  const std::int64_t heads = Count(config, "num_attention_heads");
  std::int64_t kv_heads = Count(config, "num_key_value_heads");
  std::int64_t dim = Count(config, "head_dim");
  if (kv_heads == 0) kv_heads = heads;
  if (dim == 0 && heads > 0) dim = Count(config, "hidden_size") / heads;
  const std::int64_t layers = Count(config, "num_hidden_layers");
  const std::int64_t layer_bytes = 2 * kv_heads * dim * static_cast<std::int64_t>(sizeof(short));
  summary->cache_bytes_per_token = layers * layer_bytes;
  summary->global_cache_bytes_per_token = GlobalLayers(config, layers) * layer_bytes;
}

std::int64_t FolderBytes(const fs::path& folder) {
  std::int64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += static_cast<std::int64_t>(entry.file_size());
  }
  return bytes;
}

ModelSummary Summarise(const fs::path& folder) {
  const json config = ReadConfig(folder);
  ModelSummary summary;
  summary.name = folder.filename().string();
  summary.architecture = Text(config, "model_type");
  const auto notes = config.find("carousel");
  if (notes != config.end() && notes->is_object()) summary.weights = Text(*notes, "weights");
  summary.bytes = FolderBytes(folder);
  summary.trained_window = Count(config, "max_position_embeddings");
  summary.sliding_window = Count(config, "sliding_window");
  AddCacheSize(config, &summary);
  return summary;
}

}  // namespace

std::vector<ModelSummary> FindModels(const std::string& directory) {
  std::vector<ModelSummary> models;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
      // Folders that begin with a dot are imports under way.
      const bool is_model = entry.path().filename().string().front() != '.' &&
                            fs::is_regular_file(entry.path() / "openvino_model.xml");
      if (is_model) models.push_back(Summarise(entry.path()));
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorCode::kIo, "models_dir",
                fmt::format("{} cannot be read: {}; name the folder that holds the models' folders",
                            directory, error.code().message()));
  }
  std::sort(models.begin(), models.end(),
            [](const auto& left, const auto& right) { return left.name < right.name; });
  return models;
}

nlohmann::ordered_json JsonOf(const ModelSummary& model) {
  return {{"type", "model"},
          {"model", model.name},
          {"architecture", model.architecture},
          {"weights", model.weights},
          {"bytes", model.bytes},
          {"trained_window", model.trained_window},
          {"sliding_window", model.sliding_window},
          {"cache_bytes_per_token_f16", model.cache_bytes_per_token},
          {"cache_bytes_per_token_f16_past_window", model.global_cache_bytes_per_token}};
}

}  // namespace carousel
