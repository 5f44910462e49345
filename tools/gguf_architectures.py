# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file's architecture and metadata say about the decoder in it.

The table says what llama.cpp knows about an architecture and does not write into the file. Where families differ in what
is in the file at all (norms of queries and keys, biases, joined matrices), the tensors' names say it.
"""

from __future__ import annotations

import dataclasses
import math
import re

import decoder_graph
import gguf_header
import gguf_weights
import numpy as np


class NotSupported(gguf_header.GgufError):
    """The file describes a model that cannot be built; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    pairs_neighbours: bool = False  # queries and keys are kept for RoPE over (2 i, 2 i + 1)
    activation: str = "silu"
    scales_embeddings: bool = False  # by the square root of the hidden size
    window_pattern: int = 0  # every n-th layer sees everything, the others a window; 0: the window is every layer's
    window_theta: float = 0.0  # of layers with a window, where the file does not say; 0: that of all
    attention_soft_cap: float = 0.0  # likewise
    logit_soft_cap: float = 0.0
    unrotated_pattern: int = 0  # every n-th layer has no RoPE
    hidden_sizes_of_wide_heads: tuple[
        int, ...
    ] = ()  # models that scale scores by hidden size / heads, not by head size


ARCHITECTURES = {
    "llama": Architecture(pairs_neighbours=True),  # Mistral and SmolLM2 too
    "smollm3": Architecture(pairs_neighbours=True, unrotated_pattern=4),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "gemma2": Architecture(
        activation="gelu_tanh",
        scales_embeddings=True,
        window_pattern=2,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        hidden_sizes_of_wide_heads=(4608,),  # 27B
    ),
    "gemma3": Architecture(
        activation="gelu_tanh",
        scales_embeddings=True,
        window_pattern=6,
        window_theta=10000.0,
        hidden_sizes_of_wide_heads=(5376,),  # 27B
    ),
    "phi3": Architecture(),
    "granite": Architecture(pairs_neighbours=True),
}

# What llama.cpp puts next to the weights of RoPE's frequencies: divisors, one per pair.
_FACTORS, _LONG_FACTORS, _SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# Tensors that a graph may leave unread.
_NOT_WEIGHTS = (_FACTORS, _LONG_FACTORS, _SHORT_FACTORS)


@dataclasses.dataclass(frozen=True)
class Description:
    """The decoder, and how to read its weights."""

    decoder: decoder_graph.Decoder
    trained_window: int
    row_orders: dict[str, np.ndarray]
    theta: float  # of the layers that see everything
    window_theta: float


class _Reader:
    def __init__(self, header: gguf_header.GgufHeader, path: str) -> None:
        self.header = header
        self.path = path
        self.name = header.metadata.get("general.architecture")

    def refuse(self, problem: str) -> NotSupported:
        return NotSupported(f"{self.path}: {problem}")

    def count(self, key: str, missing: int | None = None) -> int:
        value = self.header.get(key, missing)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise self.refuse(f"{self.name}.{key} differs from layer to layer, which is not supported")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.refuse(f"{self.name}.{key} is {value!r}, but must be a positive whole number")
        return value

    def number(self, key: str, missing: float) -> float:
        value = self.header.get(key, missing)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise self.refuse(f"{self.name}.{key} is {value!r}, but must be a number that is not negative")
        return float(value)


def _corrections(frequencies: np.ndarray, theta: float, original: int, factor: float, reader: _Reader) -> np.ndarray:
    """YaRN's ramp from frequencies that are kept to those that are divided (Peng et al. 2023, section 3.2)."""
    dims = 2 * len(frequencies)

    def pair_of_turns(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of_turns(reader.number("rope.scaling.yarn_beta_fast", 32.0))), 0)
    high = min(math.ceil(pair_of_turns(reader.number("rope.scaling.yarn_beta_slow", 1.0))), dims - 1)
    ramp = np.clip((np.arange(len(frequencies)) - low) / max(high - low, 0.001), 0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp)


def _divisors(
    reader: _Reader, weights: gguf_weights.GgufWeights, window: int, original: int, pairs: int
) -> np.ndarray | None:
    name = _FACTORS
    if _LONG_FACTORS in weights:
        # LongRoPE has one set for texts inside the original window and one for longer ones (Ding et al. 2024).
        name = _LONG_FACTORS if window > original else _SHORT_FACTORS
    if name not in weights:
        return None
    divisors = weights.vector(name).astype(np.float64)
    if len(divisors) != pairs or not (divisors > 0).all():
        raise reader.refuse(
            f"{name} has {len(divisors)} factors, but {pairs} positive ones are needed; the file is damaged"
        )
    return divisors


