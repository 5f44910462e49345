#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same requests through carousel and through openvino.genai's continuous batching, in turns.

A load of random tokens is drawn once, with prompts and answers of many lengths and all requests there at the
beginning. Each run is a process of its own that answers one request as a warm-up and then the load, with so many at
once. Both read the same IR in float32 and prompts in chunks of 256 tokens; answers have their length whatever the
model says. Reported are new tokens per second, the median and the 95th percentile of the time to the first token and
of the time per token after it, and the ratios of carousel to openvino.genai, round by round. Nothing else may run.

    ./run setup && ./run build && .venv/bin/python lab/compare_serving.py --concurrency 1 4 16 --rounds 3
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHUNK = 256
PATIENCE_SECONDS = 3600


def draw_load(arguments, vocabulary):
    """Prompts whose lengths are spread evenly over their logarithms, answers evenly."""
    generator = random.Random(arguments.seed)
    load = []
    for _ in range(arguments.requests):
        length = round(math.exp(generator.uniform(*map(math.log, arguments.prompt_tokens))))
        prompt = [generator.randrange(vocabulary) for _ in range(length)]
        load.append({"prompt": prompt, "answer": generator.randint(*arguments.answer_tokens)})
    return load


def percentile(values, share):
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1]


def figures(new_tokens, seconds, first, each):
    return {"new_tokens_per_s": new_tokens / seconds, "ttft_p50": percentile(first, 0.5),
            "ttft_p95": percentile(first, 0.95), "tpot_p50": percentile(each, 0.5), "tpot_p95": percentile(each, 0.95)}


# --- One run, in a process of its own ------------------------------------------------------------------------------


class Genai:
    """openvino.genai's continuous batching."""

    def __init__(self, job):
        import openvino_genai as genai

        self.genai = genai
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = CHUNK + job["concurrency"]
        scheduler.max_num_seqs = job["concurrency"]
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        properties = {"INFERENCE_NUM_THREADS": job["threads"], "KV_CACHE_PRECISION": job["kv_type"],
                      "INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        self.pipeline = genai.ContinuousBatchingPipeline(job["model"], scheduler_config=scheduler, device="CPU",
                                                         properties=properties)
        self.names = 0

    def answer(self, load):
        """When each token came, in seconds, request by request."""
        import openvino as ov

        begin = time.perf_counter()
        handles, times = [], [[] for _ in load]
        for request in load:
            config = self.genai.GenerationConfig()
            config.max_new_tokens = request["answer"]
            config.ignore_eos = True
            config.do_sample = False
            config.apply_chat_template = False
            tensor = ov.Tensor(ov.Type.i64, [1, len(request["prompt"])])
            tensor.data[0, :] = request["prompt"]
            handles.append(self.pipeline.add_request(self.names, tensor, config))
            self.names += 1
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            now = time.perf_counter() - begin
            for handle, seen in zip(handles, times):
                while handle.can_read():
                    seen.extend(now for output in handle.read().values() for _ in output.generated_ids)
        return times


def work(job, load_file):
    load = [json.loads(line) for line in Path(load_file).read_text().splitlines()]
    engine = Genai(job)
    engine.answer([{"prompt": load[0]["prompt"][:64], "answer": 4}])
    times = engine.answer(load)
    for seen, request in zip(times, load):
        if len(seen) != request["answer"]:
            raise RuntimeError(f"{len(seen)} tokens came and not {request['answer']}")
    first = [1e3 * seen[0] for seen in times]
    each = [1e3 * (seen[-1] - seen[0]) / (len(seen) - 1) for seen in times if len(seen) > 1]
    print(json.dumps(figures(sum(map(len, times)), max(seen[-1] for seen in times), first, each)))


def run_carousel(job, load_file):
    command = [*job["program"], "bench", "serve", "--model", job["model"], "--load", load_file, "--concurrency",
               str(job["concurrency"]), "--threads", str(job["threads"]), "--chunk", str(CHUNK), "--kv-type-k",
               job["kv_type"], "--kv-type-v", job["kv_type"], "--no-eviction", "--json", "-"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    variables["CAROUSEL_MODEL"] = job["model"]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
                            check=True)
    line = json.loads(result.stdout.splitlines()[-1])
    return {"new_tokens_per_s": line["new_tokens_per_s"], "ttft_p50": line["ttft_ms"]["p50"],
            "ttft_p95": line["ttft_ms"]["p95"], "tpot_p50": line["tpot_ms"]["p50"],
            "tpot_p95": line["tpot_ms"]["p95"], "decode_steps": line["decode_steps"]}


def run_genai(job, load_file):
    job = {name: value for name, value in job.items() if name != "program"}
    result = subprocess.run([sys.executable, __file__, "--worker", json.dumps(job), load_file], capture_output=True,
                            text=True, timeout=PATIENCE_SECONDS, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# --- All of them ---------------------------------------------------------------------------------------------------


def compare(arguments, load_file):
    runs = {"carousel": run_carousel, "genai": run_genai}
    lines = []
    for concurrency in arguments.concurrency:
        job = {"model": str(arguments.model), "concurrency": concurrency, "threads": arguments.threads,
               "kv_type": arguments.kv_type, "program": arguments.program}
        results = {name: [] for name in runs}
        for number in range(arguments.rounds):
            for name in list(runs) if number % 2 == 0 else reversed(list(runs)):
                results[name].append(runs[name](job, load_file))
        for name, rounds in results.items():
            line = {"engine": name, "concurrency": concurrency, "rounds": rounds}
            lines.append(line)
            shown = ", ".join(f"{figure} {statistics.median(entry[figure] for entry in rounds):.1f}"
                              for figure in ("new_tokens_per_s", "ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95"))
            print(f"{concurrency} at once: {name}: {shown}", flush=True)
        ratios = [ours["new_tokens_per_s"] / theirs["new_tokens_per_s"]
                  for ours, theirs in zip(results["carousel"], results["genai"])]
        print(f"{concurrency} at once: carousel over genai {statistics.median(ratios):.3f} "
              f"[{min(ratios):.3f}, {max(ratios):.3f}], {len(ratios)} rounds", flush=True)
    return lines


def main():
    if len(sys.argv) == 4 and sys.argv[1] == "--worker":
        return work(json.loads(sys.argv[2]), sys.argv[3])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--program", nargs="+", default=[str(ROOT / "run"), "carousel"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt-tokens", nargs=2, type=int, default=[32, 1024], metavar=("LEAST", "MOST"))
    parser.add_argument("--answer-tokens", nargs=2, type=int, default=[16, 128], metavar=("LEAST", "MOST"))
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        load_file = Path(folder) / "load.jsonl"
        load_file.write_text("".join(json.dumps(request) + "\n" for request in draw_load(arguments, vocabulary)))
        lines = compare(arguments, str(load_file))
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
