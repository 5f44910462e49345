#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether a request answers the same whoever runs beside it: greedy answers side by side, and alone.

Prompts of 200 to 5,000 characters, half of which evict, recall on, run through carousel batch: one at a time, several
at a time, and several in another order. Where an answer differs from the answer alone, the tokens are compared: what
the model gave the two words that part them, alone, is shown. A tie within rounding is a small difference there.

    lab/compare_concurrency.py --model models/smollm2-135m-instruct
    lab/compare_concurrency.py --flags --batch-invariant
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from quality.text import Tokens, help_topics

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 3600
LENGTHS = (200, 600, 1500, 3000, 5000)
# A prompt of some 2,000 characters and more evicts.
CACHE = ["--max-cache-size", "512", "--recent-size", "128"]


def make_requests(count, tokens, seed):
    generator = random.Random(seed)
    text = help_topics()
    requests = []
    for number in range(count):
        begin = generator.randrange(len(text) - max(LENGTHS))
        requests.append({"custom_id": f"r{number}", "prompt": text[begin:begin + generator.choice(LENGTHS)],
                         "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
    return requests


def run(arguments, requests, concurrency, folder):
    """Answers by custom_id."""
    file = folder / "requests.jsonl"
    out = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests), encoding="utf-8")
    out.unlink(missing_ok=True)
    command = [*arguments.program, "batch", "--model", arguments.model, "--requests", file, "--out", out, "--raw",
               "--concurrency", concurrency, "--repetition-penalty", 1, *CACHE, *arguments.flags]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    return {line["custom_id"]: line for line in map(json.loads, out.read_text("utf-8").splitlines())}


def gap(arguments, tokenizer, request, other):
    """Where the answer alone parts from `other`, and by how many nats its word was likelier than the next."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out.jsonl"
        prompt = Path(name) / "prompt.txt"
        prompt.write_text(request["prompt"], encoding="utf-8")
        command = [*arguments.program, "generate", "--model", arguments.model, "--raw", "--prompt-file", prompt,
                   "--temperature", 0, "--repetition-penalty", 1, "--max-new-tokens", request["max_tokens"],
                   "--logprobs", 3, "--json", out, *CACHE]
        subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=PATIENCE_SECONDS)
        alone = json.loads(out.read_text("utf-8").splitlines()[-1])
    ids = alone["token_ids"]
    place = max(i for i in range(len(ids) + 1) if other.startswith(tokenizer.decode(ids[:i])))
    if place == len(ids):
        return place, None
    top = alone["logprobs"][place]["top"]
    return place, top[0]["logprob"] - top[1]["logprob"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", nargs="+", default=[str(ROOT / "run"), "carousel"])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of carousel batch")
    arguments = parser.parse_args()
    requests = make_requests(arguments.requests, arguments.tokens, arguments.seed)
    by_id = {request["custom_id"]: request for request in requests}
    shuffled = random.Random(arguments.seed + 1).sample(requests, len(requests))
    tokenizer = Tokens(arguments.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = run(arguments, requests, 1, folder)
        evicting = sum(line["kv"]["evicted_tokens"] > 0 for line in alone.values())
        print(f"{len(alone)} requests, {evicting} of them evict", flush=True)
        for label, order in (("in order", requests), ("in another order", shuffled)):
            beside = run(arguments, order, arguments.concurrency, folder)
            differing = [key for key in by_id if beside[key]["text"] != alone[key]["text"]]
            print(f"{arguments.concurrency} at a time, {label}: {len(by_id) - len(differing)} of {len(by_id)} the same",
                  flush=True)
            for key in differing:
                place, nats = gap(arguments, tokenizer, by_id[key], beside[key]["text"])
                print(f"    {key}: from token {place} on; the likeliest word was {nats} nats before the next", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
