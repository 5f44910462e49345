#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Greedy text of carousel and of openvino.genai on the same IR, token by token.

Both run in float32 with a float32 cache and without eviction, on the same token ids. Where the texts part, the
script shows what carousel saw at that place: the two likeliest tokens, and how far apart they were. A gap of the
size of float rounding is a tie that the order of additions decides; anything larger is a difference, and the
script fails.

    ./run setup && .venv/bin/python lab/compare_greedy.py [--prompts 20] [--new-tokens 256]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Natural logarithms of probabilities: two likeliest tokens closer than this are a tie. Logits of this model are
# of the order of 20, sums run over 576 products, 30 layers deep: float rounding alone moves them by some 1e-4.
TIE = 2e-3

OPENINGS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "To bake bread you need flour, water, salt and",
    "The theory of evolution explains how",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969 two people walked on the Moon. Their names were",
    "A list of the planets of the solar system:\n1.",
    "The most important difference between TCP and UDP is",
    "She opened the letter with shaking hands and read:",
    "Q: What is the boiling point of water?\nA:",
    "import numpy as np\n\n# Compute the mean of each column\n",
    "Photosynthesis is the process by which",
    "The rules of chess are simple. Each player has",
    "Breaking news: scientists have discovered",
    "Es war einmal ein König, der hatte",
    "The square root of 144 is 12 because",
    "My grandmother used to say that",
    "SELECT name, count(*) FROM customers",
    "The weather tomorrow will be",
]


def genai_tokens(model, prompts, new_tokens):
    """The same prompts through openvino.genai, as lists of ids."""
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(
        str(model),
        "CPU",
        ATTENTION_BACKEND="SDPA",
        INFERENCE_PRECISION_HINT="f32",
        KV_CACHE_PRECISION="f32",
        DYNAMIC_QUANTIZATION_GROUP_SIZE="0",
    )
    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    answers = []
    for ids in prompts:
        tensor = ov.Tensor(ov.Type.i64, [1, len(ids)])
        tensor.data[0, :] = ids
        mask = ov.Tensor(ov.Type.i64, [1, len(ids)])
        mask.data[:] = 1
        answers.append(list(pipeline.generate(genai.TokenizedInputs(tensor, mask), config).tokens[0]))
    return answers


def carousel_run(model, ids, new_tokens):
    """One prompt through the program: its ids and, at each place, the two likeliest tokens."""
    with tempfile.TemporaryDirectory() as folder:
        prompt = Path(folder) / "prompt.json"
        summary = Path(folder) / "summary.json"
        prompt.write_text(json.dumps(ids))
        command = [str(ROOT / "run"), "carousel", "generate", "--model", str(model), "--token-ids", str(prompt)]
        command += ["--max-new-tokens", str(new_tokens), "--ignore-eos", "--no-eviction", "--kv-type-k", "f32"]
        command += ["--kv-type-v", "f32", "--temperature", "0", "--logprobs", "2", "--json", str(summary)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = json.loads(summary.read_text().splitlines()[-1])
    return result["token_ids"], result["logprobs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--prompts", type=int, default=len(OPENINGS))
    parser.add_argument("--new-tokens", type=int, default=256)
    arguments = parser.parse_args()

    import openvino_genai as genai

    tokenizer = genai.Tokenizer(str(arguments.model))
    prompts = [
        [int(i) for i in tokenizer.encode(text, add_special_tokens=False).input_ids.data[0]]
        for text in OPENINGS[: arguments.prompts]
    ]
    theirs = genai_tokens(arguments.model, prompts, arguments.new_tokens)
    equal = ties = different = 0
    for number, ids in enumerate(prompts):
        ours, logprobs = carousel_run(arguments.model, ids, arguments.new_tokens)
        place = next((i for i, pair in enumerate(zip(ours, theirs[number])) if pair[0] != pair[1]), None)
        if place is None and len(ours) == len(theirs[number]):
            equal += 1
            print(f"{number + 1:3}: {len(ours)} tokens, equal")
            continue
        if place is None:
            different += 1
            print(f"{number + 1:3}: lengths differ, {len(ours)} and {len(theirs[number])}")
            continue
        top = logprobs[place]["top"]
        gap = top[0]["logprob"] - top[1]["logprob"]
        pair = {top[0]["token"], top[1]["token"]} == {ours[place], theirs[number][place]}
        tie = pair and gap < TIE
        ties += tie
        different += not tie
        print(
            f"{number + 1:3}: equal for {place} tokens, then {ours[place]} or {theirs[number][place]}, "
            f"log-probabilities {top[0]['logprob']:.6f} and {top[1]['logprob']:.6f}: "
            f"{'a tie' if tie else 'DIFFERENT'} ({gap:.1e})"
        )
    print(f"{equal} equal, {ties} part at a tie, {different} different")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
