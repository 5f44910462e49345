// SPDX-License-Identifier: Apache-2.0
#include "measure/machine_speed.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "measure/machine_speed.cc"
#include <hwy/foreach_target.h>
// Highway's own header comes after foreach_target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace carousel {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Reads `count` words, a multiple of 256, and returns their sum so that the reading is not left
// out.
std::uint32_t ReadWords(const std::uint32_t* from, std::size_t count) {
  const hn::ScalableTag<std::uint32_t> full;
  const std::size_t lanes = hn::Lanes(full);
  auto a = hn::Zero(full);
  auto b = a;
  auto c = a;
  auto d = a;
  for (std::size_t i = 0; i < count; i += 4 * lanes) {
    a = hn::Add(a, hn::Load(full, from + i));
    b = hn::Add(b, hn::Load(full, from + i + lanes));
    c = hn::Add(c, hn::Load(full, from + i + 2 * lanes));
    d = hn::Add(d, hn::Load(full, from + i + 3 * lanes));
  }
  // Not SumOfLanes: GCC sums 512 bits as signed numbers, which may not overflow.
  std::uint32_t sums[hn::MaxLanes(full)];
  hn::StoreU(hn::Add(hn::Add(a, b), hn::Add(c, d)), full, sums);
  std::uint32_t total = 0;
  for (std::size_t i = 0; i < lanes; ++i) total += sums[i];
  return total;
}

// Twelve chains of multiply-adds that wait for nobody but themselves: more than any core has units
// times their latency, and as many as leave AVX2 registers for the factors.
float MultiplyAdds(std::int64_t steps, float factor, float addend) {
  const hn::ScalableTag<float> full;
  const auto f = hn::Set(full, factor);
  const auto s = hn::Set(full, addend);
  auto a = hn::Set(full, 0.0F), b = hn::Set(full, 0.1F), c = hn::Set(full, 0.2F);
  auto d = hn::Set(full, 0.3F), e = hn::Set(full, 0.4F), g = hn::Set(full, 0.5F);
  auto h = hn::Set(full, 0.6F), i = hn::Set(full, 0.7F), j = hn::Set(full, 0.8F);
  auto k = hn::Set(full, 0.9F), l = hn::Set(full, 1.0F), m = hn::Set(full, 1.1F);
  for (std::int64_t step = 0; step < steps; ++step) {
    a = hn::MulAdd(a, f, s);
    b = hn::MulAdd(b, f, s);
    c = hn::MulAdd(c, f, s);
    d = hn::MulAdd(d, f, s);
    e = hn::MulAdd(e, f, s);
    g = hn::MulAdd(g, f, s);
    h = hn::MulAdd(h, f, s);
    i = hn::MulAdd(i, f, s);
    j = hn::MulAdd(j, f, s);
    k = hn::MulAdd(k, f, s);
    l = hn::MulAdd(l, f, s);
    m = hn::MulAdd(m, f, s);
  }
  const auto abcd = hn::Add(hn::Add(a, b), hn::Add(c, d));
  const auto eghi = hn::Add(hn::Add(e, g), hn::Add(h, i));
  const auto jklm = hn::Add(hn::Add(j, k), hn::Add(l, m));
  return hn::GetLane(hn::SumOfLanes(full, hn::Add(hn::Add(abcd, eghi), jklm)));
}

// Of one step of MultiplyAdds.
double FlopsOfStep() {
  return 12.0 * 2.0 * static_cast<double>(hn::Lanes(hn::ScalableTag<float>()));
}

