# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file's architecture and metadata say about the decoder in it.

The table says what llama.cpp knows about an architecture and does not write into the file. Where families differ in what
is in the file at all (norms of queries and keys, biases, joined matrices), the tensors' names say it.
"""

from __future__ import annotations

import dataclasses
import math

import decoder_graph
import gguf_facts
import gguf_header
import gguf_shapes
import gguf_weights
import numpy as np
from gguf_facts import FACTORS, LONG_FACTORS, SHORT_FACTORS


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
    # Models of these hidden sizes scale scores by hidden size / heads, not by head size.
    hidden_sizes_of_wide_heads: tuple[int, ...] = ()
    norms: tuple[str, ...] = ()  # that each layer has, beside those of all architectures


ARCHITECTURES = {
    "llama": Architecture(pairs_neighbours=True),  # Mistral and SmolLM2 too
    "smollm3": Architecture(pairs_neighbours=True, unrotated_pattern=4),
    "qwen2": Architecture(),
    "qwen3": Architecture(norms=("attn_q_norm", "attn_k_norm")),
    "gemma2": Architecture(
        activation="gelu_tanh",
        scales_embeddings=True,
        window_pattern=2,
        attention_soft_cap=50.0,
        logit_soft_cap=30.0,
        hidden_sizes_of_wide_heads=(4608,),  # 27B
        norms=("post_attention_norm", "post_ffw_norm"),
    ),
    "gemma3": Architecture(
        activation="gelu_tanh",
        scales_embeddings=True,
        window_pattern=6,
        window_theta=10000.0,
        hidden_sizes_of_wide_heads=(5376,),  # 27B
        norms=("attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"),
    ),
    "phi3": Architecture(),
    "granite": Architecture(pairs_neighbours=True),
}


@dataclasses.dataclass(frozen=True)
class Description:
    """The decoder, and how to read its weights."""

    decoder: decoder_graph.Decoder
    trained_window: int
    row_orders: dict[str, np.ndarray]
    theta: float  # of the layers that see everything
    window_theta: float


def _corrections(
    frequencies: np.ndarray, theta: float, original: int, factor: float, reader: gguf_facts.Reader
) -> np.ndarray:
    """YaRN's ramp from frequencies that are kept to those that are divided (Peng et al. 2023, section 3.2)."""
    dims = 2 * len(frequencies)

    def pair_of_turns(key: str, missing: float) -> float:
        turns = reader.number(key, missing)
        if turns == 0:
            raise reader.refuse_value(key, turns, "greater than 0")
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_of_turns("rope.scaling.yarn_beta_fast", 32.0)), 0)
    high = min(math.ceil(pair_of_turns("rope.scaling.yarn_beta_slow", 1.0)), dims - 1)
    ramp = np.clip((np.arange(len(frequencies)) - low) / max(high - low, 0.001), 0, 1)
    return frequencies / factor * ramp + frequencies * (1 - ramp)


def _divisors(
    reader: gguf_facts.Reader, weights: gguf_weights.GgufWeights, window: int, original: int, pairs: int
) -> np.ndarray | None:
    name = FACTORS
    if LONG_FACTORS in weights or reader.header.get("rope.scaling.type") == "longrope":
        # LongRoPE has one set for texts inside the original window and one for longer ones (Ding et al. 2024).
        name = LONG_FACTORS if window > original else SHORT_FACTORS
    elif name not in weights:
        return None
    divisors = weights.vector(name).astype(np.float64)
    if len(divisors) != pairs or not (divisors > 0).all():
        raise reader.refuse(
            f"{name} has {len(divisors)} factors, but {pairs} positive ones are needed; the file is damaged"
        )
    return divisors


def _frequencies(reader: gguf_facts.Reader, key: str, theta: float, rotated: int) -> np.ndarray:
    if theta <= 1:
        raise reader.refuse_value(key, theta, "greater than 1")
    return theta ** (-2.0 * np.arange(rotated // 2) / rotated)


def _global_rope(
    reader: gguf_facts.Reader, weights: gguf_weights.GgufWeights, rotated: int, window: int
) -> decoder_graph.Rope:
    theta = reader.number("rope.freq_base", 10000.0)
    frequencies = _frequencies(reader, "rope.freq_base", theta, rotated)
    original = reader.count("rope.scaling.original_context_length", reader.count("context_length"))
    scaling = reader.header.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise reader.refuse(
            f"{reader.name}.rope.scaling.type is {gguf_header.shown(scaling)}; none, linear, yarn and longrope are known"
        )
    divisors = _divisors(reader, weights, window, original, len(frequencies))
    if divisors is not None:
        frequencies = frequencies / divisors
    attention_factor = reader.number("rope.scaling.attn_factor", 1.0) or 1.0
    factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 1.0)) or 1.0
    if scaling == "linear" or (scaling == "none" and factor != 1.0):
        frequencies = frequencies / factor
    elif scaling == "yarn" and factor > 1.0:
        frequencies = _corrections(frequencies, theta, original, factor, reader)
        attention_factor *= 1.0 + 0.1 * math.log(factor)
    if not np.isfinite(frequencies).all():
        raise reader.refuse_value("rope.scaling.factor", factor, "a factor that positions can be divided by")
    return decoder_graph.Rope(tuple(frequencies.tolist()), attention_factor)


