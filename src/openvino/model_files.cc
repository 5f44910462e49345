// SPDX-License-Identifier: Apache-2.0
#include "openvino/model_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "carousel/error.h"

namespace carousel {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

// nullopt-like: an empty object when the file is not there.
Json ReadJson(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return Json::object();
  std::ifstream file(path, std::ios::binary);
  Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!file.good() && !file.eof()) {
    throw Error(ErrorCode::kModel, "model",
                fmt::format("{} cannot be read; check its permissions", path.string()));
  }
  if (!json.is_object()) {
    throw Error(
        ErrorCode::kModel, "model",
        fmt::format("{} is not a JSON object; restore the file or delete it (it is optional)",
                    path.string()));
  }
  return json;
}

[[noreturn]] void ThrowWrongKind(const fs::path& path, const std::string& key, const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  throw Error(
      ErrorCode::kModel, "model",
      fmt::format("{}: \"{}\" is {}, which is not what that key can hold; restore the file or "
                  "delete it (it is optional)",
                  path.string(), key, text));
}

// The number under `key`, or `missing` where there is none or null.
double NumberOr(const fs::path& path, const Json& json, const std::string& key, double missing) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return missing;
  const bool is_usable =
      found->is_number() && std::isfinite(found->get<double>()) && found->get<double>() >= 0.0;
  if (!is_usable) ThrowWrongKind(path, key, *found);
  return found->get<double>();
}

std::int64_t CountOr(const fs::path& path, const Json& json, const std::string& key,
                     std::int64_t missing) {
  const double value = NumberOr(path, json, key, static_cast<double>(missing));
  if (value > 1e15 || value != std::floor(value)) ThrowWrongKind(path, key, json.at(key));
  return static_cast<std::int64_t>(value);
}

// "eos_token_id" is a number or a list of numbers.
void AppendEndTokens(const fs::path& path, const Json& json, std::vector<TokenId>& tokens) {
  const auto found = json.find("eos_token_id");
  if (found == json.end() || found->is_null()) return;
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& item : list) {
    const bool is_token = item.is_number_integer() && item.get<std::int64_t>() >= 0 &&
                          item.get<std::int64_t>() <= std::numeric_limits<TokenId>::max();
    if (!is_token) ThrowWrongKind(path, "eos_token_id", *found);
    const auto token = item.get<TokenId>();
    if (std::find(tokens.begin(), tokens.end(), token) == tokens.end()) tokens.push_back(token);
  }
}

// What cos and sin are multiplied by: given as such, or YaRN's 0.1 ln(factor) + 1 (Peng et al.
// 2023, section 3.4). Only ever reported, because keys carry it already.
double AttentionFactor(const fs::path& path, const Json& json) {
  const auto found = json.find("rope_scaling");
  if (found == json.end() || !found->is_object()) return 1.0;
  const double given = NumberOr(path, *found, "attention_factor", 0.0);
  if (given > 0.0) return given;
  const auto type = found->contains("rope_type") ? found->find("rope_type") : found->find("type");
  const bool is_yarn =
      type != found->end() && type->is_string() && type->get<std::string>() == "yarn";
  const double factor = NumberOr(path, *found, "factor", 1.0);
  return is_yarn && factor > 1.0 ? 0.1 * std::log(factor) + 1.0 : 1.0;
}

std::vector<DeclaredRope> LayersOfRope(const fs::path& path, const Json& json) {
  const auto carousel = json.find("carousel");
  if (carousel == json.end() || !carousel->is_object() || !carousel->contains("rope")) return {};
  const Json& rope = carousel->at("rope");
  std::vector<DeclaredRope> layers;
  try {
    std::vector<DeclaredRope> tables;
    for (const Json& table : rope.at("tables")) {
      tables.push_back({table.at("frequencies").get<std::vector<double>>()});
    }
    for (const Json& layer : rope.at("layers")) {
      layers.push_back(layer.is_null() ? DeclaredRope{} : tables.at(layer.get<std::size_t>()));
    }
  } catch (const std::exception&) {
    ThrowWrongKind(path, "carousel.rope", rope);
  }
  return layers;
}

std::uintmax_t RequireFile(const fs::path& path, const std::string& field) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw Error(
        ErrorCode::kModel, field,
        fmt::format(
            "{} is missing; the folder must hold an OpenVINO IR (tools/import_gguf.py makes "
            "one, as does optimum-cli export openvino)",
            path.string()));
  }
  return fs::file_size(path, error);
}

}  // namespace

DeclaredConfig ReadDeclaredConfig(const fs::path& directory) {
  DeclaredConfig config;
  const fs::path path = directory / "config.json";
  const Json json = ReadJson(path);
  const auto type = json.find("model_type");
  if (type != json.end() && type->is_string()) config.architecture = type->get<std::string>();
  config.trained_window = CountOr(path, json, "max_position_embeddings", 0);
  config.rope_theta = NumberOr(path, json, "rope_theta", 0.0);
  config.attention_factor = AttentionFactor(path, json);
  config.rope = LayersOfRope(path, json);
  AppendEndTokens(path, json, config.end_tokens);
  const fs::path generation_path = directory / "generation_config.json";
  AppendEndTokens(generation_path, ReadJson(generation_path), config.end_tokens);
  return config;
}

std::shared_ptr<ov::Model> ReadIr(ov::Core& core, const fs::path& directory,
                                  const std::string& stem, const std::string& field) {
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    throw Error(ErrorCode::kModel, field,
                fmt::format("{} is not a folder; name the folder that holds {}.xml",
                            directory.string(), stem));
  }
  const fs::path xml = directory / (stem + ".xml");
  const fs::path bin = directory / (stem + ".bin");
  RequireFile(xml, field);
  const std::uintmax_t bin_bytes = RequireFile(bin, field);
  try {
    return core.read_model(xml.string(), bin.string());
  } catch (const std::exception& failure) {
    throw Error(
        ErrorCode::kModel, field,
        fmt::format(
            "{} (with {} bytes of {}) cannot be read: {}; the files are damaged or do not belong "
            "together, so export or copy the model again",
            xml.string(), bin_bytes, bin.filename().string(), BriefReason(failure)));
  }
}

std::string BriefReason(const std::exception& error) {
  // OpenVINO puts what happened on the last lines, behind where in its source it was noticed.
  std::istringstream lines(error.what());
  std::string line;
  std::string last;
  while (std::getline(lines, line)) {
    const bool says_where = line.rfind("Exception from ", 0) == 0;
    const bool has_words = std::any_of(line.begin(), line.end(), [](char c) {
      return std::isalpha(static_cast<unsigned char>(c));
    });
    if (!says_where && has_words) last = line;
  }
  if (last.empty()) last = "no reason given";
  for (char& c : last) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = ' ';
  }
  constexpr std::size_t kLongest = 200;
  const std::size_t begin = std::min(last.find_first_not_of(' '), last.size());
  last = last.substr(begin, kLongest);
  while (!last.empty() && (last.back() == ' ' || last.back() == '.')) last.pop_back();
  return last;
}

}  // namespace carousel
