#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two builds of the program on the same inputs: whether they answer alike, and how fast each is.

"texts" runs the cases below through both and compares every figure that does not measure time or memory: token ids,
texts, logarithms of probabilities, perplexities, what was evicted. A case is either identical or the first fields
that differ are shown, with the largest relative difference of its numbers.

"speed" lets both time prompts and decode (carousel bench model) in turns, every other round in reverse, and shows
the median of the rounds' ratios with their quartiles, and the ratio of the best round of each, which a machine that
others use as well disturbs least: above 1, the second build is faster. Nothing else may run.

    lab/compare_builds.py --before OLD/run carousel --after ./run carousel --what texts speed
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from quality.text import help_topics

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 3600
# Fields that measure time, memory or the machine.
MEASURES = ("seconds", "_per_s", "_ms", "rss", "reserved", "threads", "model")
SHOWN_DIFFERENCES = 4
SMALL_CACHE = ["--max-cache-size", "224", "--recent-size", "64", "--chunk", "64"]
RAW_PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "Once upon a time, in a village by the sea,"]
QUESTIONS = ["Name one colour.", "What is a prime number? Give three of them.", "Write two lines about the sea."]


def conversations():
    """Tasks of several turns: scored, answered and forced, of tokens that every vocabulary has."""
    generator = random.Random(7)
    def tokens(count):
        return [generator.randrange(1000, 40000) for _ in range(count)]
    lines = []
    for number in range(3):
        turns = [{"prompt": tokens(500 + 77 * number), "score_prompt": True},
                 {"prompt": tokens(40), "max_new_tokens": 24}, {"prompt": tokens(150), "score": tokens(12)},
                 {"prompt": tokens(33), "max_new_tokens": 16}]
        lines.append(json.dumps({"id": str(number), "raw": True, "turns": turns}))
    return "\n".join(lines) + "\n"


def cases(folder):
    """Names and arguments. A text's raw prompts do not pass the chat template, so both builds read the same."""
    text = folder / "prose.txt"
    text.write_text(help_topics()[:60_000], encoding="utf-8")
    tasks = folder / "tasks.jsonl"
    tasks.write_text(conversations(), encoding="utf-8")
    stream = ["stream", "--text", text, "--segment", "256"]
    listed = [("stream, defaults", [*stream, "--max-tokens", "4096"]),
              ("stream, small cache", [*stream, *SMALL_CACHE, "--max-tokens", "3000"]),
              ("stream, past eviction without recall", [*stream, "--recall-blocks", "0", "--max-tokens", "3000"]),
              ("stream, keys rotated", [*stream, *SMALL_CACHE, "--rotation", "keys", "--recall-blocks", "0",
                                        "--max-tokens", "1500"]),
              ("stream, int8 and int4", [*stream, *SMALL_CACHE, "--kv-type-k", "int4", "--kv-type-v", "int8",
                                         "--max-tokens", "1500"]),
              ("evaluate, defaults", ["evaluate", "--tasks", tasks]),
              ("evaluate, small cache", ["evaluate", "--tasks", tasks, *SMALL_CACHE])]
    for policy in ("snapkv", "h2o", "window", "expected_attention", "adaptive_rkv"):
        listed.append((f"stream, {policy}", [*stream, *SMALL_CACHE, "--policy", policy, "--max-tokens", "1000"]))
    for number, prompt in enumerate(RAW_PROMPTS):
        listed.append((f"generate {number}, greedy", ["generate", "--raw", "--prompt", prompt, "--temperature", "0",
                                                      "--max-new-tokens", "64"]))
        listed.append((f"generate {number}, seeded", ["generate", "--raw", "--prompt", prompt, "--temperature", "0.8",
                                                      "--top-p", "0.9", "--top-k", "50", "--seed", str(number),
                                                      "--max-new-tokens", "64"]))
    for number, question in enumerate(QUESTIONS):
        listed.append((f"generate, question {number}", ["generate", "--prompt", question, "--temperature", "0",
                                                        "--repetition-penalty", "1", "--max-new-tokens", "48"]))
    return listed


def answer(program, arguments, model, folder):
    """What the program wrote, as a list of objects."""
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    where = [] if arguments[0] == "evaluate" else ["--json", out]
    command = [*program, arguments[0], "--model", model, *arguments[1:], *where]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                            check=False)
    if result.returncode != 0:
        return [{"failed": result.stderr.strip().splitlines()[-1:]}]
    return [json.loads(line) for line in (out.read_text("utf-8") if where else result.stdout).splitlines()]


