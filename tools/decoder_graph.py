# SPDX-License-Identifier: Apache-2.0
"""Builds a decoder's OpenVINO graph from a description and named weights.

The description (Decoder) says what differs between families of models; the weights have the names that GGUF files give
them. The graph is stateful, with ScaledDotProductAttention over ReadValue and Assign, and its masks are part of it, so
that OpenVINO runs it as it stands, and SDPAToPagedAttention accepts it.

Everything that OpenVINO's attention cannot express is written around it so that the graph is still exact by itself: a
soft cap of the scores is added to the mask as (cap * tanh(s / cap) - s), with s the scores computed once more. The C++
side knows this form (src/openvino/soft_cap.h) and gives the cap to its own attention instead.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import openvino as ov
from openvino import opset13 as ops

HIDDEN = -65504.0  # the lowest half: no bias comes near, and it survives every precision


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotation of the first 2 * len(frequencies) dimensions of each head, dimension i paired with i + len(frequencies)."""

    frequencies: tuple[float, ...]  # radians per token
    attention_factor: float = 1.0  # of cos and sin (YaRN, long-context scaling)


@dataclasses.dataclass(frozen=True)
class Layer:
    rope: Rope | None = None
    window: int = 0  # tokens that a query sees, itself included; 0: all


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer with RMS norms and a gated feed-forward part."""

    hidden_size: int
    vocabulary_size: int
    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    feed_forward_size: int
    norm_epsilon: float
    attention_scale: float
    layers: tuple[Layer, ...]
    activation: str = "silu"  # or "gelu_tanh"
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0


class Weights(Protocol):
    """What the graph is filled with. A name is known or not; asking for an unknown one raises."""

    def __contains__(self, name: str) -> bool: ...

    def matrix(self, name: str) -> ov.Output:
        """[outputs, inputs], in whatever form the weights are kept; the same node each time."""

    def vector(self, name: str) -> np.ndarray:
        """float32 [size]."""


def _ints(*values: int):
    return ops.constant(np.array(values, np.int64))


def _number(value: float):
    return ops.constant(np.float32(value))


def _size(value, axis: int):
    """One size of a shape, i64 [1]."""
    return ops.gather(ops.shape_of(value, "i64"), _ints(axis), ops.constant(np.int64(0)))


def _slice_last(value, begin: int, end: int):
    return ops.slice(value, _ints(begin), _ints(end), _ints(1), _ints(-1))


class _Builder:
    def __init__(self, decoder: Decoder, weights: Weights, name: str) -> None:
        self.decoder = decoder
        self.weights = weights
        self.name = name
        self.assigns: list = []
        self.input_ids = self._input("input_ids", ov.Type.i64, [-1, -1])
        self.attention_mask = self._input("attention_mask", ov.Type.i64, [-1, -1])
        self.position_ids = self._input("position_ids", ov.Type.i64, [-1, -1])
        self.beam_idx = self._input("beam_idx", ov.Type.i32, [-1])
        self.batch = _size(self.input_ids, 0)
        self._rotations: dict[Rope, tuple] = {}
        self._masks: dict[int, object] = {}

    @staticmethod
    def _input(name: str, kind: ov.Type, shape: list[int]):
        parameter = ops.parameter(shape, kind, name=name)
        parameter.output(0).tensor.set_names({name})
        return parameter

    # --- Parts of a layer ---

    def norm(self, value, name: str):
        """RMS norm over the last dimension (Zhang and Sennrich 2019)."""
        square = ops.power(value, _number(2.0))
        mean = ops.reduce_mean(square, _ints(-1), keep_dims=True)
        root = ops.sqrt(ops.add(mean, _number(self.decoder.norm_epsilon)))
        normal = ops.multiply(ops.divide(_number(1.0), root), value)
        gain = self.weights.vector(name)
        return ops.multiply(
            normal,
            ops.constant(gain.reshape((1,) * (normal.get_output_partial_shape(0).rank.get_length() - 1) + (-1,))),
        )

    def norm_if_there(self, value, name: str):
        return self.norm(value, name) if name in self.weights else value

    def linear(self, value, name: str):
        product = ops.matmul(value, self.weights.matrix(f"{name}.weight"), False, True, name=name)
        if f"{name}.bias" not in self.weights:
            return product
        return ops.add(product, ops.constant(self.weights.vector(f"{name}.bias").reshape(1, 1, -1)))

    def heads(self, value, heads: int, dim: int, norm_name: str):
        """[batch, heads, length, dim], normalised head by head where the model does so."""
        by_head = ops.reshape(value, _ints(0, 0, heads, dim), True)
        return ops.transpose(self.norm_if_there(by_head, norm_name), _ints(0, 2, 1, 3))

    # --- RoPE ---

    def cos_and_sin(self, rope: Rope):
        """[batch, 1, length, 2 * pairs] each, made once for all layers that rotate alike."""
        if rope not in self._rotations:
            positions = ops.unsqueeze(ops.convert(self.position_ids, "f32"), _ints(-1))
            frequencies = ops.constant(np.array(rope.frequencies, np.float32).reshape(1, 1, -1))
            angles = ops.multiply(positions, frequencies)
            both = ops.concat([angles, angles], -1)

            def scaled(value):
                if rope.attention_factor != 1.0:
                    value = ops.multiply(value, _number(rope.attention_factor))
                return ops.unsqueeze(value, _ints(1))

            self._rotations[rope] = scaled(ops.cos(both)), scaled(ops.sin(both))
        return self._rotations[rope]

    def rotate(self, value, rope: Rope | None):
        if rope is None:
            return value
        cos, sin = self.cos_and_sin(rope)
        pairs, dim = len(rope.frequencies), self.decoder.key_dim
        turning = value if 2 * pairs == dim else _slice_last(value, 0, 2 * pairs)
        first, second = _slice_last(turning, 0, pairs), _slice_last(turning, pairs, 2 * pairs)
        swapped = ops.concat([ops.multiply(second, _number(-1.0)), first], -1)
        turned = ops.add(ops.multiply(turning, cos), ops.multiply(swapped, sin))
        return turned if 2 * pairs == dim else ops.concat([turned, _slice_last(value, 2 * pairs, dim)], -1)

    # --- Attention ---

    def mask(self, window: int):
        """[batch, 1, length, past + length], added to the scores: 0 where a query sees a key."""
        if window not in self._masks:
            length, whole = _size(self.input_ids, 1), _size(self.attention_mask, 1)
            zero, one = ops.constant(np.int64(0)), ops.constant(np.int64(1))
            end = ops.squeeze(whole, _ints(0))
            keys = ops.range(zero, end, one, "i64")
            queries = ops.range(ops.squeeze(ops.subtract(whole, length), _ints(0)), end, one, "i64")
            queries, keys = ops.unsqueeze(queries, _ints(0, 1, 3)), ops.unsqueeze(keys, _ints(0, 1, 2))
            seen = ops.less_equal(keys, queries)
            if window:
                seen = ops.logical_and(seen, ops.less(ops.subtract(queries, keys), ops.constant(np.int64(window))))
            given = ops.convert(ops.unsqueeze(self.attention_mask, _ints(1, 2)), "boolean")
            self._masks[window] = ops.select(ops.logical_and(seen, given), _number(0.0), _number(HIDDEN))
        return self._masks[window]

    def with_past(self, value, heads: int, dim: int, name: str):
        """[batch, heads, past + length, dim]: what earlier steps left, and this step's."""
        shape = ops.concat([self.batch, _ints(heads, 0, dim)], 0)
        empty = ops.broadcast(_number(0.0), shape)
        read = ops.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, heads, -1, dim]))
        past = ops.gather(read, self.beam_idx, ops.constant(np.int64(0)))
        whole = ops.concat([past, value], 2)
        self.assigns.append(ops.assign(whole, name))
        return whole

    def for_query_heads(self, value, dim: int):
        """Each KV head once for every query head that reads it."""
        repeats = self.decoder.query_heads // self.decoder.kv_heads
        if repeats == 1:
            return value
        wide = ops.broadcast(ops.unsqueeze(value, _ints(2)), _ints(1, 1, repeats, 1, 1), broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(wide, _ints(0, self.decoder.query_heads, -1, dim), True)

    def soft_capped(self, mask, query, key):
        """`mask`, and what turns the scores s into cap * tanh(s / cap) when it is added to them."""
        cap = _number(self.decoder.attention_soft_cap)
        scores = ops.multiply(ops.matmul(query, key, False, True), _number(self.decoder.attention_scale))
        capped = ops.multiply(ops.tanh(ops.divide(scores, cap)), cap)
        return ops.add(mask, ops.subtract(capped, scores))

    def attention(self, value, index: int):
        decoder, layer, block = self.decoder, self.decoder.layers[index], f"blk.{index}"
        if f"{block}.attn_qkv.weight" in self.weights:
            q, k, v = self.split_qkv(self.linear(value, f"{block}.attn_qkv"))
        else:
            q, k, v = (self.linear(value, f"{block}.attn_{part}") for part in "qkv")
        q = self.heads(q, decoder.query_heads, decoder.key_dim, f"{block}.attn_q_norm.weight")
        k = self.heads(k, decoder.kv_heads, decoder.key_dim, f"{block}.attn_k_norm.weight")
        v = self.heads(v, decoder.kv_heads, decoder.value_dim, "")
        q, k = self.rotate(q, layer.rope), self.rotate(k, layer.rope)
        keys = self.for_query_heads(
            self.with_past(k, decoder.kv_heads, decoder.key_dim, f"past_key.{index}"), decoder.key_dim
        )
        values = self.with_past(v, decoder.kv_heads, decoder.value_dim, f"past_value.{index}")
        mask = self.mask(layer.window)
        if decoder.attention_soft_cap:
            mask = self.soft_capped(mask, q, keys)
        attended = ops.scaled_dot_product_attention(
            q,
            keys,
            self.for_query_heads(values, decoder.value_dim),
            mask,
            _number(decoder.attention_scale),
            name=f"{block}.attention",
        )
        joined = ops.reshape(
            ops.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, decoder.query_heads * decoder.value_dim), True
        )
        return self.linear(joined, f"{block}.attn_output")

    def split_qkv(self, value):
        decoder = self.decoder
        sizes = [
            decoder.query_heads * decoder.key_dim,
            decoder.kv_heads * decoder.key_dim,
            decoder.kv_heads * decoder.value_dim,
        ]
        return ops.variadic_split(value, ops.constant(np.int64(-1)), _ints(*sizes)).outputs()

    def feed_forward(self, value, index: int):
        block = f"blk.{index}"
        if f"{block}.ffn_gate.weight" in self.weights:
            gate, up = self.linear(value, f"{block}.ffn_gate"), self.linear(value, f"{block}.ffn_up")
        else:  # both in one matrix, the gate first
            size = self.decoder.feed_forward_size
            both = self.linear(value, f"{block}.ffn_up")
            gate, up = ops.variadic_split(both, ops.constant(np.int64(-1)), _ints(size, size)).outputs()
        gate = ops.swish(gate) if self.decoder.activation == "silu" else ops.gelu(gate, "tanh")
        return self.linear(ops.multiply(gate, up), f"{block}.ffn_down")

    def residual(self, value, addend):
        if self.decoder.residual_multiplier != 1.0:
            addend = ops.multiply(addend, _number(self.decoder.residual_multiplier))
        return ops.add(value, addend)

    def layer(self, value, index: int):
        block = f"blk.{index}"
        attended = self.attention(self.norm(value, f"{block}.attn_norm.weight"), index)
        value = self.residual(value, self.norm_if_there(attended, f"{block}.post_attention_norm.weight"))
        fed = self.feed_forward(self.norm(value, f"{block}.ffn_norm.weight"), index)
        return self.residual(value, self.norm_if_there(fed, f"{block}.post_ffw_norm.weight"))

    # --- The whole ---

    def build(self) -> ov.Model:
        decoder = self.decoder
        table = self.weights.matrix("token_embd.weight")
        value = ops.gather(table, ops.convert(self.input_ids, "i32"), ops.constant(np.int32(0)))
        if decoder.embedding_multiplier != 1.0:
            value = ops.multiply(value, _number(decoder.embedding_multiplier))
        for index in range(len(decoder.layers)):
            value = self.layer(value, index)
        value = self.norm(value, "output_norm.weight")
        projection = self.weights.matrix("output.weight") if "output.weight" in self.weights else table
        logits = ops.matmul(value, projection, False, True, name="output")
        if decoder.logit_divisor != 1.0:
            logits = ops.divide(logits, _number(decoder.logit_divisor))
        if decoder.logit_soft_cap:
            cap = _number(decoder.logit_soft_cap)
            logits = ops.multiply(ops.tanh(ops.divide(logits, cap)), cap)
        result = ops.result(logits, name="logits")
        result.output(0).tensor.set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        return ov.Model([result], self.assigns, inputs, self.name)


def build(decoder: Decoder, weights: Weights, name: str) -> ov.Model:
    """The graph: inputs input_ids, attention_mask, position_ids [batch, length] and beam_idx [batch], output logits."""
    return _Builder(decoder, weights, name).build()
