# SPDX-License-Identifier: Apache-2.0
"""openvino.genai's own eviction on the same IR and the same token ids, in a process of its own.

Its Python interface gives the log-probability of a chosen token only, and cannot be told what to choose.
For distributions the model's graph gets a tail that does both: a table says which token of the forced continuation
stands at which position, and what the whole cache's distribution was there. The tail gives the forced token logit
0, one other token a negative logit, all others none; greedy decoding must take the forced token, and its log-
probability is -log(1 + exp(second logit)), which carries one number out: the divergence from the whole cache's
distribution, with the agreement of the likeliest tokens in its upper half. The engine, its eviction and the model
before the tail are as shipped.

    python -m quality.rival JOB.json        prints one JSON object a line
"""

import json
import math
import sys
from pathlib import Path

import numpy

SCALE = 0.9  # keeps the second logit below the forced token's
# Of the number that is carried out: the divergence moves it by WIDTH, agreement by a half, and the margin keeps
# rounding from taking the one for the other.
MARGIN, WIDTH = 0.05, 0.4


# What is compared, by name: aggregation, KVCrush, rotation.
RIVALS = {
    "genai snapkv": {"aggregation": "NORM_SUM"},
    "genai snapkv sum": {"aggregation": "SUM"},
    "genai kvcrush": {"aggregation": "NORM_SUM", "kvcrush": True},
    "genai adaptive-rkv": {"aggregation": "ADAPTIVE_RKV"},
    "genai snapkv rotated": {"aggregation": "NORM_SUM", "rotate": True},
    "genai snapkv u8": {"aggregation": "NORM_SUM", "kv_type": "u8"},
    "genai whole": {"evict": False},
}


