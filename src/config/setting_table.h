// SPDX-License-Identifier: Apache-2.0
// Every setting there is. A new one is a member of its struct and a line of the table: flags and
// their variables, JSON, ranges, the fuzzer and summaries have it from there.
#pragma once

#include <span>
#include <string_view>

#include "config/setting.h"

namespace carousel {

// In the order of the help, group by group.
std::span<const Setting> SettingTable();
// nullptr: there is none of that name.
const Setting* FindSetting(std::string_view name);

}  // namespace carousel
