// SPDX-License-Identifier: Apache-2.0
// What the second tier is left as when memory or the disk refuses it something, at any point.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "cache/recall_store.h"
#include "cache/slab_source.h"
#include "carousel/error.h"
#include "testing/failing_memory.h"

namespace {

// What the system's calls do. Each is set by one test.
struct Faults {
  int fallocate_error = 0;
  int fallocate_times = 0;              // that the error comes
  bool fallocate_takes_half = false;    // before it fails
  off_t most_written = off_t{1} << 40;  // by pwrite, in bytes of the file
  int fdatasync_error = 0;
  int mmap_error = 0;
};
Faults faults;

int Fail(int error) {
  errno = error;
  return -1;
}

}  // namespace

// The linker puts these in the places of the library's calls.
extern "C" {
int __real_fallocate(int file, int mode, off_t offset, off_t bytes);
int __wrap_fallocate(int file, int mode, off_t offset, off_t bytes) {
  if (faults.fallocate_times == 0) return __real_fallocate(file, mode, offset, bytes);
  --faults.fallocate_times;
  if (faults.fallocate_takes_half) __real_fallocate(file, mode, offset, bytes / 2);
  return Fail(faults.fallocate_error);
}

ssize_t __real_pwrite(int file, const void* from, size_t bytes, off_t offset);
ssize_t __wrap_pwrite(int file, const void* from, size_t bytes, off_t offset) {
  if (offset >= faults.most_written) return Fail(EDQUOT);
  const auto left = static_cast<size_t>(faults.most_written - offset);
  return __real_pwrite(file, from, std::min(bytes, left), offset);
}

int __real_fdatasync(int file);
int __wrap_fdatasync(int file) {
  return faults.fdatasync_error != 0 ? Fail(faults.fdatasync_error) : __real_fdatasync(file);
}

void* __real_mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset);
void* __wrap_mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) {
  if (faults.mmap_error == 0) return __real_mmap(address, bytes, protection, flags, file, offset);
  errno = faults.mmap_error;
  return MAP_FAILED;
}
}

namespace carousel {
namespace {

using testing::buffers_left;
using testing::kNoEnd;
using testing::objects_left;

constexpr std::size_t kSlab = std::size_t{1} << 20;

std::string NewFile() {
  static int number = 0;
  return (std::filesystem::temp_directory_path() /
          ("carousel_allocation_" + std::to_string(getpid()) + "_" + std::to_string(number++)))
      .string();
}

// Of a file that has no name any more, through the process's open files.
struct stat StatusOf(const std::string& path) {
  struct stat status {};
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(entry.path(), error).string();
    if (target == path + " (deleted)" && stat(entry.path().c_str(), &status) == 0) return status;
  }
  ADD_FAILURE() << "no open file " << path;
  return status;
}

class FileSlabsTest : public ::testing::Test {
 protected:
  FileSlabsTest() : path_(NewFile()), slabs_(path_) { faults = {}; }
  ~FileSlabsTest() override { faults = {}; }

  struct stat Status() const {
    return StatusOf(path_);
  }
  // Takes a slab and writes all of it.
  std::byte* Take() {
    std::byte* slab = slabs_.Take(kSlab);
    std::memset(slab, 7, kSlab);
    return slab;
  }
  // What the disk gives up for it.
  std::int64_t DiskBytes() const { return Status().st_blocks * 512; }
  // The next slab is refused, costs nothing, and what is there stays.
  void ExpectRefused(const std::string& reason) {
    const std::byte* first = Take();
    const Faults wanted = faults_to_be_;
    const std::int64_t disk_bytes = DiskBytes();
    faults = wanted;
    try {
      slabs_.Take(kSlab);
      ADD_FAILURE() << "took what there is not";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kOutOfMemory);
      EXPECT_EQ(error.field(), "recall_store");
      EXPECT_NE(error.problem().find(reason), std::string::npos) << error.problem();
    }
    faults = {};
    EXPECT_EQ(slabs_.size(), kSlab);
    EXPECT_EQ(Status().st_size, static_cast<off_t>(kSlab));
    EXPECT_LE(DiskBytes(), disk_bytes);
    EXPECT_TRUE(std::all_of(first, first + kSlab, [](std::byte b) { return b == std::byte{7}; }));
    Take();
    EXPECT_EQ(slabs_.size(), 2 * kSlab);
  }

  std::string path_;
  FileSlabs slabs_;
  Faults faults_to_be_;
};

TEST_F(FileSlabsTest, AFullDiskGetsHalfASlabBack) {
  faults_to_be_ = {.fallocate_error = ENOSPC, .fallocate_times = 1, .fallocate_takes_half = true};
  ExpectRefused("No space left on device");
}

TEST_F(FileSlabsTest, AQuotaIsAFullDisk) {
  faults_to_be_ = {.fallocate_error = EDQUOT, .fallocate_times = 1};
  ExpectRefused("quota");
}

TEST_F(FileSlabsTest, ASignalMeanwhileIsNoFailure) {
  faults = {.fallocate_error = EINTR, .fallocate_times = 3};
  Take();
  EXPECT_EQ(faults.fallocate_times, 0);
  EXPECT_GE(DiskBytes(), static_cast<std::int64_t>(kSlab));
}

