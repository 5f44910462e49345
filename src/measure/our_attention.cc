// SPDX-License-Identifier: Apache-2.0
#include "measure/our_attention.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "cache/block_codec.h"

namespace carousel {
namespace {

constexpr std::int64_t kCountedQueries = 8;
// Any base does: what a rotation costs does not depend on its angles.
constexpr double kTheta = 100000.0;

// Encodes the load's tokens as one layer's blocks.
void FillLayer(const AttentionLoad& load, const BlockShape& shape, std::byte* layer) {
  const BlockCodec& key_codec = CodecFor(shape.key_type);
  const BlockCodec& value_codec = CodecFor(shape.value_type);
  const std::int64_t key_stride = shape.kv_heads * shape.key_dim;
  const std::int64_t value_stride = shape.kv_heads * shape.value_dim;
  ParallelFor(load.shape.context / shape.block_size, [&](std::int64_t index) {
    std::byte* block = layer + index * static_cast<std::int64_t>(shape.bytes());
    const float* keys = load.k.data() + index * shape.block_size * key_stride;
    const float* values = load.v.data() + index * shape.block_size * value_stride;
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      key_codec.WriteKeys(block + shape.key_offset(head), shape.block_size, shape.key_dim, 0,
                          shape.block_size, keys + head * shape.key_dim, key_stride);
      value_codec.WriteValues(block + shape.value_offset(head), shape.block_size, shape.value_dim,
                              0, shape.block_size, values + head * shape.value_dim, value_stride);
    }
  });
}

}  // namespace

OurCaches::OurCaches(const AttentionLoad& load, KvType type)
    : shape_{.block_size = load.shape.block_size,
             .kv_heads = load.shape.layer.kv_heads,
             .key_dim = load.shape.layer.key_dim,
             .value_dim = load.shape.layer.value_dim,
             .key_type = type,
             .value_type = type},
      blocks_per_layer_(load.shape.context / load.shape.block_size),
      layers_(load.shape.layers * load.Copies(bytes_per_layer())),
      memory_(static_cast<std::size_t>(layers_ * bytes_per_layer())) {
  FillLayer(load, shape_, memory_.data());
  const auto bytes = static_cast<std::size_t>(bytes_per_layer());
  ParallelFor(layers_ - 1, [&](std::int64_t i) {
    std::memcpy(memory_.data() + (i + 1) * bytes_per_layer(), memory_.data(), bytes);
  });
}

OurAttention::OurAttention(const AttentionLoad& load, std::shared_ptr<const OurCaches> caches,
                           std::int64_t shifts)
    : load_(load),
      caches_(std::move(caches)),
      rotation_({.rotated_dims = load.shape.layer.key_dim,
                 .frequencies = PlainFrequencies(kTheta, load.shape.layer.key_dim)},
                load.shape.block_size) {
  const std::int64_t blocks = caches_->blocks_per_layer();
  const std::int64_t runs = shifts == kShiftInEveryBlock ? blocks : shifts;
  CAROUSEL_CHECK_GE(runs, 0);
  CAROUSEL_CHECK_LE(runs, blocks);
  rotation_.Extend(runs);
  for (std::int64_t layer = 0; layer < caches_->layers(); ++layer) {
    for (std::int64_t i = 0; i < blocks; ++i) {
      const Position first{i * load.shape.block_size};
      blocks_.push_back({.data = caches_->block(layer, i),
                         .shape = &caches_->shape(),
                         .tokens = load.shape.block_size,
                         .shift_blocks = runs == 0 ? 0 : runs - i * runs / blocks,
                         .attention = first,
                         .logical = first});
    }
  }
  out_.resize(static_cast<std::size_t>(load.shape.queries * load.shape.layer.query_heads *
                                       load.shape.layer.value_dim));
  mass_.resize(static_cast<std::size_t>(load.shape.context));
  facts_ = {.engine = "carousel",
            .kv_type = std::string(Name(caches_->shape().key_type)),
            .shifts = shifts == kShiftInEveryBlock ? "every_block"
                      : shifts == kNoShifts        ? "none"
                                                   : fmt::format("{}", shifts),
            .layers = caches_->layers(),
            .bytes_per_layer = caches_->bytes_per_layer(),
            .threads = ParallelWidth()};
}

void OurAttention::Run() {
  const auto blocks = static_cast<std::size_t>(caches_->blocks_per_layer());
  const Position first_query{load_.shape.context - load_.shape.queries};
  AttentionInput input{.layer = &load_.shape.layer,
                       .kv_heads = load_.shape.layer.kv_heads,
                       .block_size = load_.shape.block_size,
                       .rotation = &rotation_,
                       .queries = load_.shape.queries,
                       .first_query_attention = first_query,
                       .first_query_logical = first_query,
                       .q = load_.q.data(),
                       .counted_queries = std::min(kCountedQueries, load_.shape.queries)};
  const std::span<const AttentionBlock> all = blocks_;
  for (std::size_t layer = 0; layer < all.size() / blocks; ++layer) {
    input.blocks = all.subspan(layer * blocks, blocks);
    attention_.Run({input, {.out = out_.data(), .token_mass = mass_}});
  }
}

}  // namespace carousel
