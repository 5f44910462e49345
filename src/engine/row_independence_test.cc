// SPDX-License-Identifier: Apache-2.0
#include "engine/row_independence.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "carousel/error.h"
#include "carousel/single_sequence_engine.h"
#include "engine/tiny_model.h"
#include "testing/crowded_model.h"

namespace carousel {
namespace {

std::unique_ptr<Model> Crowded(Crowding crowding, std::vector<PassShape>* passes = nullptr) {
  return std::make_unique<CrowdedModel>(std::make_unique<TinyModel>(TinyModelOptions{}), crowding,
                                        passes);
}

std::string Refusal(Model& model) {
  try {
    RequireIndependentRows(model);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(error.field(), "batch_invariant");
    return error.problem();
  }
  return "";
}

TEST(RowIndependence, IsThereWhereEachRowIsComputedByItself) {
  TinyModel tiny(TinyModelOptions{.layers = 3, .key_dim = 8, .value_dim = 32});
  EXPECT_EQ(Refusal(tiny), "");
}

// The number of rows is always the same then.
TEST(RowIndependence, DoesNotMindWhatHangsOnTheNumberOfRows) {
  std::vector<PassShape> passes;
  EXPECT_EQ(Refusal(*Crowded(Crowding::kByCount, &passes)), "");
  ASSERT_GE(passes.size(), std::size_t{3});
  EXPECT_EQ(passes.front().tokens, kInvariantRows);
  EXPECT_LT(passes.back().tokens, kInvariantRows);
  for (const PassShape& pass : passes) EXPECT_EQ(pass.least_rows, kInvariantRows);
}

// The first layer's attention is changed, so the second one's queries tell.
TEST(RowIndependence, IsRefusedWithTheLayerThatTells) {
  const std::string problem = Refusal(*Crowded(Crowding::kByPlace));
  EXPECT_EQ(problem.find("cannot be had: at layer 1 this model"), 0U) << problem;
}

TEST(RowIndependence, IsRefusedWhereNeighboursCount) {
  const std::string problem = Refusal(*Crowded(Crowding::kByNeighbours));
  EXPECT_EQ(problem.find("cannot be had: "), 0U) << problem;
}

TEST(RowIndependence, OfTheLastLayerIsToldByTheLogits) {
  CrowdedModel model(std::make_unique<TinyModel>(TinyModelOptions{.layers = 1}),
                     Crowding::kByNeighbours);
  EXPECT_NE(Refusal(model).find("in its logits"), std::string::npos);
}

TEST(RowIndependence, IsAskedForByBatchInvariantAlone) {
  EngineConfig config;
  config.eviction.reset();
  EXPECT_NO_THROW(SingleSequenceEngine::Create(Crowded(Crowding::kByNeighbours), config));
  config.scheduler.batch_invariant = true;
  EXPECT_THROW(SingleSequenceEngine::Create(Crowded(Crowding::kByNeighbours), config), Error);
  EXPECT_NO_THROW(SingleSequenceEngine::Create(Crowded(Crowding::kByCount), config));
}

}  // namespace
}  // namespace carousel
