# SPDX-License-Identifier: Apache-2.0
"""Runs a language model's IR on a paragraph, to see that it works and how far two versions of its weights are apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  (registers the tokenizer's operations with every Core)

PARAGRAPH = (
    "The lighthouse stood on a narrow cape, and for most of the year nobody came there but the keeper and the mail boat. "
    "He wrote down the weather four times a day, trimmed the lamp at dusk, and read whatever the boat had brought. "
    "In the winter of 1907 the boat did not come for eleven weeks. When it finally arrived, the captain found the lamp "
    "burning, the log complete to the last hour, and a letter on the table which explained, in a careful hand, why the "
    "keeper had decided to count the waves."
)

# The plugin may round activations to int8 for speed; here the weights are compared, and nothing else should differ.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


@dataclasses.dataclass(frozen=True)
class Distance:
    kl: float  # mean over positions of KL(reference || model), in nats
    top1: float  # share of positions where both find the same token most likely


def tokenize(folder: Path, text: str = PARAGRAPH) -> np.ndarray:
    """Token ids int64 [tokens] of `text` by the tokenizer in `folder`."""
    tokenizer = ov.Core().compile_model(folder / "openvino_tokenizer.xml", "CPU")
    return np.asarray(tokenizer([text])["input_ids"])[0].astype(np.int64)


class Stepper:
    """A model with its state: each step's logits follow from all steps before it."""

    def __init__(self, model: ov.Model | Path) -> None:
        self._request = ov.Core().compile_model(model, "CPU", _EXACT).create_infer_request()
        self._known = {name for port in self._request.model_inputs for name in port.names}
        self._past = 0

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """float32 [tokens, vocabulary], valid until the next step."""
        begin, end = self._past, self._past + len(tokens)
        inputs = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._past = end
        return self._request.infer({name: value for name, value in inputs.items() if name in self._known})["logits"][0]


def log_probabilities(model: ov.Model | Path, tokens: np.ndarray) -> np.ndarray:
    """What `model` expects after each token: natural logarithms, float32 [tokens, vocabulary]."""
    stepper = Stepper(model)
    found = np.array(stepper.step(tokens))
    # Row by row: with a vocabulary of 262,144 every further copy is felt.
    for row in found:
        row -= row.max()
        row -= np.log(np.exp(row).sum())
    return found


def distance(reference: np.ndarray, other: np.ndarray) -> Distance:
    """How far `other` is from `reference`, both from log_probabilities() of the same tokens."""
    kl = np.mean([np.sum(np.exp(a) * (a - b), dtype=np.float64) for a, b in zip(reference, other)])
    return Distance(float(kl), float((reference.argmax(-1) == other.argmax(-1)).mean()))


def perplexity(log_probability: np.ndarray, tokens: np.ndarray) -> float:
    predicted = log_probability[np.arange(len(tokens) - 1), tokens[1:]]
    return float(np.exp(-predicted.mean()))