def _global_rope(reader: _Reader, weights: gguf_weights.GgufWeights, rotated: int, window: int) -> decoder_graph.Rope:
    theta = reader.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise reader.refuse(f"{reader.name}.rope.freq_base is {theta}, but must be greater than 1")
    pairs = rotated // 2
    frequencies = theta ** (-2.0 * np.arange(pairs) / rotated)
    original = reader.count("rope.scaling.original_context_length", reader.count("context_length"))
    divisors = _divisors(reader, weights, window, original, pairs)
    if divisors is not None:
        frequencies = frequencies / divisors
    attention_factor = reader.number("rope.scaling.attn_factor", 1.0)
    scaling = reader.header.get("rope.scaling.type", "none")
    factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 1.0)) or 1.0
    if scaling == "linear" or (scaling == "none" and factor != 1.0):
        frequencies = frequencies / factor
    elif scaling == "yarn":
        if factor > 1.0:
            frequencies = _corrections(frequencies, theta, original, factor, reader)
            attention_factor *= 1.0 + 0.1 * math.log(factor)
    elif scaling not in ("none", "longrope"):
        raise reader.refuse(
            f"{reader.name}.rope.scaling.type is {scaling!r}; none, linear, yarn and longrope are known"
        )
    return decoder_graph.Rope(tuple(frequencies.tolist()), attention_factor)


