# SPDX-License-Identifier: Apache-2.0
"""Reads an architecture's figures from a GGUF file's metadata, and tells files that hold no language model by what they say."""

from __future__ import annotations

import math

import gguf_header

# What llama.cpp puts next to the weights of RoPE's frequencies: divisors, one per pair.
FACTORS, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"

# general.type, which is "model" or missing in a language model's file.
_OTHER_FILES = {
    "adapter": "an adapter (LoRA), which changes a model and is none",
    "imatrix": "an importance matrix, which quantising a model uses, and no model",
    "mmproj": "the part of a model that reads pictures or sound (mmproj)",
    "vocab": "a vocabulary without a model",
}
# general.architecture in files of other kinds.
_OTHER_ARCHITECTURES = {
    "clip": "the part of a model that reads pictures or sound (mmproj)",
    "controlvector": "a control vector, which steers a model and is none",
}
# Entries of an architecture that make it another model than the one that is built: what each may be, and what else means.
_ONLY = {
    "attention.causal": (True, "tokens see those that follow them: an encoder or embedding model, which writes no text"),
    "pooling_type": (0, "an embedding or ranking model, which writes no text"),
    "expert_count": (0, "mixtures of experts are not supported"),
    "use_parallel_residual": (False, "attention and feed-forward part side by side are not supported"),
    "attention.max_alibi_bias": (0, "ALiBi is not supported"),
    "attention.clamp_kqv": (0, "clamped queries, keys and values are not supported"),
}


class NotSupported(gguf_header.GgufError):
    """The file describes a model that cannot be built; the message is one line for the user."""


class Reader:
    def __init__(self, header: gguf_header.GgufHeader, path: str) -> None:
        self.header = header
        self.path = path
        self.name = header.metadata.get("general.architecture")

    def refuse(self, problem: str) -> NotSupported:
        return NotSupported(f"{self.path}: {problem}")

    def refuse_value(self, key: str, value: object, wanted: str) -> NotSupported:
        return self.refuse(f"{self.name}.{key} is {gguf_header.shown(value)}, but must be {wanted}")

    def count(self, key: str, missing: int | None = None) -> int:
        value = self.header.get(key, missing)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list) and value and all(gguf_header.is_whole(item) for item in value):
            raise self.refuse(f"{self.name}.{key} differs from layer to layer, which is not supported")
        if not gguf_header.is_whole(value) or not 0 < value < 2**31:
            raise self.refuse_value(key, value, "a positive whole number")
        return value

    def count_or_none(self, key: str) -> int:
        """Zero, or no entry: 0."""
        value = self.header.get(key, 0)
        return 0 if gguf_header.is_whole(value) and value == 0 else self.count(key)

    def number(self, key: str, missing: float) -> float:
        value = self.header.get(key, missing)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise self.refuse_value(key, value, "a number that is not negative")
        return float(value)


def check_kind(reader: Reader) -> None:
    """Refuses files that hold something else than a language model."""
    kind = reader.header.metadata.get("general.type", "model")
    other = _OTHER_ARCHITECTURES.get(reader.name) if isinstance(reader.name, str) else None
    if kind != "model":
        other = _OTHER_FILES.get(kind, "no model") if isinstance(kind, str) else "no model"
        raise reader.refuse(
            f"general.type is {gguf_header.shown(kind)}: {other}; give the file of the language model itself"
        )
    if other is not None:
        raise reader.refuse(
            f"general.architecture is {reader.name!r}: {other}; give the file of the language model itself"
        )
    if not reader.header.tensors:
        raise reader.refuse(
            "the file has no tensors: a vocabulary without a model; give the file of the language model itself"
        )


def check_decoder(reader: Reader) -> None:
    """Refuses models that say they are none of the decoders that are built."""
    for key, (wanted, meaning) in _ONLY.items():
        value = reader.header.get(key, wanted)
        is_flag = isinstance(wanted, bool)
        if isinstance(value, bool) != is_flag or not isinstance(value, (bool, int, float)):
            raise reader.refuse_value(key, value, "true or false" if is_flag else "a number")
        if value != wanted:
            raise reader.refuse(f"{reader.name}.{key} is {gguf_header.shown(value)}: {meaning}")
