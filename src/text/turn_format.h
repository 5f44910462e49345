// SPDX-License-Identifier: Apache-2.0
// A chat template reduced to the text before and after each role's message
// (tools/turn_format.py says how, and what it leaves out).
#pragma once

#include <ctime>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/date_layout.h"
#include "text/prompt_part.h"

namespace carousel {

// Renders what each user turn adds to a running conversation. What is already in the cache is never
// rendered again: an endless chat has no beginning to go back to.
class TurnFormat {
 public:
  static constexpr std::string_view kFileName = "turn_format.json";
  // Where the date comes from that some templates write in front of the first turn.
  using DateSource = std::function<std::tm()>;

  // Reads `model_dir`/turn_format.json. Throws carousel::Error (kModel, field "turn_format.json")
  // when the file is missing or damaged. That the template could not be reduced is no error here:
  // see reducible().
  static TurnFormat Load(const std::filesystem::path& model_dir);
  // The same of the file's text.
  static TurnFormat Parse(std::string_view json, DateSource date = LocalDate);

  bool reducible() const { return reducible_; }
  // Why not, as the tool that tried it says; empty if reducible().
  const std::string& reason() const { return reason_; }
  bool has_system() const { return system_.has_value(); }
  // The text by which the model ends its turn; empty when there is none.
  const std::string& end_of_turn() const { return end_of_turn_; }

  // The functions below CHECK reducible(). They give marks and contents apart, none of them empty,
  // no two marks side by side. They throw carousel::Error (kInvalidArgument, field "system" or
  // "message") for a content that the template would do something else with than to write it.

  // The conversation up to where the first answer begins, with today's date. Throws as well when
  // there is a system message and the template has no place for one (field "system").
  PromptParts FirstTurn(const std::optional<std::string>& system, std::string_view user) const;
  // The part of it in front of the user's turn: the system message, or what stands for it. Throws
  // as FirstTurn.
  PromptParts Beginning(const std::optional<std::string>& system) const;
  // What follows an answer, up to where the next one begins. The end of the answer's turn is part
  // of it: the engine drops the end token that the model gave (SingleSequenceEngine::Submit).
  PromptParts NextTurn(std::string_view user) const;

 private:
  // Text with holes for dates.
  struct MarkPart {
    std::string text;  // of a date: its layout
    bool is_date = false;
  };
  using Mark = std::vector<MarkPart>;

  struct Role {
    Mark before;
    Mark after;
    // The template strips white space at these sides of a message.
    bool trims_left = false;
    bool trims_right = false;
    // The template writes a message of nothing but white space as it writes any other.
    bool takes_blank = true;
    std::vector<std::string> refused_words;  // none is empty
  };
  struct Reader;

  void CheckContent(const Role& role, std::string_view content, std::string_view field) const;
  void AddMark(const Mark& mark, PromptParts* parts) const;
  void AddContent(const Role& role, std::string_view content, PromptParts* parts) const;
  void AddUser(bool is_opened, std::string_view user, PromptParts* parts) const;

  DateSource date_;
  bool reducible_ = false;
  std::string reason_;
  Mark begin_without_system_;
  std::optional<Role> system_;
  bool system_opens_user_turn_ = false;  // its `after` has the first user's `before` in it
  Role user_;
  Mark assistant_after_;
  Mark generation_prompt_;
  std::string end_of_turn_;
};

}  // namespace carousel
