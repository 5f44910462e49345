// SPDX-License-Identifier: Apache-2.0
// A model's own tokenizer, run by OpenVINO.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "carousel/tokenizer.h"

namespace carousel {

// Reads openvino_tokenizer.xml and openvino_detokenizer.xml (each with its .bin) of `directory`.
// What it promises is tried out at load: that a long text is not cut, which tokens the tokenizer
// adds by itself, whether a text may be encoded in pieces, that every token is in the model's
// vocabulary. Throws carousel::Error (kModel, field "tokenizer") when files are missing or damaged,
// when the tokenizer needs more than `vocabulary_size` tokens, or when one of the promises cannot
// be kept. The tokenizer may be used from several threads; calls wait for each other.
std::unique_ptr<Tokenizer> LoadOpenVinoTokenizer(const std::filesystem::path& directory,
                                                 std::int64_t vocabulary_size);

}  // namespace carousel
