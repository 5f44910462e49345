// SPDX-License-Identifier: Apache-2.0
// Bytes as a command line and environment: parsed, or refused in one line.
#include <algorithm>
#include <map>

#include "base/check.h"
#include "cli/command_line.h"
#include "cli/usage_error.h"
#include "fuzz/fuzz_target.h"

namespace carousel {
namespace {

// Lines are arguments; those of the form CAROUSEL_NAME=VALUE are variables. No system hands on a
// NUL in either.
struct Words {
  std::vector<std::string> arguments;
  std::map<std::string, std::string> variables;
};

Words Split(const std::string& text) {
  Words words;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::string word = text.substr(begin, end - begin);
    std::erase(word, '\0');
    begin = end + 1;
    const std::size_t equals = word.find('=');
    if (word.starts_with("CAROUSEL_") && equals != std::string::npos) {
      words.variables[word.substr(0, equals)] = word.substr(equals + 1);
    } else {
      words.arguments.push_back(word);
    }
  }
  return words;
}

}  // namespace

std::vector<std::string> FuzzSeeds() {
  return {
      "stream\n--text\nbook.txt\n--max-cache-size=512\n--recent-size\n256\n--json\n-\n--"
      "segment\n2048",
      "generate\n--prompt\nhi there\n--raw\n--temperature\n0.5\n--top-p=0.9\n--stop\na\n--stop\nb\n"
      "--logprobs\n3\n--cache-limit\n64M\n--seed\n7",
      "generate\n--token-ids\nids.json\n--prompt-eviction\nat_end\n--ignore-eos\n--rotation\nkeys",
      "evaluate\n--tasks\n-\n--logits=rows\n--max-new-tokens\n4\n--no-eviction\n--stop=x",
      "chat\n--system\nBe brief.\n--no-eviction\n--kv-type-k\nf32\n--precision\nbf16",
      "info\n--model\nmodels/x\nCAROUSEL_THREADS=2\nCAROUSEL_NO_EVICTION=yes",
      "bench\nattention\n--contexts=512,64\n--kv-types\nf16,int4\n--shifts\nnone,2\n--queries\n32",
      "stream\n--text=a\n--recall-blocks\n8\n--recall-store=ram\n--recall-limit=1G\n"
      "--recall-every=2\n--recall-queries=4\n--recall-chunk\n16\n--recall-gain=0.01\n--recall-"
      "promotion=2\n--recall-kv-"
      "type\nauto",
      "bench\nmodel\n--max-cache-size\noff,672\n--kv-type-v\nint8\nCAROUSEL_ROUNDS=3",
      "--help",
      "stream\n--help",
      "generate\n--help-all",
      "--version",
  };
}

}  // namespace carousel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace carousel;
  const Words words = Split({reinterpret_cast<const char*>(data), size});
  try {
    ParseCommandLine(words.arguments, [&words](const std::string& name) -> const char* {
      const auto found = words.variables.find(name);
      return found == words.variables.end() ? nullptr : found->second.c_str();
    });
  } catch (const UsageError& error) {
    CAROUSEL_CHECK(error.what()[0] != '\0');
  }
  return 0;
}