def _window_rope(
    reader: gguf_facts.Reader, architecture: Architecture, rotated: int, whole: decoder_graph.Rope
) -> decoder_graph.Rope:
    theta = reader.number("rope.freq_base_swa", architecture.window_theta)
    if not theta:
        return whole
    return decoder_graph.Rope(tuple(_frequencies(reader, "rope.freq_base_swa", theta, rotated).tolist()))


def _windows(reader: gguf_facts.Reader, architecture: Architecture, layers: int) -> list[int]:
    """Of each layer; 0: it sees everything."""
    key = "attention.sliding_window"
    window = reader.count_or_none(key)
    if window == 0:
        return [0] * layers
    pattern = reader.header.get(f"{key}_pattern")
    if isinstance(pattern, list):
        if len(pattern) < layers or not all(isinstance(has_window, (bool, int)) for has_window in pattern):
            raise reader.refuse(
                f"{reader.name}.{key}_pattern has {len(pattern)} entries, but must say yes or no for {layers} layers"
            )
        return [window if has_window else 0 for has_window in pattern[:layers]]
    every = architecture.window_pattern if pattern is None else reader.count_or_none(f"{key}_pattern")
    return [0 if every and (layer + 1) % every == 0 else window for layer in range(layers)]


def _layers(
    reader: gguf_facts.Reader, architecture: Architecture, rope: decoder_graph.Rope, window_rope: decoder_graph.Rope
) -> tuple[decoder_graph.Layer, ...]:
    layers = []
    for index, window in enumerate(_windows(reader, architecture, reader.count("block_count"))):
        rotates = not architecture.unrotated_pattern or (index + 1) % architecture.unrotated_pattern != 0
        layers.append(decoder_graph.Layer((window_rope if window else rope) if rotates else None, window))
    return tuple(layers)


def _row_orders(
    reader: gguf_facts.Reader, architecture: Architecture, decoder: decoder_graph.Decoder, rotated: int
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


def _without_layers(reader: gguf_facts.Reader, architecture: Architecture) -> decoder_graph.Decoder:
    """The decoder's sizes and factors."""
    heads, hidden = reader.count("attention.head_count"), reader.count("embedding_length")
    kv_heads = reader.count("attention.head_count_kv", heads)
    key_dim = reader.count("attention.key_length", max(hidden // heads, 1))
    if heads % kv_heads != 0:
        raise reader.refuse(f"{heads} query heads cannot share {kv_heads} KV heads; the file is damaged")
    table = reader.header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise reader.refuse("the tensor token_embd.weight is missing; the file is incomplete or no language model")
    scored_dim = hidden / heads if hidden in architecture.hidden_sizes_of_wide_heads else key_dim
    return decoder_graph.Decoder(
        hidden_size=hidden,
        vocabulary_size=table.shape[0],
        query_heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=reader.count("attention.value_length", key_dim),
        feed_forward_size=reader.count("feed_forward_length"),
        norm_epsilon=reader.number("attention.layer_norm_rms_epsilon", 1e-5),
        attention_scale=reader.number("attention.scale", 0.0) or scored_dim**-0.5,
        layers=(),
        activation=architecture.activation,
        attention_soft_cap=reader.number("attn_logit_softcapping", architecture.attention_soft_cap),
        logit_soft_cap=reader.number("final_logit_softcapping", architecture.logit_soft_cap),
        embedding_multiplier=(
            hidden**0.5 if architecture.scales_embeddings else reader.number("embedding_scale", 1.0) or 1.0
        ),
        residual_multiplier=reader.number("residual_scale", 1.0) or 1.0,
        logit_divisor=reader.number("logit_scale", 1.0) or 1.0,
    )


def _architecture(reader: gguf_facts.Reader) -> Architecture:
    gguf_facts.check_kind(reader)
    architecture = ARCHITECTURES.get(reader.name) if isinstance(reader.name, str) else None
    if architecture is None:
        raise reader.refuse(
            f"general.architecture is {gguf_header.shown(reader.name)}; {', '.join(ARCHITECTURES)} are known. Export the model to "
            "OpenVINO from its original weights instead (optimum-cli export openvino)"
        )
    gguf_facts.check_decoder(reader)
    return architecture


def describe(
    header: gguf_header.GgufHeader, weights: gguf_weights.GgufWeights, path: str, window: int | None
) -> Description:
    """What to build. `window`: how many positions the model is to be used on; None: as many as it was trained on."""
    reader = gguf_facts.Reader(header, path)
    architecture = _architecture(reader)
    trained = reader.count("context_length")
    if window is not None and window > trained:
        raise reader.refuse(f"--window is {window}, but the model was trained on {trained} positions; use at most that")
    decoder = _without_layers(reader, architecture)
    # Before anything is made that is as large as the metadata says.
    gguf_shapes.check(reader, decoder, reader.count("block_count"), architecture.norms)
    rotated = reader.count("rope.dimension_count", decoder.key_dim)
    if rotated > decoder.key_dim or rotated % 2 != 0:
        raise reader.refuse(
            f"{reader.name}.rope.dimension_count is {rotated}, but must be even and at most the head size, {decoder.key_dim}"
        )
    rope = _global_rope(reader, weights, rotated, window or trained)
    window_rope = _window_rope(reader, architecture, rotated, rope)
    decoder = dataclasses.replace(decoder, layers=_layers(reader, architecture, rope, window_rope))
    return Description(
        decoder=decoder,
        trained_window=window or trained,
        row_orders=_row_orders(reader, architecture, decoder, rotated),
        theta=reader.number("rope.freq_base", 10000.0),
        window_theta=reader.number("rope.freq_base_swa", architecture.window_theta),
    )
