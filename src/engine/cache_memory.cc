// SPDX-License-Identifier: Apache-2.0
#include "engine/cache_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "carousel/error.h"

namespace carousel {

RotationTable* CacheMemory::RotationOf(const LayerRope& rope, std::int64_t block_size) {
  auto table = std::find_if(rotation_tables_.begin(), rotation_tables_.end(), [&](const auto& has) {
    return has->rope() == rope && has->block_size() == block_size;
  });
  if (table == rotation_tables_.end()) {
    rotation_tables_.push_back(std::make_unique<RotationTable>(rope, block_size));
    table = std::prev(rotation_tables_.end());
  }
  return table->get();
}

TierPools* CacheMemory::TierOf(const RecallStoreOptions& options) {
  for (const Tier& tier : tiers_) {
    if (tier.options == options) return tier.pools.get();
    if (!options.file.empty() && tier.options.file == options.file) {
      throw Error(ErrorCode::kInvalidArgument, "recall_store",
                  fmt::format("{} holds the blocks of sequences with another block size, other "
                              "types or other limits; give these sequences a file of their own",
                              options.file));
    }
  }
  tiers_.push_back({.options = options, .pools = std::make_unique<TierPools>(options)});
  return tiers_.back().pools.get();
}

void CacheMemory::CheckIntegrity(const Holdings& holdings) const {
  pools_.CheckIntegrity(holdings);
  for (const Tier& tier : tiers_) tier.pools->CheckIntegrity(holdings);
}

}  // namespace carousel
