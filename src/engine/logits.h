// SPDX-License-Identifier: Apache-2.0
// Whole-vocabulary sums, vectorised and dispatched at run time.
#pragma once

#include <cstdint>
#include <span>

#include "carousel/types.h"

namespace carousel {

// log(sum(exp(logits))), without overflow. -infinity entries count as probability 0. Not empty.
double LogSumExp(std::span<const float> logits) noexcept;

// The first of the largest.
TokenId ArgMax(std::span<const float> logits) noexcept;

}  // namespace carousel
