// SPDX-License-Identifier: Apache-2.0
// Space of a file that is there before it is written to, so that a full disk is an error and not a
// signal or a loss later.
#pragma once

#include <cstddef>
#include <string>

namespace carousel {

// Takes [offset, offset + bytes) of the file's disk. 0, or the error's number: then some of the
// space may have been taken. Sends no signal where a limit on file sizes is met.
int TakeDiskSpace(int file, std::size_t offset, std::size_t bytes) noexcept;

// What the system says of an error's number.
std::string Reason(int error);

}  // namespace carousel
