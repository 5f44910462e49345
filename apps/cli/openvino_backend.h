// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "cli/backend.h"

namespace carousel {

// Models and tokenizers from OpenVINO IR folders.
std::unique_ptr<Backend> MakeOpenVinoBackend();

}  // namespace carousel
