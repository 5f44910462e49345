// SPDX-License-Identifier: Apache-2.0
// What holds of every setting, whichever there are: a new line of the table is tested by these.
#include "config/setting_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <variant>

#include "carousel/error.h"
#include "config/setting_value.h"

namespace carousel {
namespace {

// All structs, with what they hold where nobody sets anything.
struct Structs {
  EngineConfig engine;
  SamplingParams sampling;
  BeamParams beams;
  SettingsTarget target() { return {.engine = &engine, .sampling = &sampling, .beams = &beams}; }
};

// The setting that Validate refuses; empty: none.
std::string Refused(const Structs& structs) {
  try {
    Validate(structs.engine);
    Validate(structs.sampling);
    Validate(structs.beams);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_FALSE(error.problem().empty());
    return error.field();
  }
  return "";
}

std::string RefusedWith(const Setting& setting, const SettingValue& value) {
  Structs structs;
  SetValue(setting, value, structs.target());
  return Refused(structs);
}

// A value that is not the default.
SettingValue Another(const Setting& setting) {
  const SettingValue value = DefaultOf(setting);
  if (const auto* choice = std::get_if<Choice>(&setting.place))
    return std::string(choice->names[choice->names[0] == std::get<std::string>(value) ? 1 : 0]);
  if (const auto* whole = std::get_if<std::int64_t>(&value)) return *whole + 1;
  if (const auto* seed = std::get_if<std::uint64_t>(&value)) return *seed + 1;
  if (const auto* real = std::get_if<double>(&value)) return *real / 2 + 0.25;
  if (std::holds_alternative<std::string>(value)) return std::string("another");
  return std::vector<std::int64_t>{672, 704};
}

TEST(SettingTable, NamesAndFlagsAreUnique) {
  std::set<std::string> names;
  std::set<std::string> flags;
  for (const Setting& setting : SettingTable()) {
    EXPECT_TRUE(names.emplace(setting.name).second) << setting.name;
    EXPECT_EQ(FindSetting(setting.name), &setting);
    std::string_view left = setting.flag;
    while (!left.empty()) {
      const std::size_t end = std::min(left.find(','), left.size());
      const std::string flag(left.substr(0, end));
      EXPECT_TRUE(flag.starts_with("--") && flag.size() > 2) << flag;
      EXPECT_TRUE(flags.insert(flag).second) << flag;
      left.remove_prefix(std::min(end + 1, left.size()));
    }
  }
  EXPECT_EQ(FindSetting("start_sizes"), nullptr);
}

TEST(SettingTable, EachHasHelpInOneSentence) {
  for (const Setting& setting : SettingTable()) {
    EXPECT_FALSE(setting.help.empty()) << setting.name;
    EXPECT_FALSE(setting.help.ends_with('.')) << setting.name;
    EXPECT_FALSE(setting.default_text.empty()) << setting.name;
    EXPECT_EQ(setting.flag.empty(), setting.value_name.empty()) << setting.name;
    EXPECT_TRUE(!setting.common || !setting.flag.empty()) << setting.name;
  }
}

TEST(SettingTable, EachReadsItsOwnDefaultAsItIsPrinted) {
  for (const Setting& setting : SettingTable()) {
    const SettingValue value = DefaultOf(setting);
    const std::optional<std::string> text = TextOf(setting, value);
    EXPECT_EQ(text.has_value(), !setting.zero_is_unset) << setting.name;
    if (text) {
      EXPECT_EQ(ReadValue(setting, *text), value) << setting.name;
    }
    const SettingValue other = Another(setting);
    EXPECT_EQ(ReadValue(setting, *TextOf(setting, other)), other) << setting.name;
  }
}

// So no two lines name the same member.
TEST(SettingTable, EachIsAPlaceOfItsOwn) {
  for (const Setting& setting : SettingTable()) {
    Structs structs;
    const SettingValue other = Another(setting);
    ASSERT_NE(other, DefaultOf(setting)) << setting.name;
    SetValue(setting, other, structs.target());
    for (const Setting& beside : SettingTable()) {
      EXPECT_EQ(ValueOf(beside, structs.target().view()),
                &beside == &setting ? other : DefaultOf(beside))
          << beside.name << " beside " << setting.name;
    }
  }
}

TEST(SettingTable, WhereAStructIsNotThereItsSettingsAreNot) {
  EngineConfig engine;
  engine.eviction.reset();
  for (const Setting& setting : SettingTable()) {
    EXPECT_EQ(ValueOf(setting, {}), std::nullopt) << setting.name;
    EXPECT_EQ(ValueOf(setting, {.engine = &engine}).has_value(),
              setting.group == SettingGroup::kRecall || setting.group == SettingGroup::kCache ||
                  setting.group == SettingGroup::kScheduling)
        << setting.name;
  }
}

TEST(SettingTable, RangesAreWhatValidateAccepts) {
  for (const Setting& setting : SettingTable()) {
    EXPECT_EQ(RefusedWith(setting, DefaultOf(setting)), "");
    if (const auto* range = std::get_if<WholeRange>(&setting.range)) {
      const auto value = std::get<std::int64_t>(DefaultOf(setting));
      EXPECT_TRUE(value >= range->least && value <= range->most) << setting.name;
      EXPECT_EQ(RefusedWith(setting, range->least - 1), setting.name);
      if (range->most < std::numeric_limits<std::int64_t>::max()) {
        EXPECT_EQ(RefusedWith(setting, range->most + 1), setting.name);
      }
      if (setting.depends) continue;
      EXPECT_EQ(RefusedWith(setting, range->least), "") << setting.name;
      EXPECT_EQ(RefusedWith(setting, range->most), "") << setting.name;
    } else if (const auto* real = std::get_if<RealRange>(&setting.range)) {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      const double below = std::nextafter(real->least, -kInfinity);
      EXPECT_EQ(RefusedWith(setting, below), setting.name);
      EXPECT_EQ(RefusedWith(setting, std::nextafter(real->most, kInfinity)), setting.name);
      EXPECT_EQ(RefusedWith(setting, std::nan("")), setting.name);
      EXPECT_EQ(RefusedWith(setting, real->least), real->open ? setting.name : "");
      EXPECT_EQ(RefusedWith(setting, real->most), "") << setting.name;
    } else {
      EXPECT_FALSE(std::holds_alternative<double>(DefaultOf(setting))) << setting.name;
      EXPECT_FALSE(std::holds_alternative<std::int64_t>(DefaultOf(setting))) << setting.name;
    }
  }
}

std::string ProblemOf(const char* name, std::string_view text) {
  try {
    ReadValue(*FindSetting(name), text);
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), name);
    return error.problem();
  }
  return "";
}

