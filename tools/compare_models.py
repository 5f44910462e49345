#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares imports of one model: milliseconds per step, and how far their predictions are from the first one's.

    compare_models.py models/as-f16 models/smollm2-135m-instruct

Steps of the models alternate, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import model_check
import numpy as np
import openvino as ov

CONTEXT_TOKENS = 64
WARM_UP_STEPS = 3


class Stepper:
    """One model with a context of CONTEXT_TOKENS, from which every step begins."""

    def __init__(self, folder: Path, threads: int, group_size: int) -> None:
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": group_size,
        }
        self._request = ov.Core().compile_model(folder / "openvino_model.xml", "CPU", properties).create_infer_request()
        self._tokens = 0
        self.milliseconds: dict[int, list[float]] = {}

    def _run(self, tokens: np.ndarray) -> None:
        begin, end = self._tokens, self._tokens + len(tokens)
        self._request.infer(
            {
                "input_ids": tokens[None],
                "attention_mask": np.ones((1, end), np.int64),
                "position_ids": np.arange(begin, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            }
        )
        self._tokens = end

    def step(self, tokens: np.ndarray) -> None:
        self._request.reset_state()
        self._tokens = 0
        self._run(np.full(CONTEXT_TOKENS, 100, np.int64))
        begin = time.perf_counter()
        self._run(tokens)
        self.milliseconds.setdefault(len(tokens), []).append((time.perf_counter() - begin) * 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="DIR", help="folders of imports of the same model")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each kind (default 40)")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: as many as the runtime likes)")
    parser.add_argument("--group-size", type=int, default=32, help="rounding of activations, 0 for none (default 32)")
    options = parser.parse_args()

    tokens = model_check.tokenize(options.models[0])
    reference = None
    for folder in options.models:
        found = model_check.log_probabilities(folder / "openvino_model.xml", tokens)
        reference = found if reference is None else reference
        gap = model_check.distance(reference, found)
        size_mb = (folder / "openvino_model.bin").stat().st_size / 1e6
        print(
            f"{folder}: {size_mb:.0f} MB, perplexity {model_check.perplexity(found, tokens):.2f} on {len(tokens)} tokens, "
            f"KL to the first {gap.kl:.4f}, same first choice {100 * gap.top1:.1f} %"
        )
    steppers = [Stepper(folder, options.threads, options.group_size) for folder in options.models]
    for count in (1, 4, 64):
        for _ in range(WARM_UP_STEPS + options.steps):
            for stepper in steppers:
                stepper.step(tokens[:count])
        for folder, stepper in zip(options.models, steppers):
            timed = stepper.milliseconds[count][WARM_UP_STEPS:]
            print(
                f"{folder}: {count:2} tokens in a step: median {np.median(timed):.1f} ms, fastest {min(timed):.1f} ms"
            )


if __name__ == "__main__":
    main()
