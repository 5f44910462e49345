// SPDX-License-Identifier: Apache-2.0
// What a step of a given number of rows costs outside attention.
//
//   row_times MODEL_DIR RUNS ROWS...
//
// On one thread, in the thread's own processor time, so that others on the machine disturb little.
// All counts take turns. Prints the first run of each, in which the runtime prepares for it, and
// the least and the median of the others; and by how much the process grew in the first run. The
// model pads, so counts of one bucket (src/openvino/row_buckets.h) cost the same.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <fstream>
#include <numeric>
#include <vector>

#include "openvino/openvino_model.h"

namespace carousel {
namespace {

double ProcessorMilliseconds() {
  return static_cast<double>(std::clock()) * 1e3 / static_cast<double>(CLOCKS_PER_SEC);
}

// Of this process, now.
double ResidentMegabytes() {
  constexpr double kPagesPerMegabyte = 256.0;
  std::ifstream pages("/proc/self/statm");
  double all = 0.0;
  double resident = 0.0;
  pages >> all >> resident;
  return resident / kPagesPerMegabyte;
}

// Writes zeros.
class NoAttention : public AttentionCallback {
 public:
  explicit NoAttention(const ModelSpec& spec) : spec_(spec) {}
  void Attend(std::int64_t layer, std::int64_t tokens, const float*, const float*, const float*,
              float* out) override {
    const AttentionLayerSpec& of_layer = spec_.layers[static_cast<std::size_t>(layer)];
    std::fill_n(out, tokens * of_layer.query_heads * of_layer.value_dim, 0.0F);
  }

 private:
  const ModelSpec& spec_;
};

double StepMilliseconds(Model& model, AttentionCallback& attention, std::int64_t tokens) {
  std::vector<TokenId> ids(static_cast<std::size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 100);
  std::vector<std::int64_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<std::int64_t> rows = {tokens - 1};
  const double begin = ProcessorMilliseconds();
  model.Forward({ids, positions, rows}, attention);
  return ProcessorMilliseconds() - begin;
}

void Run(const char* directory, int runs, const std::vector<std::int64_t>& counts) {
  const auto model = LoadOpenVinoModel({.directory = directory, .threads = 1});
  NoAttention attention(model->spec());
  // Both kinds of kernels, and the largest buffers.
  for (const std::int64_t tokens :
       {std::int64_t{64}, *std::max_element(counts.begin(), counts.end())})
    StepMilliseconds(*model, attention, tokens);
  std::vector<std::vector<double>> times(counts.size());
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const double before = ResidentMegabytes();
    const double first = StepMilliseconds(*model, attention, counts[i]);
    fmt::print("{:5} rows: first {:7.1f} ms, {:+.1f} MB\n", counts[i], first,
               ResidentMegabytes() - before);
  }
  for (int run = 0; run < runs; ++run) {
    for (std::size_t i = 0; i < counts.size(); ++i)
      times[i].push_back(StepMilliseconds(*model, attention, counts[i]));
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    fmt::print("{:5} rows: least {:7.1f} ms, median {:7.1f} ms\n", counts[i], times[i].front(),
               times[i][times[i].size() / 2]);
  }
}

}  // namespace
}  // namespace carousel

int main(int count, char** values) {
  if (count < 4 || std::atoi(values[2]) < 1) {
    fmt::print(stderr, "usage: row_times MODEL_DIR RUNS ROWS...\n");
    return 2;
  }
  try {
    std::vector<std::int64_t> counts;
    for (int i = 3; i < count; ++i) counts.push_back(std::atoll(values[i]));
    carousel::Run(values[1], std::atoi(values[2]), counts);
  } catch (const std::exception& error) {
    fmt::print(stderr, "row_times: {}\n", error.what());
    return 1;
  }
}