TEST_F(FileSlabsTest, WhereSpaceCannotBeSetAsideItIsWritten) {
  for (const int error : {EOPNOTSUPP, ENOSYS}) {
    faults = {.fallocate_error = error, .fallocate_times = 1};
    Take();
  }
  EXPECT_GE(DiskBytes(), static_cast<std::int64_t>(2 * kSlab));
  EXPECT_EQ(Status().st_size, static_cast<off_t>(2 * kSlab));
}

TEST_F(FileSlabsTest, ADiskThatFillsUpWhileItIsWrittenGetsItBack) {
  faults_to_be_ = {.fallocate_error = EOPNOTSUPP,
                   .fallocate_times = 1,
                   .most_written = static_cast<off_t>(kSlab + kSlab / 2 + 100)};
  ExpectRefused("quota");
}

TEST_F(FileSlabsTest, ADiskThatSaysSoAtTheEndGetsItBack) {
  faults_to_be_ = {.fallocate_error = EOPNOTSUPP, .fallocate_times = 1, .fdatasync_error = ENOSPC};
  ExpectRefused("No space left on device");
}

TEST_F(FileSlabsTest, AFullAddressSpaceTakesNoDiskSpace) {
  faults_to_be_ = {.mmap_error = ENOMEM};
  ExpectRefused("Cannot allocate memory");
}

TEST_F(FileSlabsTest, WithoutMemoryForItsListNothingIsTaken) {
  objects_left = 0;
  EXPECT_THROW(slabs_.Take(kSlab), std::bad_alloc);
  objects_left = kNoEnd;
  EXPECT_EQ(Status().st_size, 0);
}

TEST_F(FileSlabsTest, GivesASlabBack) {
  Take();
  slabs_.Take(kSlab);
  slabs_.GiveBack();
  EXPECT_EQ(slabs_.size(), kSlab);
  EXPECT_EQ(Status().st_size, static_cast<off_t>(kSlab));
}

// Whatever a pool lacks, it is left as it was, and so is the file.
TEST(BlockPool, GivesASlabBackThatItCannotList) {
  std::int64_t granted = 0;
  for (bool has_grown = false; !has_grown; ++granted) {
    const std::string path = NewFile();
    FileSlabs slabs(path);
    ByteBudget budget(0);
    BlockPool pool({.block_size = 16, .kv_heads = 1, .key_dim = 16, .value_dim = 16}, &budget,
                   &slabs);
    objects_left = granted;
    try {
      pool.GrowTo(1);
      has_grown = true;
    } catch (const std::bad_alloc&) {
    }
    objects_left = kNoEnd;
    EXPECT_EQ(pool.blocks_reserved() > 0, has_grown);
    EXPECT_EQ(budget.used() > 0, has_grown);
    EXPECT_EQ(StatusOf(path).st_size > 0, has_grown);
  }
  EXPECT_GE(granted, 5);  // the file's list, and three of the pool
}

constexpr std::int64_t kBlockSize = 16;
constexpr std::int64_t kDim = 128;
constexpr std::int64_t kDepth = 256;

BlockShape Shape(std::int64_t heads, KvType type) {
  return {.block_size = kBlockSize,
          .kv_heads = heads,
          .key_dim = kDim,
          .value_dim = kDim,
          .key_type = type,
          .value_type = type};
}

// How often a store was refused memory when each block that comes may have so much of it.
std::int64_t Refusals(std::atomic<std::int64_t>* left, std::int64_t granted,
                      const std::string& file) {
  constexpr std::int64_t kBlocks = 150;  // more than a slab, and than a tile of sketches
  const RecallLane lane{Shape(1, KvType::kInt8), kDepth};
  const RecallLane other{Shape(1, KvType::kF32), kDepth};
  RecallStore store({.lanes = {lane, lane, other, other}, .file = file});
  const BlockShape shape = Shape(2, KvType::kF16);
  AlignedBuffer<std::byte> data(shape.bytes());
  std::memset(data.data(), 0, data.size());
  const std::vector<float> sketches(2 * kDepth, 1.0F);
  for (std::int64_t i = 0; i < kBlocks; ++i) {
    const Position at{i * kBlockSize};
    *left = granted;
    for (const std::int64_t first_lane : {0, 2})
      store.Add(first_lane, at, at, {.data = data.data(), .shape = &shape}, sketches);
    *left = kNoEnd;
    store.CheckIntegrity();
  }
  for (std::int64_t each = 0; each < store.lanes(); ++each) {
    EXPECT_EQ(store.blocks(each) * kBlockSize + store.dropped_tokens(), kBlocks * kBlockSize);
  }
  EXPECT_EQ(store.refused_growths() > 0, store.dropped_tokens() > 0);
  EXPECT_EQ(store.refused_growths() > 0, store.limited_by() == "out of memory");
  return store.refused_growths();
}

TEST(RecallStore, KeepsWholeWhateverMemoryItLacks) {
  for (const bool in_file : {false, true}) {
    for (std::atomic<std::int64_t>* left : {&objects_left, &buffers_left}) {
      std::int64_t granted = 0;
      while (Refusals(left, granted, in_file ? NewFile() : "") > 0) ASSERT_LT(++granted, 100);
      EXPECT_GE(granted, 4);  // so many different points have been refused
    }
  }
}

}  // namespace
}  // namespace carousel
