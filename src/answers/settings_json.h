// SPDX-License-Identifier: Apache-2.0
// Settings as members of a JSON object, each under its name: {"max_cache_size": 512, "budget":
// "uniform", "eviction": true, ...}. "eviction": false keeps every token.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "carousel/request.h"
#include "config/config_draft.h"
#include "config/setting.h"

namespace carousel {

// Adds the settings of a group, those whose struct is there.
void WriteSettings(SettingGroup group, SettingsView settings, nlohmann::ordered_json* object);

// What an object says of the engine, or of sampling; what it does not say stays. Throws
// carousel::Error (kInvalidArgument) that names the member, for one that is no such setting or
// whose value is of another type. Ranges are Validate's.
void ReadEngineSettings(const nlohmann::json& object, ConfigDraft* draft);
void ReadSamplingSettings(const nlohmann::json& object, SamplingParams* params);

}  // namespace carousel
