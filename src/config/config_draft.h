// SPDX-License-Identifier: Apache-2.0
// A configuration while its settings are given one by one, by flags or as JSON. What nobody gives
// follows from what somebody gave.
#pragma once

#include "carousel/config.h"
#include "carousel/defaults.h"
#include "config/setting.h"

namespace carousel {

struct ConfigDraft {
  EngineConfig config = DefaultEngineConfig();  // its eviction stays set
  bool keeps_all = false;                       // nothing is evicted
  bool has_recall_limit_tokens = false;         // it was given

  // `setting` of the engine was given, and `config` holds it.
  void NoteGiven(const Setting& setting);
  // Sizes that nobody gave are whole blocks, and recall's limit goes with the cache's size. Throws
  // carousel::Error for what Validate refuses.
  EngineConfig Finished() const;
};

}  // namespace carousel
