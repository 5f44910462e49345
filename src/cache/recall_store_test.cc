// SPDX-License-Identifier: Apache-2.0
// The second tier against a map that knows nothing of slots, slabs and tiles.
#include "cache/recall_store.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>

#include "cache/block_codec.h"
#include "carousel/error.h"
#include "testing/random_cases.h"

namespace carousel {
namespace {

constexpr std::int64_t kBlockSize = 16;
constexpr std::int64_t kDepth = 12;

BlockShape Shape(std::int64_t heads, std::int64_t dim, KvType type) {
  return {.block_size = kBlockSize,
          .kv_heads = heads,
          .key_dim = dim,
          .value_dim = dim + 2,
          .key_type = type,
          .value_type = type};
}

// A block of the cache with random keys and values.
class CachedBlock {
 public:
  CachedBlock(const BlockShape& shape, std::mt19937_64* generator)
      : shape_(shape), data_(shape.bytes()) {
    std::memset(data_.data(), 0, data_.size());
    std::normal_distribution<float> normal;
    std::vector<float> rows(static_cast<std::size_t>(kBlockSize * shape.value_dim));
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      for (float& x : rows) x = normal(*generator);
      CodecFor(shape.key_type)
          .WriteKeys(data_.data() + shape.key_offset(head), kBlockSize, shape.key_dim, 0,
                     kBlockSize, rows.data(), shape.key_dim);
      CodecFor(shape.value_type)
          .WriteValues(data_.data() + shape.value_offset(head), kBlockSize, shape.value_dim, 0,
                       kBlockSize, rows.data(), shape.value_dim);
    }
  }
  BlockHead head(std::int64_t head) const {
    return {.data = data_.data(), .shape = &shape_, .head = head};
  }

 private:
  BlockShape shape_;
  AlignedBuffer<std::byte> data_;
};

std::vector<float> Floats(const std::byte* block, const BlockShape& shape, std::int64_t head) {
  std::vector<float> keys(static_cast<std::size_t>(kBlockSize * shape.key_dim));
  std::vector<float> values(static_cast<std::size_t>(kBlockSize * shape.value_dim));
  CodecFor(shape.key_type)
      .ReadKeys(block + shape.key_offset(head), kBlockSize, shape.key_dim, keys.data());
  CodecFor(shape.value_type)
      .ReadValues(block + shape.value_offset(head), kBlockSize, shape.value_dim, values.data());
  keys.insert(keys.end(), values.begin(), values.end());
  return keys;
}

// What a slot's sketch reads back as.
std::vector<float> SketchOf(const RecallStore& store, std::int64_t lane, std::int64_t slot) {
  const SketchTiles tiles = store.sketches(lane);
  std::vector<float> tile(static_cast<std::size_t>(SketchTiles::kColumns * tiles.depth));
  CodecFor(SketchTiles::kType)
      .ReadKeys(tiles.tiles[static_cast<std::size_t>(slot / SketchTiles::kColumns)].data(),
                SketchTiles::kColumns, tiles.depth, tile.data());
  std::vector<float> sketch;
  for (std::int64_t i = 0; i < tiles.depth; ++i) {
    sketch.push_back(
        tile[static_cast<std::size_t>(i * SketchTiles::kColumns + slot % SketchTiles::kColumns)]);
  }
  return sketch;
}

std::vector<float> Sketch(std::mt19937_64* generator) {
  // Whole numbers of which the largest is 127: int8 holds them exactly.
  std::vector<float> sketch;
  for (std::int64_t i = 0; i < kDepth; ++i)
    sketch.push_back(static_cast<float>((*generator)() % 255) - 127.0F);
  sketch[(*generator)() % sketch.size()] = 127.0F;
  return sketch;
}

struct NaiveBlock {
  Position written;
  std::vector<float> floats;
  std::vector<float> sketch;
};

std::string NewFile() {
  static int number = 0;
  return (std::filesystem::temp_directory_path() /
          ("carousel_recall_" + std::to_string(getpid()) + "_" + std::to_string(number++)))
      .string();
}

// What the store reads back as a head of a block of another shape, [keys, values].
std::vector<float> ReadBack(RecallStore& store, std::int64_t lane, std::int64_t slot,
                            const BlockShape& shape, std::int64_t head) {
  AlignedBuffer<std::byte> block(shape.bytes());
  store.Read(lane, slot, shape, head, block.data());
  return Floats(block.data(), shape, head);
}

void ExpectSame(RecallStore& store, std::int64_t lane,
                const std::map<std::int64_t, NaiveBlock>& naive) {
  std::map<std::int64_t, bool> seen;
  const auto slots = store.slots(lane);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!slots[i].present()) continue;
    const auto slot = static_cast<std::int64_t>(i);
    const auto expected = naive.find(slots[i].logical.value);
    ASSERT_NE(expected, naive.end()) << slots[i].logical.value;
    EXPECT_TRUE(seen.emplace(slots[i].logical.value, true).second);
    EXPECT_EQ(slots[i].written, expected->second.written);
    EXPECT_EQ(Floats(store.data(lane, slot), store.shape(lane), 0), expected->second.floats);
    EXPECT_EQ(SketchOf(store, lane, slot), expected->second.sketch);
    EXPECT_EQ(store.Find(lane, slots[i].logical), slot);
    EXPECT_EQ(ReadBack(store, lane, slot, Shape(2, 8, KvType::kF32), 1), expected->second.floats);
  }
  EXPECT_EQ(store.Find(lane, Position{-1}), -1);
  EXPECT_EQ(store.Find(lane, Position{1 << 20}), -1);
  EXPECT_EQ(seen.size(), naive.size());
  EXPECT_EQ(store.blocks(lane), static_cast<std::int64_t>(naive.size()));
}

