// SPDX-License-Identifier: Apache-2.0
// Where tests find the default model. For targets that define CAROUSEL_SOURCE_DIR.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace carousel::testing {

// CAROUSEL_MODEL_DIR, or where `./run` puts it. May not exist: then a test is skipped.
inline std::filesystem::path DefaultModelDirectory() {
  const char* chosen = std::getenv("CAROUSEL_MODEL_DIR");
  if (chosen != nullptr && *chosen != '\0') return chosen;
  return std::filesystem::path(CAROUSEL_SOURCE_DIR) / "models" / "smollm2-135m-instruct";
}

}  // namespace carousel::testing
