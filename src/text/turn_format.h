// SPDX-License-Identifier: Apache-2.0
// A chat template reduced to the text before and after each role's message
// (tools/prepare_model.py).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "text/prompt_part.h"

namespace carousel {

// Renders what each user turn adds to a running conversation. What is already in the cache is never
// rendered again: an endless chat has no beginning to go back to.
class TurnFormat {
 public:
  static constexpr std::string_view kFileName = "turn_format.json";

  // Reads `model_dir`/turn_format.json. Throws carousel::Error (kModel, field "turn_format.json")
  // when the file is missing or damaged. That the template could not be reduced is no error here:
  // see reducible().
  static TurnFormat Load(const std::filesystem::path& model_dir);
  // The same of the file's text.
  static TurnFormat Parse(std::string_view json);

  bool reducible() const { return reducible_; }
  // Why not, as the tool that tried it says; empty if reducible().
  const std::string& reason() const { return reason_; }
  bool has_system() const { return system_.has_value(); }
  // The text by which the model ends its turn; empty when there is none.
  const std::string& end_of_turn() const { return end_of_turn_; }

  // The functions below CHECK reducible(). They give marks and contents apart, none of them empty,
  // no two marks side by side.

  // The conversation up to where the first answer begins. Throws carousel::Error (kInvalidArgument,
  // field "system") when there is a system message and the template has no place for one.
  PromptParts FirstTurn(const std::optional<std::string>& system, std::string_view user) const;
  // The part of it in front of the user's turn: the system message, or what stands for it. Throws
  // as FirstTurn.
  PromptParts Beginning(const std::optional<std::string>& system) const;
  // What follows an answer, up to where the next one begins. The end of the answer's turn is part
  // of it: the engine drops the end token that the model gave (Engine::Submit).
  PromptParts NextTurn(std::string_view user) const;

 private:
  struct Role {
    std::string before;
    std::string after;
  };

  void AddMessage(const Role& role, std::string_view content, PromptParts* parts) const;

  bool reducible_ = false;
  std::string reason_;
  std::string begin_;
  std::string begin_without_system_;
  std::optional<Role> system_;
  Role user_;
  Role assistant_;
  std::string generation_prompt_;
  std::string end_of_turn_;
  bool trim_ = false;  // the template strips white space around a message
};

}  // namespace carousel
