// SPDX-License-Identifier: Apache-2.0
#include "engine/prompt_sharing.h"

#include <exception>
#include <memory>
#include <new>
#include <utility>

namespace carousel {
namespace {

std::int64_t TokensRead(const SequenceRun& run) {
  return run.sequence().tables().logical_length().value;
}

// Whether what one sequence stores can push out what another one has stored: under one limit, or on
// one disk.
bool SharesLimitedTier(const RecallConfig& recall) {
  return recall.blocks > 0 && (recall.limit_bytes > 0 || !recall.store_file.empty());
}

}  // namespace

std::optional<PrefixChain> ChainOfRequest(const PrefixIndex& index, const SequenceRun& run) {
  if (!index.keeps() || run.request().score_prompt) return std::nullopt;
  if (TokensRead(run) > 0 || !run.IsBeginningOfPrompt()) return std::nullopt;
  if (run.sequence().gathers_attention()) return std::nullopt;
  const EngineConfig& config = run.shared()->settings().config;
  // At the end, the votes hang on how long the prompt is.
  if (config.eviction && config.eviction->prompt_eviction != PromptEviction::kCapped)
    return std::nullopt;
  if (SharesLimitedTier(config.recall)) return std::nullopt;
  // A chunk that is cut at a block's boundary is not cut where it is the prompt's last.
  if (config.chunk_size % config.cache.block_size != 0) return std::nullopt;
  try {
    return PrefixIndex::ChainOf(run.shared(), run.request());
  } catch (const std::bad_alloc&) {
    return std::nullopt;  // the tokens are read
  }
}

std::int64_t GoOnFromCheckpoint(const PrefixChain& chain, PrefixIndex* index, SequenceRun* run) {
  const std::int64_t read = TokensRead(*run);
  const Sequence* found = index->Find(chain, run->request().prompt, read);
  if (found == nullptr) return 0;
  try {
    run->GoOnFrom(std::make_unique<Sequence>(*found));
  } catch (const std::exception&) {
    return 0;  // the tokens are read
  }
  return TokensRead(*run) - read;
}

bool KeepCheckpoint(const PrefixChain& chain, PrefixIndex* index, const SequenceRun& run) {
  const std::int64_t block_size = run.shared()->block_size();
  const std::int64_t read = TokensRead(run);
  if (!run.HasRequest() || !run.IsBeginningOfPrompt() || read % block_size != 0) return false;
  if (index->Has(chain, read / block_size)) return true;
  try {
    index->Add(chain, read / block_size, std::make_unique<Sequence>(run.sequence()));
  } catch (const std::exception&) {
    // Who comes later reads the tokens again.
  }
  return true;
}

std::uint64_t NextChunkOf(const PrefixChain& chain, const SequenceRun& run) {
  const std::int64_t block_size = run.shared()->block_size();
  const std::int64_t end = TokensRead(run) + run.NextTokens();
  if (end % block_size != 0 || end == std::ssize(run.request().prompt)) return 0;
  return chain.chain[static_cast<std::size_t>(end / block_size - 1)];
}

}  // namespace carousel
