#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it gains to read a common beginning once: requests that share a long system message, in turns with and without.

All requests have the same system message and a question of their own. They run through carousel batch, with
checkpoints and with --checkpoint-limit 0. Shown are the seconds from the first request to the last answer, the peak resident memory,
how many tokens of prompts were taken from checkpoints, and whether the answers are the same.

    lab/compare_sharing.py --requests 32 --system-tokens 2000 --rounds 3
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quality.text import Tokens, help_topics

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ("What is the first topic of the text about?", "Name three words that are explained.",
             "Which statement is easy to misuse?", "Say in one sentence what the text is for.")


def make_requests(arguments):
    tokenizer = Tokens(arguments.model)
    system = tokenizer.decode(tokenizer.encode(help_topics()[:40_000])[:arguments.system_tokens])
    for number in range(arguments.requests):
        yield {"custom_id": f"r{number}", "temperature": 0, "max_tokens": arguments.tokens,
               "messages": [{"role": "system", "content": system},
                            {"role": "user", "content": f"({number}) {QUESTIONS[number % len(QUESTIONS)]}"}]}


def run(arguments, file, folder, flags):
    """Seconds, peak memory in bytes and the answers by custom_id."""
    out = folder / "answers.jsonl"
    out.unlink(missing_ok=True)
    command = [*arguments.program, "batch", "--model", arguments.model, "--requests", file, "--out", out,
               "--concurrency", arguments.concurrency, "--max-cache-size", arguments.max_cache_size, *flags]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(errors)
    lines = map(json.loads, out.read_text("utf-8").splitlines())
    return float(re.search(r" in ([0-9.]+) s", errors).group(1)), usage.ru_maxrss * 1024, {line["custom_id"]: line for line in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", nargs="+", default=[str(ROOT / "build" / "release" / "apps" / "cli" / "carousel")])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--system-tokens", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--max-cache-size", default="4096", help="less than the system message: it evicts")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    ways = {"shared": ["--checkpoint-limit", "1G"], "each reads": ["--checkpoint-limit", "0"]}
    seconds = {way: [] for way in ways}
    memory = {way: [] for way in ways}
    answers = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "requests.jsonl"
        file.write_text("".join(json.dumps(request) + "\n" for request in make_requests(arguments)), encoding="utf-8")
        for number in range(arguments.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                took, peak, answers[way] = run(arguments, file, folder, ways[way])
                seconds[way].append(took)
                memory[way].append(peak)
    for way in ways:
        usage = [line["usage"] for line in answers[way].values()]
        print(f"{way}: {statistics.median(seconds[way]):.1f} s [{min(seconds[way]):.1f}, {max(seconds[way]):.1f}], "
              f"peak {max(memory[way]) / 1e6:.0f} MB, {sum(each['cached_tokens'] for each in usage)} of "
              f"{sum(each['prompt_tokens'] for each in usage)} prompt tokens from checkpoints, "
              f"{sum(line['kv']['evicted_tokens'] > 0 for line in answers[way].values())} evict")
    same = sum(answers["shared"][key]["text"] == line["text"] for key, line in answers["each reads"].items())
    ratios = [slow / fast for slow, fast in zip(seconds["each reads"], seconds["shared"])]
    print(f"shared is {statistics.median(ratios):.2f} times as fast, {same} of {arguments.requests} answers the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
