// SPDX-License-Identifier: Apache-2.0
// Writing of which there is all or nothing.
#pragma once

#include <string_view>

namespace carousel {

// Writes `bytes` where the file stands. 0, or the error's number (a full disk): what had been
// written of them is then taken back, where the file is a regular one and nobody else appends.
int AppendWhole(int fd, std::string_view bytes);

bool IsRegularFile(int fd);

}  // namespace carousel
