// SPDX-License-Identifier: Apache-2.0
// Numbers for people.
#pragma once

#include <cstdint>
#include <string>

namespace carousel {

// 1234567 -> "1,234,567".
std::string Grouped(std::int64_t number);
// 333447168 -> "318 MB" (of 1024 * 1024), from 10 GB on in GB.
std::string Megabytes(std::int64_t bytes);

}  // namespace carousel
