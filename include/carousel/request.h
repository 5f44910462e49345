// SPDX-License-Identifier: Apache-2.0
// What is asked of an engine, and what a step of it gives.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "carousel/draft_proposer.h"
#include "carousel/types.h"

namespace carousel {

struct SamplingParams {
  double temperature = 0.0;  // 0: greedy (the first of the largest logits)
  std::int64_t top_k = 0;    // 0: off
  double top_p = 1.0;        // in (0, 1]; 1: off
  double min_p = 0.0;        // in [0, 1]; 0: off. Keeps p >= min_p * the largest p
  // > 0; 1: off. Divides or multiplies logits of tokens that were there before (Keskar et al.
  // 2019); tokens that end an answer are no repetition. See Request::penalise_prompt.
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;   // in [-2, 2]; subtracted once from tokens generated before
  double frequency_penalty = 0.0;  // in [-2, 2]; subtracted per occurrence among generated tokens
  // How many of the sequence's last tokens repetition_penalty looks at, those of earlier requests
  // among them; > 0.
  std::int64_t penalty_window = 1024;
  std::uint64_t seed = 0;
  std::int64_t logprobs =
      0;  // how many of the likeliest tokens to report with each new token; at most 20
  // Speculation (carousel/draft_proposer.h), which changes how fast an answer comes, not what it
  // is: most tokens that are guessed for one pass, in [0, 63]; 0: nothing is. Drafts get longer
  // while they are right, and pause where they are not.
  std::int64_t max_draft_tokens = 0;
  // Prompt lookup guesses where so many last tokens have stood together before; in [1, 32].
  std::int64_t draft_ngram = 3;
};

// The filters apply in this order: penalties, temperature, top_k, top_p (of what the k likeliest
// words have together), min_p. Throws carousel::Error that names the field, the value and the
// limit.
void Validate(const SamplingParams& params);

// Tokens [begin, end).
struct TokenSpan {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

struct Request {
  std::vector<TokenId> prompt;  // appended to what the sequence already holds
  // Parts of the prompt, by index into it, that are never evicted until Reset: a system prompt, a
  // document. Blocks are kept whole, so the neighbours in their first and last block stay as well.
  std::vector<TokenSpan> pinned;
  // Whether repetition_penalty looks at all of the sequence, or only at what the model itself has
  // said, in this answer and in those before. False for a turn of a conversation: neither a chat
  // template's marks nor what others said are the model's repetition, nor is the token that each
  // earlier answer ended with. With them penalised, answers do not end, since every turn before
  // ended with the same words.
  bool penalise_prompt = true;
  std::int64_t max_new_tokens = 0;  // 0: only read the prompt
  bool ignore_end_tokens = false;   // the model's own; stop_tokens end the answer all the same
  // These end the answer as the model's own end tokens do.
  std::vector<TokenId> stop_tokens;
  // Asked for each token of the answer as it becomes part of it, in order, once. True: the answer
  // ends with it (kStop), and unlike a stop token it stays in the sequence. For stop strings: one
  // pass can give several tokens, and this is asked before any is kept. Must not throw. Empty:
  // never.
  std::function<bool(TokenId)> stop_after;
  bool score_prompt =
      false;  // report each prompt token's negative log-likelihood (teacher forcing)
  // Not empty: these are the answer's tokens, one a step, whatever the model would say (teacher
  // forcing in decode). Their number takes the place of max_new_tokens; only the last can end a
  // turn.
  std::vector<TokenId> forced_answer;
  bool keep_logits = false;  // report what each of the answer's tokens was chosen from
  SamplingParams sampling;
  // Who guesses what the answer says next, for this request alone. null: prompt lookup.
  std::shared_ptr<DraftProposer> proposer;
  // Where many wait, the larger goes first; of equal ones the older.
  std::int64_t priority = 0;
  // After this the request ends at the next step, with kExpired, wherever it is. nullopt: never.
  std::optional<std::chrono::steady_clock::time_point> deadline;
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kExpired };
std::string_view Name(FinishReason value);  // "", "stop", "length", "cancelled", "expired"

struct TokenLogprob {
  TokenId token = 0;
  float logprob =
      0.0F;  // natural logarithm, of the model's distribution before temperature and filters
};

struct SampledToken {
  TokenId token = 0;
  float logprob = 0.0F;
  // params.logprobs entries, likeliest first; fewer where fewer words are possible.
  std::vector<TokenLogprob> top;
};

// Of one token of an answer, or of a chunk of a prompt.
struct StepResult {
  std::int64_t tokens_processed = 0;  // of the prompt or the last sampled token
  std::vector<double>
      negative_log_likelihood;          // nats, one per prompt token scored in this step, in order
  std::optional<SampledToken> sampled;  // at most one new token
  std::vector<float>
      logits;  // [vocabulary_size], of the model, for `sampled`; Request::keep_logits
  FinishReason finish_reason = FinishReason::kNone;
  std::int64_t evicted_tokens = 0;  // by this step, in the group that evicted most
  // Speculation, on the first token of a pass: how long its draft was, and how much of it was kept.
  std::int64_t drafted_tokens = 0;
  std::int64_t accepted_tokens = 0;
};

// What a block of the cache has received in one cache group since it was gathered.
struct BlockAttention {
  std::int64_t first_token = 0;      // its place in the stream
  std::int64_t tokens = 0;           // the last block may be partly filled
  std::int64_t counted_queries = 0;  // whose attention was added up
  double mass = 0.0;                 // softmax probability over the group's query heads; all tokens
  std::vector<double> token_mass;    // [tokens]
};

}  // namespace carousel
