// SPDX-License-Identifier: Apache-2.0
// What the JSON summaries of several commands have in common.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "carousel/single_sequence_engine.h"

namespace carousel {

// Adds the cache's figures and settings, the rotation and positions in force, the process's memory
// and the model's name to a summary.
void AddEngineFigures(const SingleSequenceEngine& engine, nlohmann::ordered_json* summary);
// The same of one of many sequences.
void AddEngineFigures(const SequenceMetrics& metrics, const EngineConfig& config,
                      const ModelSpec& model, nlohmann::ordered_json* summary);

}  // namespace carousel