def limits(setting, budget, start, recent, block):
    """The max_cache_size to tell openvino.genai, and KVCrush's blocks, so that it keeps at most `budget` tokens.

    It evicts whole blocks once there are more tokens than its limit, and so holds up to a block less one token more;
    and what KVCrush chooses comes on top of the limit (at 256 tokens with two such blocks it held ten blocks, and
    eight without). KVCrush chooses half of what may be evicted, as its authors' examples have it.
    """
    told = budget - block
    if not RIVALS[setting].get("kvcrush"):
        return told, 0
    crushed = max((told - start - recent) // block // 2, 1)
    return told - crushed * block, crushed


def packed(divergence, agrees):
    """Two figures as one number in [0, 1)."""
    return agrees / 2 + MARGIN + WIDTH * divergence / (1 + divergence)


def unpacked(value):
    """The inverse: divergence and agreement."""
    agrees = value >= 0.5
    share = min(max((value - agrees / 2 - MARGIN) / WIDTH, 0.0), 1 - 1e-7)
    return share / (1 - share), bool(agrees)


def from_logprob(logprob):
    """What the tail said, read off the forced token's log-probability."""
    return unpacked(max(math.exp(-logprob) - 1, 0.0) / SCALE)


def add_tail(model, first_positions, forced, reference):
    """Changes the graph as said above. Position first_positions[i] + j is the place before forced[i][j], where the
    whole cache's log-probabilities were reference[i][j]; ranges of different prompts must not meet."""
    import openvino as ov
    from openvino import opset13 as op

    tokens, vocabulary = forced.shape[1], reference.shape[2]
    size = max(first_positions) + tokens + 1
    row_of = numpy.zeros(size, dtype=numpy.int64)
    for index, first in enumerate(first_positions):
        row_of[first:first + tokens] = index * tokens + numpy.arange(tokens)
    result = model.get_results()[0]
    logits = result.input(0).get_source_output()
    positions = next(p for p in model.get_parameters() if "position_ids" in p.get_output_tensor(0).get_names())
    flat = op.reshape(positions, op.constant([-1], ov.Type.i64), False)
    row = op.gather(op.constant(row_of), op.minimum(flat, op.constant(size - 1, ov.Type.i64)), op.constant(0))
    expected = op.gather(op.constant(reference.reshape(-1, vocabulary).astype(numpy.float32)), row, op.constant(0))
    token = op.gather(op.constant(forced.reshape(-1).astype(numpy.int64)), row, op.constant(0))
    here = op.log_softmax(op.reshape(logits, op.constant([-1, vocabulary], ov.Type.i64), False), -1)
    last = op.constant([-1], ov.Type.i64)
    divergence = op.reduce_sum(op.multiply(op.exp(expected), op.subtract(expected, here)), last, True)
    divergence = op.relu(divergence)

    def likeliest(rows):
        return op.topk(rows, op.constant(1), -1, "max", "none", "i64").output(1)

    agrees = op.convert(op.equal(likeliest(expected), likeliest(here)), ov.Type.f32)

    def number(value):
        return op.constant(numpy.float32(value))

    one = number(1)
    share = op.divide(divergence, op.add(divergence, one))
    value = op.add(op.add(op.multiply(agrees, number(0.5)), number(MARGIN)), op.multiply(share, number(WIDTH)))
    second = op.log(op.multiply(value, number(SCALE)))
    # One-hot rows: the forced token, and the one behind it, round the vocabulary's end.
    other = op.mod(op.add(token, op.constant(1, ov.Type.i64)), op.constant(vocabulary, ov.Type.i64))
    none = number(0)
    is_forced = op.one_hot(token, op.constant(vocabulary), one, none, -1)
    is_other = op.one_hot(other, op.constant(vocabulary), one, none, -1)
    floor = op.multiply(op.subtract(op.add(is_forced, is_other), one), number(1e4))
    told = op.add(floor, op.multiply(is_other, second))
    shaped = op.reshape(told, op.shape_of(logits), False)
    result.input(0).replace_source_output(shaped.output(0))
    model.validate_nodes_and_infer_types()
    return model


def pipeline_of(model, job):
    import openvino_genai as genai
    from openvino_genai import py_openvino_genai

    setting = RIVALS[job["setting"]]
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = job["chunk"]
    scheduler.enable_prefix_caching = False
    scheduler.max_num_seqs = 1
    if setting.get("evict", True):
        scheduler.use_cache_eviction = True
        config = genai.CacheEvictionConfig(job["start"], job["recent"], job["told"],
                                           getattr(genai.AggregationMode, setting["aggregation"]),
                                           apply_rotation=setting.get("rotate", False))
        if job["kvcrush_blocks"]:
            config.kvcrush_config = genai.KVCrushConfig(job["kvcrush_blocks"])
        if setting["aggregation"] == "ADAPTIVE_RKV":
            config.adaptive_rkv_config = py_openvino_genai.AdaptiveRKVConfig()
        scheduler.cache_eviction_config = config
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": setting.get("kv_type", "f16"),
                  "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if job["precision"] == "int8" else 0}
    return genai.ContinuousBatchingPipeline(str(model), scheduler_config=scheduler, device="CPU",
                                            properties=properties)


def answer(pipeline, number, ids, new_tokens, forced):
    """New tokens, their log-probabilities, and the cache in use in bytes: the most, and at the end."""
    import openvino as ov
    import openvino_genai as genai

    config = genai.GenerationConfig()
    config.max_new_tokens = new_tokens
    config.do_sample = False
    config.apply_chat_template = False
    config.ignore_eos = forced
    config.logprobs = 1
    tensor = ov.Tensor(ov.Type.i64, [1, len(ids)])
    tensor.data[0, :] = ids
    handle = pipeline.add_request(number, tensor, config)
    tokens, logprobs, peak, kept = [], [], 0, 0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        kept = cache_bytes(pipeline) or kept
        peak = max(peak, kept)
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
                logprobs += output.generated_log_probs
    return [int(token) for token in tokens], [float(value) for value in logprobs], peak, kept


def cache_bytes(pipeline):
    metrics = pipeline.get_metrics()
    size = getattr(metrics, "kv_cache_size_in_bytes", 0)
    return int(size * metrics.cache_usage / 100)


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    model = Path(job["model"])
    forced = job.get("forced")
    if forced:
        import openvino as ov

        graph = ov.Core().read_model(model / "openvino_model.xml")
        reference = numpy.load(job["reference"], mmap_mode="r")
        add_tail(graph, [len(ids) - 1 for ids in job["prompts"]], numpy.array(forced), reference)
        ov.save_model(graph, Path(job["folder"]) / "openvino_model.xml", compress_to_fp16=False)
        for path in model.iterdir():
            if path.name not in ("openvino_model.xml", "openvino_model.bin"):
                (Path(job["folder"]) / path.name).symlink_to(path.resolve())
        model = Path(job["folder"])
    pipeline = pipeline_of(model, job)
    for number, ids in enumerate(job["prompts"]):
        new_tokens = len(forced[number]) if forced else job["max_new_tokens"][number]
        tokens, logprobs, peak, kept = answer(pipeline, number, ids, new_tokens, bool(forced))
        line = {"token_ids": tokens, "prompt_tokens": len(ids), "peak_cache_bytes": peak,
                "cache_bytes": kept}
        if forced:
            if tokens != forced[number]:
                raise RuntimeError(f"{tokens} came and not the forced {forced[number]}")
            pairs = [from_logprob(logprob) for logprob in logprobs]
            line["kl"] = [pair[0] for pair in pairs]
            line["top1"] = [pair[1] for pair in pairs]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
