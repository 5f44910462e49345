# SPDX-License-Identifier: Apache-2.0
"""How large the experiments are, and the settings that they run under."""

from dataclasses import dataclass

START, BLOCK, CHUNK = 32, 32, 256
RECALLED_BLOCKS = 8  # of 32 tokens: 256

# The program's default first.
POLICIES = ("tova", "expected_attention", "snapkv", "h2o", "keynorm", "keydiff", "adaptive_rkv", "window", "random")
GENAI = ("genai snapkv", "genai snapkv sum", "genai kvcrush", "genai adaptive-rkv", "genai snapkv rotated")


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    cases: int  # of each task
    policy_cases: int  # the same where every policy is run
    length: int
    closeness_prompts: int
    forced_tokens: int
    stream_tokens: int
    recall_cases: int  # of recall and later turns, whose prompts have 4,096 tokens
    long_cases: int  # at 16,384 tokens
    longest_cases: int  # at 65,536 tokens; 0: not at all


SIZES = {
    "quick": Size(3, 3, 1024, 2, 16, 12288, 3, 0, 0),
    "normal": Size(10, 6, 2048, 12, 32, 100_000, 12, 10, 5),
    "full": Size(30, 20, 4096, 24, 64, 100_000, 40, 20, 10),
}


def recent_size(budget):
    """A quarter of the cache, in whole blocks, as far as 128 tokens: openvino.genai's default share and limit."""
    return min(128, max(BLOCK, budget // 4 // BLOCK * BLOCK))


def capped(budget, *more):
    """The program's defaults in a cache of `budget` tokens, and what `more` changes."""
    return ["--start-size", START, "--recent-size", recent_size(budget), "--max-cache-size", budget,
            "--block-size", BLOCK, "--chunk", CHUNK, *more]


def alone(budget, *more):
    """Eviction alone: what is forgotten does not come back."""
    return capped(budget, "--recall-blocks", 0, *more)


def recalling(budget, *more):
    """Everything forgotten can come back, however much it is."""
    return capped(budget, "--recall-blocks", RECALLED_BLOCKS, "--recall-limit-tokens", 0, *more)


WHOLE = ["--no-eviction", "--block-size", BLOCK, "--chunk", CHUNK]


def budgets_of(length, shares):
    """Tokens by share of the length; at least the start, two recent blocks and two to choose from."""
    return {share: max(length // share // BLOCK * BLOCK, START + 4 * BLOCK) for share in shares}