def leaves(value, path=""):
    """Paths and values of all that is not a measure."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not any(part in name for part in MEASURES):
                yield from leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def compare(before, after):
    """Complaints about fields that differ, and the largest relative difference of numbers."""
    old, new = dict(leaves(before)), dict(leaves(after))
    complaints, largest = [], 0.0
    for path in [*old, *(path for path in new if path not in old)]:
        if path not in old or path not in new:
            complaints.append(f"{path} only {'after' if path in new else 'before'}")
        elif old[path] != new[path]:
            complaints.append(f"{path}: {old[path]!r:.60} -> {new[path]!r:.60}")
            if isinstance(old[path], float) and isinstance(new[path], float):
                largest = max(largest, abs(new[path] - old[path]) / max(abs(old[path]), 1e-300))
    return complaints, largest


def compare_texts(arguments):
    """How many cases differ."""
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in arguments.model:
            for label, case in cases(folder):
                complaints, largest = compare(*(answer(program, case, model, folder)
                                                for program in (arguments.before, arguments.after)))
                # A field that one build does not have yet is said and is no difference of what both have.
                differs = [line for line in complaints if not line.endswith((" only after", " only before"))]
                differing += bool(differs)
                verdict = f"{len(differs)} fields differ, numbers by up to {largest:.1e}" if differs else "identical"
                print(f"{model.name}: {label}: {verdict}", flush=True)
                for line in differs[:SHOWN_DIFFERENCES]:
                    print(f"    {line}")
    return differing


def bench_command(program, model, arguments):
    return [*program, "bench", "model", "--model", model, "--contexts", ",".join(map(str, arguments.contexts)),
            "--decode-tokens", arguments.decode_tokens, "--max-cache-size", arguments.max_cache_size, "--rounds",
            arguments.rounds_inside, "--json", "-"]


def start(command):
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def rates(process):
    """Tokens per second by context and kind."""
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args[0]} ended with status {process.returncode}")
    rows = [json.loads(line) for line in output.splitlines()]
    return {(row["context"], str(row["max_cache_size"] or "off"), kind): row[f"{kind}_tokens_per_s"]
            for row in rows if row.get("type") == "model" for kind in ("prompt", "decode")}


def timed(order, model, arguments):
    """The rates of both builds: one after the other, or at the same time, each on one processor of its own."""
    commands = {which: bench_command(getattr(arguments, which), model, arguments) for which in order}
    if not arguments.beside:
        return {which: rates(start(commands[which])) for which in order}
    processes = {which: start(["taskset", "--cpu-list", processor, *commands[which], "--threads", 1])
                 for processor, which in enumerate(order)}
    return {which: rates(process) for which, process in processes.items()}


def compare_speed(arguments):
    for model in arguments.model:
        ratios, old, new = {}, {}, {}
        for number in range(arguments.rounds):
            order = ["before", "after"] if number % 2 == 0 else ["after", "before"]
            speeds = timed(order, model, arguments)
            for key, speed in speeds["before"].items():
                ratios.setdefault(key, []).append(speeds["after"][key] / speed)
                old.setdefault(key, []).append(speed)
                new.setdefault(key, []).append(speeds["after"][key])
        for (context, cache, kind), values in sorted(ratios.items(), key=lambda item: (item[0][2], item[0][0])):
            low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
            key = context, cache, kind
            print(f"{model.name}: {kind} {context} tokens, cache {cache}: {statistics.median(values):.3f} "
                  f"[{low:.3f}, {high:.3f}] of {statistics.median(old[key]):.1f} tok/s, "
                  f"best {max(new[key]) / max(old[key]):.3f} of {max(old[key]):.1f}, {len(values)} rounds", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", nargs="+", required=True, help="a build's command, with its first arguments")
    parser.add_argument("--after", nargs="+", default=[str(ROOT / "run"), "carousel"])
    parser.add_argument("--model", nargs="+", type=Path,
                        default=[ROOT / "models" / name for name in ("smollm2-135m-instruct", "gemma3-270m")])
    parser.add_argument("--what", nargs="+", choices=("texts", "speed"), default=["texts"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[300, 333, 400, 512, 2048])
    parser.add_argument("--max-cache-size", default="off", help="of the speeds")
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--beside", action="store_true",
                        help="both at the same time, each on a processor of its own, which they change every round: "
                             "what others do to the machine then meets both")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rounds-inside", type=int, default=3, help="that a process times; it reports their median")
    arguments = parser.parse_args()
    differing = compare_texts(arguments) if "texts" in arguments.what else 0
    if "speed" in arguments.what:
        compare_speed(arguments)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