def _window_rope(
    reader: _Reader, architecture: Architecture, rotated: int, whole: decoder_graph.Rope
) -> decoder_graph.Rope:
    theta = reader.number("rope.freq_base_swa", architecture.window_theta)
    if not theta:
        return whole
    return decoder_graph.Rope(tuple((theta ** (-2.0 * np.arange(rotated // 2) / rotated)).tolist()))


def _windows(reader: _Reader, architecture: Architecture, layers: int) -> list[int]:
    """Of each layer; 0: it sees everything."""
    if not reader.header.get("attention.sliding_window"):
        return [0] * layers
    window = reader.count("attention.sliding_window")
    pattern = reader.header.get("attention.sliding_window_pattern", architecture.window_pattern)
    if isinstance(pattern, list):
        if len(pattern) < layers:
            raise reader.refuse(
                f"{reader.name}.attention.sliding_window_pattern has {len(pattern)} entries for {layers} layers"
            )
        return [window if has_window else 0 for has_window in pattern[:layers]]
    if not pattern:
        return [window] * layers
    return [0 if (layer + 1) % pattern == 0 else window for layer in range(layers)]


def _layers(reader: _Reader, architecture: Architecture, rope: decoder_graph.Rope, window_rope: decoder_graph.Rope):
    layers = []
    for index, window in enumerate(_windows(reader, architecture, reader.count("block_count"))):
        rotates = not architecture.unrotated_pattern or (index + 1) % architecture.unrotated_pattern != 0
        layers.append(decoder_graph.Layer((window_rope if window else rope) if rotates else None, window))
    return tuple(layers)


def _check_shapes(reader: _Reader, decoder: decoder_graph.Decoder) -> None:
    """Against the metadata, so that a damaged file is refused here and not by the graph's shape inference."""
    hidden, inner = decoder.hidden_size, decoder.feed_forward_size
    q, k = decoder.query_heads * decoder.key_dim, decoder.kv_heads * decoder.key_dim
    v, out = decoder.kv_heads * decoder.value_dim, decoder.query_heads * decoder.value_dim
    gated = "blk.0.ffn_gate.weight" in reader.header.tensors
    wanted = {
        "attn_q.weight": (q, hidden),
        "attn_k.weight": (k, hidden),
        "attn_v.weight": (v, hidden),
        "attn_qkv.weight": (q + k + v, hidden),
        "attn_output.weight": (hidden, out),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner if gated else 2 * inner, hidden),
        "ffn_down.weight": (hidden, inner),
        "attn_q_norm.weight": (decoder.key_dim,),
        "attn_k_norm.weight": (decoder.key_dim,),
        "attn_q.bias": (q,),
        "attn_k.bias": (k,),
        "attn_v.bias": (v,),
        "attn_qkv.bias": (q + k + v,),
        "attn_output.bias": (hidden,),
        "ffn_gate.bias": (inner,),
        "ffn_up.bias": (inner if gated else 2 * inner,),
        "ffn_down.bias": (hidden,),
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "post_attention_norm.weight": (hidden,),
        "post_ffw_norm.weight": (hidden,),
        "output_norm.weight": (hidden,),
        "token_embd.weight": (decoder.vocabulary_size, hidden),
        "output.weight": (decoder.vocabulary_size, hidden),
    }
    for name, tensor in reader.header.tensors.items():
        if name in _NOT_WEIGHTS:
            continue
        block = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        part = block.group(2) if block else name
        if part not in wanted or (block and int(block.group(1)) >= len(decoder.layers)):
            raise reader.refuse(
                f"the tensor {name} is none that a model of the architecture {reader.name} is known to have; it is not supported"
            )
        if tensor.shape != wanted[part]:
            raise reader.refuse(
                f"the tensor {name} has the shape {list(tensor.shape)}, but the metadata says {list(wanted[part])}; the file is damaged"
            )


def _row_orders(
    reader: _Reader, architecture: Architecture, decoder: decoder_graph.Decoder, rotated: int
) -> dict[str, np.ndarray]:
    if not architecture.pairs_neighbours:
        return {}
    orders = {}
    for index in range(len(decoder.layers)):
        for part, heads in (("attn_q", decoder.query_heads), ("attn_k", decoder.kv_heads)):
            order = gguf_weights.neighbours_to_halves(heads * decoder.key_dim, decoder.key_dim, rotated)
            for suffix in ("weight", "bias"):
                orders[f"blk.{index}.{part}.{suffix}"] = order
    return orders


def describe(
    header: gguf_header.GgufHeader, weights: gguf_weights.GgufWeights, path: str, window: int | None
) -> Description:
    """What to build. `window`: how many positions the model is to be used on; None: as many as it was trained on."""
    reader = _Reader(header, path)
    architecture = ARCHITECTURES.get(reader.name) if isinstance(reader.name, str) else None
    if architecture is None:
        raise reader.refuse(
            f"general.architecture is {reader.name!r}; {', '.join(ARCHITECTURES)} are known. Export the model to OpenVINO from its "
            "original weights instead (optimum-cli export openvino)"
        )
    if header.get("expert_count"):
        raise reader.refuse(
            f"{reader.name}.expert_count is {header.get('expert_count')}: mixtures of experts are not supported"
        )
    trained = reader.count("context_length")
    if window is not None and window > trained:
        raise reader.refuse(f"--window is {window}, but the model was trained on {trained} positions; use at most that")
    heads, hidden = reader.count("attention.head_count"), reader.count("embedding_length")
    kv_heads = reader.count("attention.head_count_kv", heads)
    key_dim = reader.count("attention.key_length", max(hidden // heads, 1))
    rotated = reader.count("rope.dimension_count", key_dim)
    if heads % kv_heads != 0:
        raise reader.refuse(f"{heads} query heads cannot share {kv_heads} KV heads; the file is damaged")
    if rotated > key_dim or rotated % 2 != 0:
        raise reader.refuse(
            f"{reader.name}.rope.dimension_count is {rotated}, but must be even and at most the head size, {key_dim}"
        )
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise reader.refuse("the tensor token_embd.weight is missing; the file is incomplete or no language model")
    rope = _global_rope(reader, weights, rotated, window or trained)
    window_rope = _window_rope(reader, architecture, rotated, rope)
    scored_dim = hidden / heads if hidden in architecture.hidden_sizes_of_wide_heads else key_dim
    decoder = decoder_graph.Decoder(
        hidden_size=hidden,
        vocabulary_size=table.shape[0],
        query_heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=reader.count("attention.value_length", key_dim),
        feed_forward_size=reader.count("feed_forward_length"),
        norm_epsilon=reader.number("attention.layer_norm_rms_epsilon", 1e-5),
        attention_scale=reader.number("attention.scale", 0.0) or scored_dim**-0.5,
        layers=_layers(reader, architecture, rope, window_rope),
        activation=architecture.activation,
        attention_soft_cap=reader.number("attn_logit_softcapping", architecture.attention_soft_cap),
        logit_soft_cap=reader.number("final_logit_softcapping", architecture.logit_soft_cap),
        embedding_multiplier=(
            hidden**0.5 if architecture.scales_embeddings else reader.number("embedding_scale", 1.0) or 1.0
        ),
        residual_multiplier=reader.number("residual_scale", 1.0) or 1.0,
        logit_divisor=reader.number("logit_scale", 1.0) or 1.0,
    )
    _check_shapes(reader, decoder)
    return Description(
        decoder=decoder,
        trained_window=window or trained,
        row_orders=_row_orders(reader, architecture, decoder, rotated),
        theta=reader.number("rope.freq_base", 10000.0),
        window_theta=reader.number("rope.freq_base_swa", architecture.window_theta),
    )
