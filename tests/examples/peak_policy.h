// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "eviction/registry.h"

namespace carousel {

PolicyEntry PeakPolicy();

}  // namespace carousel