TEST(ReadValue, SaysWhatIsWrong) {
  EXPECT_EQ(ProblemOf("top_k", "1.5"), "\"1.5\" is not a whole number");
  EXPECT_EQ(ProblemOf("top_k", ""), "\"\" is not a whole number");
  EXPECT_EQ(ProblemOf("seed", "-1"), "\"-1\" is not a whole number from 0 to 2^64 - 1");
  EXPECT_EQ(ProblemOf("top_p", "inf"), "\"inf\" is not a number");
  EXPECT_EQ(ProblemOf("rotation", "left"), "\"left\" is not one of auto, query, keys, off");
  EXPECT_EQ(ProblemOf("limit_bytes", "12Q"), "\"12Q\" is not a size; write bytes, 64M or 1G");
  EXPECT_EQ(ProblemOf("limit_bytes", "0"), "\"0\" is not a size; write bytes, 64M or 1G");
  EXPECT_EQ(ProblemOf("limit_bytes", "99999999999G"), "99999999999G is too large");
  EXPECT_EQ(ProblemOf("limit_tokens", "0"), "0 is too small; the least is 1");
}

TEST(ReadValue, ReadsSizesInAnyUnit) {
  const Setting& limit = *FindSetting("limit_bytes");
  for (const auto& [text, bytes] : {std::pair<const char*, std::int64_t>{"4096", 4096},
                                    {"64k", 64 << 10},
                                    {"64M", 64 << 20},
                                    {"1G", 1 << 30},
                                    {"2MiB", 2 << 20},
                                    {"512B", 512}})
    EXPECT_EQ(ReadValue(limit, text), SettingValue(bytes)) << text;
}

TEST(CheckRanges, SaysTheRangeAndTheMend) {
  const auto problem = [](const char* name, const SettingValue& value) -> std::string {
    Structs structs;
    SetValue(*FindSetting(name), value, structs.target());
    try {
      Validate(structs.engine);
      Validate(structs.sampling);
    } catch (const Error& error) {
      return error.problem();
    }
    return "";
  };
  EXPECT_EQ(problem("snapkv_window", std::int64_t{-1}), "-1 is too small; the least is 0");
  EXPECT_EQ(problem("rkv_window", std::int64_t{0}),
            "0 is out of range; use a number from 1 to 1024");
  EXPECT_EQ(problem("rkv_attention_mass", 2.0), "2 is outside 0 to 1; use 0.9");
  EXPECT_EQ(problem("budget_floor", -0.5), "-0.5 is outside 0 to 1; use 0.2");
  EXPECT_EQ(problem("budget_slope", 0.5), "0.5 is outside 1 to 1000000; use 20");
  EXPECT_EQ(problem("recall_gain", 2.0), "2 is outside 0 to 1; use 0.01");
  EXPECT_EQ(problem("recall_promotion", -1.0), "-1 is outside 0 to 1000000; use 2, or 0 for never");
  EXPECT_EQ(problem("temperature", -1.0), "-1 is outside [0, 100]; use a number between them");
  EXPECT_EQ(problem("top_k", std::int64_t{-1}),
            "-1 is outside [0, 1000000000]; use a number between them");
  EXPECT_EQ(problem("top_p", 0.0), "0 is outside (0, 1]; use a number above 0 and up to 1");
}

}  // namespace
}  // namespace carousel