const char* NameOfTarget() { return hwy::TargetName(HWY_TARGET); }

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace carousel
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace carousel {

HWY_EXPORT(ReadWords);
HWY_EXPORT(MultiplyAdds);
HWY_EXPORT(FlopsOfStep);
HWY_EXPORT(NameOfTarget);

namespace {

namespace fs = std::filesystem;

// Long enough that what disturbs one pass does not disturb all.
constexpr double kSecondsOfPasses = 0.5;
// Tasks per thread, so that a thread that starts late leaves its share to the others.
constexpr std::int64_t kTasksPerThread = 8;
// What parts of a read are multiples of; the loop reads a quarter of it at once.
constexpr std::int64_t kPageBytes = 4096;

// The shortest of many runs.
double LeastSeconds(const std::function<void()>& run) {
  double least = 1e9;
  const auto first = Clock::now();
  while (SecondsSince(first) < kSecondsOfPasses) {
    const auto begin = Clock::now();
    run();
    least = std::min(least, SecondsSince(begin));
  }
  return least;
}

double MeasureMemory(std::int64_t cache_bytes) {
  constexpr std::int64_t kLeastBytes = std::int64_t{256} << 20;
  const std::int64_t bytes = std::max(kLeastBytes, 8 * cache_bytes);
  AlignedBuffer<std::byte> buffer(static_cast<std::size_t>(bytes));
  // Written first: pages that nobody has written are all the same one.
  ParallelFor(bytes / kPageBytes, [&](std::int64_t i) {
    std::fill_n(buffer.data() + i * kPageBytes, kPageBytes, std::byte{1});
  });
  MemoryReader reader({buffer.data(), buffer.size()});
  const double seconds = LeastSeconds([&] { reader.Run(); });
  return static_cast<double>(reader.bytes()) / seconds * 1e-9;
}

double MeasureMultiplyAdds(std::int64_t tasks) {
  constexpr std::int64_t kSteps = 1'000'000;
  // Volatile, so that nothing is computed before the program runs. The chains stay near 1.
  volatile float factor = 0.5F;
  volatile float addend = 0.5F;
  const auto multiply = HWY_DYNAMIC_DISPATCH(MultiplyAdds);
  std::vector<float> results(static_cast<std::size_t>(tasks));
  const double seconds = LeastSeconds([&] {
    ParallelFor(tasks, [&](std::int64_t i) {
      results[static_cast<std::size_t>(i)] = multiply(kSteps, factor, addend);
    });
  });
  // Kept from being optimised away.
  volatile float kept = *std::max_element(results.begin(), results.end());
  static_cast<void>(kept);
  return static_cast<double>(kSteps * tasks) * HWY_DYNAMIC_DISPATCH(FlopsOfStep)() / seconds * 1e-9;
}

// 0 where the file does not begin with a number.
std::int64_t ReadNumber(const fs::path& path) {
  std::int64_t number = 0;
  std::ifstream(path) >> number;
  return number;
}

}  // namespace

std::int64_t LastLevelCacheBytes() {
  constexpr std::int64_t kGuess = std::int64_t{32} << 20;
  // Each cache once, by the processors that share it. sysconf counts caches of a whole package, of
  // which a virtual machine may have a small part.
  std::map<std::string, std::int64_t> bytes_of_sharers;
  int last_level = 0;
  std::error_code error;
  for (const auto& cpu : fs::directory_iterator("/sys/devices/system/cpu", error)) {
    for (const auto& cache : fs::directory_iterator(cpu.path() / "cache", error)) {
      const int level = static_cast<int>(ReadNumber(cache.path() / "level"));
      const std::int64_t bytes = ReadNumber(cache.path() / "size") << 10;  // "32768K"
      if (level < last_level || bytes <= 0) continue;
      if (level > last_level) bytes_of_sharers.clear();
      last_level = level;
      std::string sharers;
      std::getline(std::ifstream(cache.path() / "shared_cpu_list"), sharers);
      bytes_of_sharers[sharers] = bytes;
    }
  }
  std::int64_t sum = 0;
  for (const auto& [sharers, bytes] : bytes_of_sharers) sum += bytes;
  return sum > 0 ? sum : kGuess;
}

MemoryReader::MemoryReader(std::span<const std::byte> memory)
    : memory_(memory), sums_(static_cast<std::size_t>(ParallelWidth() * kTasksPerThread)) {
  part_bytes_ = std::ssize(memory) / std::ssize(sums_) / kPageBytes * kPageBytes;
  CAROUSEL_CHECK_GT(part_bytes_, 0);
}

void MemoryReader::Run() {
  const auto read = HWY_DYNAMIC_DISPATCH(ReadWords);
  const auto words = static_cast<std::size_t>(part_bytes_) / sizeof(std::uint32_t);
  ParallelFor(std::ssize(sums_), [&](std::int64_t i) {
    const std::byte* part = memory_.data() + i * part_bytes_;
    sums_[static_cast<std::size_t>(i)] = read(reinterpret_cast<const std::uint32_t*>(part), words);
  });
}

MachineSpeed MeasureMachine() {
  MachineSpeed speed;
  speed.target = HWY_DYNAMIC_DISPATCH(NameOfTarget)();
  speed.threads = ParallelWidth();
  speed.cache_bytes = LastLevelCacheBytes();
  const std::int64_t tasks = speed.threads * kTasksPerThread;
  speed.memory_gb_per_s = MeasureMemory(speed.cache_bytes);
  speed.peak_gflop_per_s = MeasureMultiplyAdds(tasks);
  return speed;
}

}  // namespace carousel

#endif  // HWY_ONCE
