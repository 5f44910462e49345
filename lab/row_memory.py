#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Resident memory of the program while it reads prompts of one length, and then of many.

The runtime keeps memory for every number of rows that it has run (docs/decisions/0018-row-buckets.md). One
process reads prompts of random tokens, each as a conversation of its own that answers with one token: first
the longest a few times, then each of --lengths different lengths, --passes times in the same order.

    ./run setup && .venv/bin/python lab/row_memory.py [--model models/gemma3-270m] [--lengths 200] [--longest 500]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAME_LENGTH_RUNS = 3


def resident_megabytes(process):
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {process} has no VmRSS")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--lengths", type=int, default=200)
    parser.add_argument("--longest", type=int, default=500)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--score", action="store_true", help="ask for the logits of every token as well")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--program", nargs="+", default=[str(ROOT / "run"), "carousel"], help="another build's")
    parser.add_argument("flags", nargs="*", help="more flags of carousel evaluate, after --")
    arguments = parser.parse_args()

    generator = random.Random(arguments.seed)
    lengths = generator.sample(range(1, arguments.longest), arguments.lengths)
    phases = [(f"{arguments.longest} tokens, {SAME_LENGTH_RUNS} times", [arguments.longest] * SAME_LENGTH_RUNS)]
    phases += [(f"{len(lengths)} lengths, pass {i + 1}", lengths) for i in range(arguments.passes)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks.jsonl"
        with tasks.open("w") as file:
            for number, length in enumerate(length for _, part in phases for length in part):
                # Ids that every vocabulary has and that are no control tokens in the models of docs/models.md.
                prompt = [generator.randrange(1000, 40000) for _ in range(length)]
                turn = {"prompt": prompt, "max_new_tokens": 1, "score_prompt": arguments.score}
                file.write(json.dumps({"id": str(number), "raw": True, "turns": [turn]}) + "\n")
        command = [*arguments.program, "evaluate", "--tasks", str(tasks), "--model", str(arguments.model)]
        with subprocess.Popen([*command, *arguments.flags], stdout=subprocess.PIPE, text=True) as run:
            for name, part in phases:
                for _ in part:
                    if not run.stdout.readline():
                        return run.wait() or 1
                print(f"{name}: {resident_megabytes(run.pid):.0f} MB resident", flush=True)
            summary = json.loads(run.stdout.readline())
    print(f"peak {summary['peak_rss_bytes'] / 2**20:.0f} MB, {summary['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
