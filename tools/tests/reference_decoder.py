# SPDX-License-Identifier: Apache-2.0
"""The slow judge of imported models: each architecture from its metadata and tensors, in float64, one token at a time.

It knows nothing of the importer, and keeps to the file's own conventions: rows of queries and keys as they are stored.
"""

import math

import numpy as np

PAIRS_NEIGHBOURS = ("llama", "smollm3", "granite")


class ReferenceDecoder:
    def __init__(self, entries, tensors):
        self.architecture = entries["general.architecture"]
        self.entries = entries
        self.tensors = {name: values.astype(np.float64) for name, (values, _) in tensors.items()}
        self.heads, self.kv_heads = self.of("attention.head_count"), self.of("attention.head_count_kv")
        self.hidden = self.of("embedding_length")
        self.dim = self.of("attention.key_length", self.hidden // self.heads)
        self.is_gemma = self.architecture.startswith("gemma")

    def of(self, key, missing=None):
        return self.entries.get(f"{self.architecture}.{key}", missing)

    def norm(self, x, name):
        return (
            x
            / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.of("attention.layer_norm_rms_epsilon"))
            * self.tensors[name]
        )

    def norm_if_there(self, x, name):
        return self.norm(x, name) if name in self.tensors else x

    def linear(self, x, name):
        return self.tensors[f"{name}.weight"] @ x + self.tensors.get(f"{name}.bias", 0.0)

    # --- What differs from layer to layer ---

    def window(self, layer):
        every = {"gemma2": 2, "gemma3": 6}.get(self.architecture)
        return self.of("attention.sliding_window") if every and (layer + 1) % every else None

    def frequencies(self, layer):
        """Radians per token of each pair; None: the layer does not rotate."""
        if self.architecture == "smollm3" and (layer + 1) % 4 == 0:
            return None
        is_local = self.architecture == "gemma3" and self.window(layer)
        theta = 10000.0 if is_local else self.of("rope.freq_base")
        dims = self.of("rope.dimension_count", self.dim)
        plain = np.array([theta ** (-2 * pair / dims) for pair in range(dims // 2)])
        for name in ("rope_freqs.weight", "rope_factors_long.weight"):
            plain = plain / self.tensors.get(name, 1.0)
        if self.of("rope.scaling.type") == "linear" and not is_local:
            plain = plain / self.of("rope.scaling.factor")
        return plain

    def rotate(self, x, layer, position):
        """x [heads, dim]"""
        frequencies = self.frequencies(layer)
        if frequencies is None:
            return x
        x, pairs = x.copy(), len(frequencies)
        factor = self.of("rope.scaling.attn_factor", 1.0)
        for pair, frequency in enumerate(frequencies):
            first, second = (2 * pair, 2 * pair + 1) if self.architecture in PAIRS_NEIGHBOURS else (pair, pair + pairs)
            cos, sin = factor * math.cos(position * frequency), factor * math.sin(position * frequency)
            a, b = x[:, first].copy(), x[:, second].copy()
            x[:, first], x[:, second] = a * cos - b * sin, a * sin + b * cos
        return x

    # --- A layer ---

    def attention(self, x, layer, position, keys, values):
        block = f"blk.{layer}."
        if f"{block}attn_qkv.weight" in self.tensors:
            sizes = np.cumsum([self.heads * self.dim, self.kv_heads * self.dim])
            q, k, v = np.split(self.linear(x, block + "attn_qkv"), sizes)
        else:
            q, k, v = (self.linear(x, f"{block}attn_{part}") for part in "qkv")
        q = self.norm_if_there(q.reshape(self.heads, self.dim), block + "attn_q_norm.weight")
        k = self.norm_if_there(k.reshape(self.kv_heads, self.dim), block + "attn_k_norm.weight")
        keys.append(self.rotate(k, layer, position))
        values.append(v.reshape(self.kv_heads, self.dim))
        q = self.rotate(q, layer, position)
        first = max(0, position + 1 - (self.window(layer) or position + 1))
        cap = self.of("attn_logit_softcapping")
        out = []
        for head in range(self.heads):
            group = head * self.kv_heads // self.heads
            scores = np.array([q[head] @ keys[past][group] for past in range(first, position + 1)])
            scores *= self.of("attention.scale", self.dim**-0.5)
            if cap:
                scores = cap * np.tanh(scores / cap)
            weights = np.exp(scores - scores.max())
            weights /= weights.sum()
            out.append(sum(weight * values[first + index][group] for index, weight in enumerate(weights)))
        return self.linear(np.concatenate(out), block + "attn_output")

    def feed_forward(self, x, layer):
        block = f"blk.{layer}."
        if f"{block}ffn_gate.weight" in self.tensors:
            gate, up = self.linear(x, block + "ffn_gate"), self.linear(x, block + "ffn_up")
        else:
            gate, up = np.split(self.linear(x, block + "ffn_up"), 2)
        if self.is_gemma:
            gate = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        return self.linear(gate * up, block + "ffn_down")

    def logits(self, tokens):
        """float64 [tokens, vocabulary]"""
        layers = range(self.of("block_count"))
        keys, values = [[] for _ in layers], [[] for _ in layers]
        rows = []
        for position, token in enumerate(tokens):
            x = self.tensors["token_embd.weight"][token]
            x = x * (math.sqrt(self.hidden) if self.is_gemma else self.of("embedding_scale", 1.0))
            for layer in layers:
                block, scale = f"blk.{layer}.", self.of("residual_scale", 1.0)
                attended = self.attention(
                    self.norm(x, block + "attn_norm.weight"), layer, position, keys[layer], values[layer]
                )
                x = x + scale * self.norm_if_there(attended, block + "post_attention_norm.weight")
                fed = self.feed_forward(self.norm(x, block + "ffn_norm.weight"), layer)
                x = x + scale * self.norm_if_there(fed, block + "post_ffw_norm.weight")
            x = self.norm(x, "output_norm.weight")
            row = self.tensors.get("output.weight", self.tensors["token_embd.weight"]) @ x / self.of("logit_scale", 1.0)
            cap = self.of("final_logit_softcapping")
            rows.append(cap * np.tanh(row / cap) if cap else row)
        return np.array(rows)