struct Case {
  KvType cached;
  KvType stored;
  std::int64_t limit_blocks;  // in each lane; 0: none
  bool file;
};

// Random additions, removals and clearings. The same seed does the same.
void Compare(const Case& c, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  const BlockShape cached = Shape(2, 8, c.cached);
  RecallStoreOptions options{
      .lanes = {{Shape(1, 8, c.stored), kDepth}, {Shape(1, 8, c.stored), kDepth}},
      .file = c.file ? NewFile() : ""};
  options.limit_bytes = c.limit_blocks * RecallStore({options.lanes, "", 0}).bytes_per_round();
  RecallStore store(options);
  EXPECT_FALSE(c.file && std::filesystem::exists(options.file));
  std::vector<std::map<std::int64_t, NaiveBlock>> naive(2);
  std::vector<std::int64_t> dropped(2, 0);
  std::int64_t next = 0;
  for (int step = 0; step < 300; ++step) {
    const auto lane = static_cast<std::int64_t>(generator() % 2);
    auto& blocks = naive[static_cast<std::size_t>(lane)];
    const auto action = generator() % 16;
    if (action == 0 && generator() % 4 == 0) {
      store.Clear();
      for (auto& each : naive) each.clear();
    } else if (action < 4 && !blocks.empty()) {
      const auto slots = store.slots(lane);
      std::size_t slot = generator() % slots.size();
      while (!slots[slot].present()) slot = (slot + 1) % slots.size();
      blocks.erase(slots[slot].logical.value);
      store.Remove(lane, static_cast<std::int64_t>(slot));
    } else {
      const CachedBlock block(cached, &generator);
      const auto head = static_cast<std::int64_t>(generator() % 2);
      // Not in the order of the stream, as evictions are not.
      const std::int64_t logical =
          (++next * 8 + static_cast<std::int64_t>(generator() % 8)) * kBlockSize % (1 << 20);
      if (blocks.contains(logical)) continue;
      const std::vector<float> sketch = Sketch(&generator);
      const Position written{static_cast<std::int64_t>(generator() % 100) * kBlockSize};
      store.Add(lane, written, Position{logical}, block.head(head), sketch);
      std::vector<float> floats = Floats(block.head(head).data, cached, head);
      if (c.cached != c.stored) {
        AlignedBuffer<std::byte> coded(Shape(1, 8, c.stored).bytes());
        const BlockShape shape = Shape(1, 8, c.stored);
        CodecFor(c.stored).RewriteKeys(coded.data() + shape.key_offset(0), kBlockSize, 8,
                                       floats.data());
        CodecFor(c.stored).WriteValues(coded.data() + shape.value_offset(0), kBlockSize, 10, 0,
                                       kBlockSize, floats.data() + kBlockSize * 8, 10);
        floats = Floats(coded.data(), shape, 0);
      }
      blocks[logical] = {written, floats, sketch};
      if (c.limit_blocks > 0 && static_cast<std::int64_t>(blocks.size()) > c.limit_blocks) {
        blocks.erase(blocks.begin());
        ++dropped[static_cast<std::size_t>(lane)];
      }
    }
    ExpectSame(store, lane, blocks);
    store.CheckIntegrity();
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_EQ(store.dropped_tokens(), std::max(dropped[0], dropped[1]) * kBlockSize);
  EXPECT_EQ(store.stored_tokens(),
            static_cast<std::int64_t>(std::max(naive[0].size(), naive[1].size())) * kBlockSize);
}

TEST(RecallStore, HoldsWhatANaiveMapHolds) {
  const Case cases[] = {
      {KvType::kF32, KvType::kF32, 0, false},  {KvType::kF16, KvType::kInt8, 0, false},
      {KvType::kF32, KvType::kInt4, 5, false}, {KvType::kInt8, KvType::kInt8, 7, true},
      {KvType::kBf16, KvType::kInt8, 1, true}, {KvType::kInt4, KvType::kInt4, 0, true}};
  std::uint64_t seed = 0;
  for (const Case& c : cases) {
    for (int i = 0; i < RandomCases(5); ++i) {
      SCOPED_TRACE(seed);
      Compare(c, ++seed);
      if (HasFailure()) return;
    }
  }
}

TEST(RecallStore, FileHoldsTheSameBitsAsMemory) {
  std::mt19937_64 generator(3);
  const BlockShape cached = Shape(3, 16, KvType::kF16);
  const std::vector<RecallLane> lanes = {{Shape(1, 16, KvType::kInt8), kDepth}};
  RecallStore memory({.lanes = lanes});
  RecallStore file({.lanes = lanes, .file = NewFile()});
  for (std::int64_t i = 0; i < 3000; ++i) {  // more than a slab
    const CachedBlock block(cached, &generator);
    const std::vector<float> sketch = Sketch(&generator);
    for (RecallStore* store : {&memory, &file}) {
      store->Add(0, Position{i * kBlockSize}, Position{i * kBlockSize}, block.head(i % 3), sketch);
    }
  }
  for (std::int64_t slot = 0; slot < 3000; ++slot) {
    // Plane by plane: what lies between them is never written.
    const BlockShape& shape = memory.shape(0);
    const std::byte* left = memory.data(0, slot);
    const std::byte* right = file.data(0, slot);
    ASSERT_EQ(std::memcmp(left, right, KeyPlaneBytes(shape.key_type, kBlockSize, shape.key_dim)),
              0);
    ASSERT_EQ(std::memcmp(left + shape.value_offset(0), right + shape.value_offset(0),
                          ValuePlaneBytes(shape.value_type, kBlockSize, shape.value_dim)),
              0);
  }
  EXPECT_EQ(memory.bytes(), file.bytes());
}

TEST(RecallStore, AFileThatExistsIsLeftAlone) {
  const std::string path = NewFile();
  std::ofstream(path) << "a letter";
  try {
    RecallStore({.lanes = {{Shape(1, 8, KvType::kInt8), kDepth}}, .file = path});
    FAIL() << "overwrote a file";
  } catch (const Error& error) {
    EXPECT_EQ(error.field(), "recall_store");
    EXPECT_NE(error.problem().find(path), std::string::npos);
  }
  std::string text;
  std::getline(std::ifstream(path), text);
  EXPECT_EQ(text, "a letter");
  std::filesystem::remove(path);
}

TEST(RecallStore, AFolderThatIsNotThereIsAnError) {
  EXPECT_THROW(RecallStore({.lanes = {{Shape(1, 8, KvType::kInt8), kDepth}},
                            .file = "/no/such/folder/file"}),
               Error);
}

TEST(RecallStore, ALimitBelowOneRoundIsAnError) {
  RecallStoreOptions options{.lanes = {{Shape(1, 8, KvType::kInt8), kDepth}}};
  const std::int64_t round = RecallStore(options).bytes_per_round();
  options.limit_bytes = round - 1;
  EXPECT_THROW(RecallStore{options}, Error);
  options.limit_bytes = round;
  EXPECT_NO_THROW(RecallStore{options});
}

TEST(RecallStore, TheSmallerOfTwoLimitsCounts) {
  std::mt19937_64 generator(7);
  const BlockShape shape = Shape(1, 8, KvType::kF32);
  const RecallStoreOptions free{.lanes = {{shape, kDepth}}};
  const std::int64_t round = RecallStore(free).bytes_per_round();
  for (const auto& [bytes, blocks] : {std::pair{3, 5}, {5, 3}, {0, 3}, {3, 0}}) {
    RecallStore store({.lanes = {{shape, kDepth}},
                       .file = "",
                       .limit_bytes = bytes * round,
                       .limit_blocks = blocks});
    for (std::int64_t i = 0; i < 8; ++i) {
      const CachedBlock block(shape, &generator);
      const Position at{i * kBlockSize};
      store.Add(0, at, at, block.head(0), Sketch(&generator));
    }
    EXPECT_EQ(store.blocks(0), 3) << bytes << " " << blocks;
    EXPECT_EQ(store.dropped_tokens(), 5 * kBlockSize);
  }
}

// A limit on the size of files, which stands for a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::int64_t bytes) {
    EXPECT_EQ(getrlimit(RLIMIT_FSIZE, &before_), 0);
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(bytes);
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

// Blocks of two layers of two heads each, in stream order, stored as an engine does: a layer's
// heads at once, one layer after the other.
class Stream {
 public:
  explicit Stream(RecallStore* store) : store_(store) {}
  void Add(std::int64_t blocks) {
    for (std::int64_t i = 0; i < blocks; ++i, ++next_) {
      for (const std::int64_t first_lane : {0, 2}) {
        std::vector<float> sketches = Sketch(&generator_);
        const std::vector<float> second = Sketch(&generator_);
        sketches.insert(sketches.end(), second.begin(), second.end());
        const Position at{next_ * kBlockSize};
        store_->Add(first_lane, at, at, block_.head(0), sketches);
      }
    }
  }
  std::int64_t added() const { return next_; }

  // The newest `blocks` blocks in every lane, each with what was stored.
  void ExpectNewest(std::int64_t blocks) const {
    store_->CheckIntegrity();
    for (std::int64_t lane = 0; lane < 4; ++lane) {
      const auto order = store_->in_order(lane);
      ASSERT_EQ(std::ssize(order), blocks) << "lane " << lane;
      const std::vector<float> expected = Floats(block_.head(0).data, shape_, lane % 2);
      for (std::int64_t i = 0; i < blocks; ++i) {
        const std::int64_t slot = order[static_cast<std::size_t>(i)];
        EXPECT_EQ(store_->slots(lane)[static_cast<std::size_t>(slot)].logical,
                  Position{(next_ - blocks + i) * kBlockSize});
        ASSERT_EQ(Floats(store_->data(lane, slot), store_->shape(lane), 0), expected);
      }
    }
  }

 private:
  static constexpr std::int64_t kDim = 128;
  RecallStore* store_;
  BlockShape shape_ = Shape(2, kDim, KvType::kF32);
  std::mt19937_64 generator_{5};
  CachedBlock block_{shape_, &generator_};
  std::int64_t next_ = 0;
};

// Four lanes, of two shapes where `mixed`: of a block they take 16 KB each, or the last two 4 KB.
RecallStoreOptions FourLanes(bool mixed = false) {
  const RecallLane whole{Shape(1, 128, KvType::kF32), kDepth};
  const RecallLane small{Shape(1, 128, mixed ? KvType::kInt8 : KvType::kF32), kDepth};
  return {.lanes = {whole, whole, small, small}, .file = NewFile()};
}

TEST(RecallStore, AFullDiskIsALimitForAllLanesAlike) {
  RecallStore store(FourLanes());
  Stream stream(&store);
  {
    const FileSizeLimit limit(std::int64_t{3} << 20);
    stream.Add(200);
  }
  // 3 MB, the last of them in a smaller slab.
  const std::int64_t fit = store.blocks(0);
  EXPECT_EQ(fit, (std::int64_t{3} << 20) / 4 / static_cast<std::int64_t>(store.shape(0).bytes()));
  stream.ExpectNewest(fit);
  EXPECT_EQ(store.dropped_tokens(), (200 - fit) * kBlockSize);
  EXPECT_GE(store.refused_growths(), 2);  // not every time
  EXPECT_LE(store.refused_growths(), 200 / fit + 1);
  EXPECT_NE(store.limited_by().find("File too large"), std::string::npos) << store.limited_by();
  EXPECT_NE(store.limited_by().find("carousel_recall_"), std::string::npos) << store.limited_by();
}

TEST(RecallStore, GrowsAgainWhereSpaceComesBack) {
  RecallStore store(FourLanes());
  Stream stream(&store);
  {
    const FileSizeLimit limit(std::int64_t{3} << 20);
    stream.Add(100);
  }
  const std::int64_t refused = store.refused_growths();
  const std::int64_t fit = store.blocks(0);
  stream.Add(3 * fit);
  EXPECT_GT(store.blocks(0), 2 * fit);
  stream.ExpectNewest(store.blocks(0));
  EXPECT_EQ(store.refused_growths(), refused);
}

TEST(RecallStore, WithoutAnySpaceNothingIsStored) {
  for (const bool mixed : {false, true}) {
    RecallStore store(FourLanes(mixed));
    Stream stream(&store);
    {
      // One kind of lanes would have room where lanes differ.
      const FileSizeLimit limit(mixed ? std::int64_t{40} << 10 : 4096);
      stream.Add(20);
    }
    EXPECT_EQ(store.stored_tokens(), 0);
    EXPECT_EQ(store.dropped_tokens(), 20 * kBlockSize);
    EXPECT_GE(store.refused_growths(), 1);
    stream.Add(40);
    EXPECT_GE(store.blocks(0), 20);
    EXPECT_EQ(store.blocks(0), store.blocks(3));
  }
}

TEST(RecallStore, LanesOfDifferentSizesShareAFullDisk) {
  RecallStore store(FourLanes(true));
  Stream stream(&store);
  const FileSizeLimit limit(std::int64_t{7} << 20);
  stream.Add(400);
  EXPECT_GT(store.blocks(0), 100);
  for (std::int64_t lane = 1; lane < 4; ++lane) EXPECT_EQ(store.blocks(lane), store.blocks(0));
}

TEST(RecallStore, ALimitBelowTheDisksStaysSilent) {
  RecallStoreOptions options = FourLanes();
  options.limit_blocks = 10;
  RecallStore store(options);
  Stream stream(&store);
  const FileSizeLimit limit(std::int64_t{3} << 20);
  stream.Add(100);
  stream.ExpectNewest(10);
  EXPECT_EQ(store.refused_growths(), 0);
  EXPECT_EQ(store.limited_by(), "");
}

// Sequences share memory and limits, and hold what is theirs.
TEST(RecallStore, TwoOfThemShareOneTier) {
  const BlockShape shape = Shape(1, 8, KvType::kInt8);
  RecallStoreOptions options{.lanes = {{shape, kDepth}, {shape, kDepth}}};
  options.limit_bytes = 10 * RecallStore(options).bytes_per_round();
  TierPools pools(options);
  const std::vector<float> sketches(2 * kDepth, 0.5F);
  BlockShape both = shape;
  both.kv_heads = 2;
  AlignedBuffer<std::byte> pair(both.bytes());
  std::memset(pair.data(), 0, pair.size());
  const auto add = [&](RecallStore* store, std::int64_t block) {
    const Position at{block * shape.block_size};
    store->Add(0, at, at, {.data = pair.data(), .shape = &both}, sketches);
    store->CheckIntegrity();
  };
  RecallStore first(&pools);
  {
    RecallStore second(&pools);
    for (std::int64_t block = 0; block < 4; ++block) add(&first, block);
    for (std::int64_t block = 100; block < 120; ++block) add(&second, block);
    EXPECT_EQ(first.blocks(0), 4);
    EXPECT_GE(second.blocks(0), 1);
    EXPECT_LE(first.blocks(1) + second.blocks(1), 10);
    EXPECT_EQ(second.Find(0, Position{0}), -1);
    EXPECT_GE(first.Find(1, Position{0}), 0);
  }
  // What the second held is free again.
  for (std::int64_t block = 4; block < 20; ++block) add(&first, block);
  EXPECT_EQ(first.blocks(0), 10);
}

}  // namespace
}  // namespace carousel
