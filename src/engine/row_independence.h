// SPDX-License-Identifier: Apache-2.0
// Whether what a model computes for a row hangs on that row alone, as it must where answers are to
// be the same bit for bit whoever runs beside them.
#pragma once

#include <cstdint>

#include "carousel/model.h"

namespace carousel {

// How many rows such answers' passes always have, padding included. As many answers share a pass.
// Fewer cost those less that run alone, more cost those less that are many (decision 23). No answer
// has more rows in a step: it guesses that many ahead at most.
inline constexpr std::int64_t kInvariantRows = 4;

// Runs the model a few times, always in kInvariantRows rows: the same tokens in other rows, beside
// other tokens and beside padding. Each token's context is itself. Throws carousel::Error
// (kInvalidArgument, "batch_invariant") that names the layer where a query, a key, a value or a
// logit of a token is not the same in every bit. What these few passes do not show it cannot find.
void RequireIndependentRows(Model& model);

}  // namespace carousel
