// SPDX-License-Identifier: Apache-2.0
// Which cache the kernels fetch into what they read soon. The second level, as a rule: a core has
// few places for lines on their way into the first one. Where it has more, the first is faster. By
// measurement of each kind of core (docs/decisions/0012).
#pragma once

namespace carousel {

// Whether this CPU is one of those that fetch into the first level: AMD's family 26 (Zen 5).
bool FetchesIntoFirstLevel();

}  // namespace carousel
