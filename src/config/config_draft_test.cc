// SPDX-License-Identifier: Apache-2.0
#include "config/config_draft.h"

#include <gtest/gtest.h>

#include "carousel/error.h"
#include "config/setting_table.h"
#include "config/setting_value.h"

namespace carousel {
namespace {

void Give(ConfigDraft* draft, const char* name, const char* text) {
  const Setting& setting = *FindSetting(name);
  SetValue(setting, ReadValue(setting, text), {.engine = &draft->config});
  draft->NoteGiven(setting);
}

TEST(ConfigDraft, WhereNothingIsGivenItIsTheProductsDefault) {
  const EngineConfig config = ConfigDraft().Finished();
  EXPECT_EQ(config.recall.blocks, kRecalledBlocks);
  EXPECT_TRUE(config.recall.yields);
  EXPECT_EQ(config.recall.limit_tokens, 16 * 672);
  EXPECT_TRUE(config.yields.block_size && config.yields.chunk_size && config.yields.start_size &&
              config.yields.recent_size && config.yields.max_cache_size);
  EXPECT_NO_THROW(Validate(DefaultEngineConfig()));
  EXPECT_EQ(DefaultEngineConfig().recall.limit_tokens, config.recall.limit_tokens);
  EXPECT_NO_THROW(Validate(ChatSampling()));
}

TEST(ConfigDraft, WhatIsGivenDoesNotYield) {
  for (const Setting& setting : SettingTable()) {
    if (setting.yields == nullptr) continue;
    ConfigDraft draft;
    EXPECT_TRUE(draft.config.yields.*setting.yields) << setting.name;
    draft.NoteGiven(setting);
    EXPECT_FALSE(draft.config.yields.*setting.yields) << setting.name;
  }
  ConfigDraft draft;
  Give(&draft, "recall_blocks", "3");
  EXPECT_FALSE(draft.Finished().recall.yields);
  EXPECT_EQ(draft.Finished().recall.blocks, 3);
}

TEST(ConfigDraft, SizesThatNobodyGaveAreWholeBlocks) {
  ConfigDraft draft;
  Give(&draft, "block_size", "48");
  const EngineConfig config = draft.Finished();
  EXPECT_EQ(config.eviction->start_size, 48);
  EXPECT_EQ(config.eviction->recent_size, 144);
  EXPECT_EQ(config.eviction->max_cache_size, 672);
  Give(&draft, "recent_size", "128");
  EXPECT_THROW(draft.Finished(), Error);
}

TEST(ConfigDraft, RecallStoresAsManyCachesUnlessItIsTold) {
  ConfigDraft draft;
  Give(&draft, "max_cache_size", "512");
  EXPECT_EQ(draft.Finished().recall.limit_tokens, 16 * 512);
  ConfigDraft bytes = draft;
  Give(&bytes, "recall_limit", "1M");
  EXPECT_EQ(bytes.Finished().recall.limit_tokens, 0);
  ConfigDraft tokens = draft;
  Give(&tokens, "recall_limit_tokens", "0");
  EXPECT_EQ(tokens.Finished().recall.limit_tokens, 0);
}

TEST(ConfigDraft, NothingIsRecalledWhereAllIsKept) {
  ConfigDraft draft{.keeps_all = true};
  Give(&draft, "recall_blocks", "4");
  EXPECT_FALSE(draft.Finished().eviction.has_value());
  EXPECT_EQ(draft.Finished().recall.blocks, 0);
}

}  // namespace
}  // namespace carousel
