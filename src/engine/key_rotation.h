// SPDX-License-Identifier: Apache-2.0
// Key rotation, openvino.genai's way: after an eviction the keys of every block that has moved are
// rewritten where they lie, so that no query has to turn.
#pragma once

#include <cstdint>

#include "cache/block_table.h"
#include "engine/block_access.h"
#include "engine/shared_cache.h"

namespace carousel {

// Of one sequence.
class KeyRotation {
 public:
  // Rewrites the keys of every block whose shift is not 0, and tells `tables`. Returns how many
  // tokens' keys were rewritten, over all groups. Codes that are not f32 are rounded once more each
  // time. After SequenceTables::BeginStep; rotation tables reach as far as the shifts.
  std::int64_t Apply(SharedCache* shared, SequenceTables* tables, BlockAccess* blocks);

  // How far one rewriting moves keys, as |rounded - rotated| / |rotated| over all full blocks
  // rewritten so far (root mean squares). 0 when none was, and in f32.
  double requantisation_error() const;

 private:
  double squares_ = 0.0;        // of all keys that were rewritten
  double error_squares_ = 0.0;  // of what rounding them again did
};

}  // namespace carousel
