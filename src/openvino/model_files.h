// SPDX-License-Identifier: Apache-2.0
// What lies in a model's folder: the IR and what the files beside it declare about the model.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <openvino/core/model.hpp>
#include <openvino/runtime/core.hpp>
#include <string>
#include <vector>

#include "carousel/model.h"
#include "carousel/types.h"

namespace carousel {

// Claims of config.json and generation_config.json. Everything is optional: zeros and empty where
// the files say nothing. What can be measured (RoPE) is never taken from here, only compared.
struct DeclaredConfig {
  std::string architecture;         // config.json "model_type"
  std::int64_t trained_window = 0;  // "max_position_embeddings"
  double rope_theta = 0.0;          // "rope_theta"
  double attention_factor =
      1.0;  // "rope_scaling"."attention_factor", or what YaRN derives from its factor
  // "carousel"."rope", which tools/import_gguf.py writes: tables, and which of them each layer has.
  std::vector<DeclaredRope> rope;   // [layers]; empty: the files do not say
  std::vector<TokenId> end_tokens;  // "eos_token_id" of both files, in that order, each once
};

// Throws carousel::Error (kModel, field "model") for a file that is there and cannot be read as
// JSON, or whose values are of the wrong kind; the message names the file.
DeclaredConfig ReadDeclaredConfig(const std::filesystem::path& directory);

// Reads directory/<stem>.xml with its .bin. Throws carousel::Error (kModel, field `field`) when the
// folder or a file is missing, truncated or not an IR; the message names the path and the mend.
std::shared_ptr<ov::Model> ReadIr(ov::Core& core, const std::filesystem::path& directory,
                                  const std::string& stem, const std::string& field);

// One line of at most 200 bytes out of an OpenVINO exception's ten.
std::string BriefReason(const std::exception& error);

}  // namespace carousel
