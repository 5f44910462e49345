# SPDX-License-Identifier: Apache-2.0
"""Holds a GGUF file's tensors against its metadata, so that a damaged file is refused before anything is made from it."""

from __future__ import annotations

import re
from collections import defaultdict

import decoder_graph
import gguf_facts

# Of every architecture's layers; queries, keys and values are in one matrix or in three.
_PARTS = ("attn_norm", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
# Tensors that are no weights.
_FACTORS = (gguf_facts.FACTORS, gguf_facts.LONG_FACTORS, gguf_facts.SHORT_FACTORS)


def _wanted(decoder: decoder_graph.Decoder, gated: bool) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that is known, by its name inside its layer."""
    hidden, inner = decoder.hidden_size, decoder.feed_forward_size
    q, k = decoder.query_heads * decoder.key_dim, decoder.kv_heads * decoder.key_dim
    v, out = decoder.kv_heads * decoder.value_dim, decoder.query_heads * decoder.value_dim
    return {
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


def check(
    reader: gguf_facts.Reader, decoder: decoder_graph.Decoder, layers: int, more_norms: tuple[str, ...]
) -> None:
    """Whether the tensors are those of `decoder` with `layers` layers, none more, and in each layer the same."""
    tensors = reader.header.tensors
    wanted = _wanted(decoder, "blk.0.ffn_gate.weight" in tensors)
    of_layer: dict[int, set[str]] = defaultdict(set)
    for name, tensor in tensors.items():
        if name in _FACTORS:
            continue
        block = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name)
        part = block.group(2) if block else name
        if part not in wanted or (block and int(block.group(1)) >= layers):
            raise reader.refuse(
                f"the tensor {name} is none that a model of the architecture {reader.name} is known to have; it is not supported"
            )
        if tensor.shape != wanted[part]:
            raise reader.refuse(
                f"the tensor {name} has the shape {list(tensor.shape)}, but the metadata says {list(wanted[part])}; the file is damaged"
            )
        if block:
            of_layer[int(block.group(1))].add(part)
    joined = "blk.0.attn_qkv.weight" in tensors
    projections = ("attn_qkv",) if joined else ("attn_q", "attn_k", "attn_v")
    every_layer = {f"{part}.weight" for part in (*_PARTS, *projections, *more_norms)}.union(*of_layer.values())
    for layer in range(layers):
        missing = sorted(every_layer - of_layer[layer])
        if missing:
            raise reader.refuse(
                f"the tensor blk.{layer}.{missing[0]} is missing; the file is incomplete or of another architecture"
            )
