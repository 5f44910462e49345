# SPDX-License-Identifier: Apache-2.0
"""Writes small GGUF files for the tests: a random llama of two layers, or anything that is wrong with one."""

import struct

import numpy as np

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
HIDDEN, HEADS, KV_HEADS, FEED_FORWARD, LAYERS = 64, 4, 2, 96, 2
TYPE_NUMBERS = {"F32": 0, "F16": 1, "Q4_1": 3, "Q8_0": 8}


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item):
    """A metadata value with its type before it."""
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<II", UINT32, item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    kind = STRING if isinstance(item[0], str) else UINT32
    items = b"".join(text(entry) if kind == STRING else struct.pack("<I", entry) for entry in item)
    return struct.pack("<IIQ", ARRAY, kind, len(item)) + items


def _byte_letters():
    """GPT-2's letters for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 256
    for byte in range(256):
        letters[byte] = chr(byte) if byte in kept else chr(extra)
        extra += byte not in kept
    return [letters[byte] for byte in range(256)]


def metadata(**changes):
    tokens = ["<|end|>", "<|im_start|>", "<|im_end|>", *_byte_letters(), "th", "in"]
    entries = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["t h", "i n"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ bos_token + m.role + ':' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token + 'assistant:' }}{% endif %}",
    }
    entries.update({key.replace("__", "."): item for key, item in changes.items()})
    return {key: item for key, item in entries.items() if item is not None}


def pack(matrix, type_name):
    if type_name == "F32":
        return matrix.astype("<f4").tobytes()
    if type_name == "F16":
        return matrix.astype("<f2").tobytes()
    groups = matrix.astype(np.float32).reshape(-1, 32)
    if type_name == "Q8_0":
        scales = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype(np.float16)
        codes = np.rint(groups / scales.astype(np.float32)).astype(np.int8)
        return np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1).tobytes()
    lowest = groups.min(axis=1, keepdims=True).astype(np.float16)
    scales = ((groups.max(axis=1, keepdims=True) - lowest) / 15).astype(np.float16)
    codes = np.clip(np.rint((groups - lowest) / np.maximum(scales, np.float16(1e-7))), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | (codes[:, 16:] << 4)
    return np.concatenate([scales.view(np.uint8), lowest.view(np.uint8), packed], axis=1).tobytes()


def weights(vocabulary, matrix_type, seed=7):
    """The tensors of the tiny llama: name -> (values, type)."""
    generator = np.random.default_rng(seed)

    def matrix(rows, columns, type_name=matrix_type):
        # A mean that is not zero, as in a real model's groups, so that rounded zero points show.
        return generator.normal(0.01, 0.1, (rows, columns)).astype(np.float32), type_name

    def ones():
        return np.ones(HIDDEN, np.float32), "F32"

    kv_size = HIDDEN // HEADS * KV_HEADS
    tensors = {"token_embd.weight": matrix(vocabulary, HIDDEN, "Q8_0"), "output_norm.weight": ones()}
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ones(),
            f"blk.{layer}.ffn_norm.weight": ones(),
            f"blk.{layer}.attn_q.weight": matrix(HIDDEN, HIDDEN),
            f"blk.{layer}.attn_k.weight": matrix(kv_size, HIDDEN),
            f"blk.{layer}.attn_v.weight": matrix(kv_size, HIDDEN),
            f"blk.{layer}.attn_output.weight": matrix(HIDDEN, HIDDEN),
            f"blk.{layer}.ffn_gate.weight": matrix(FEED_FORWARD, HIDDEN),
            f"blk.{layer}.ffn_up.weight": matrix(FEED_FORWARD, HIDDEN),
            f"blk.{layer}.ffn_down.weight": matrix(HIDDEN, FEED_FORWARD),
        }
    return tensors


def file_bytes(entries=None, tensors=None, version=3, magic=b"GGUF", tensor_count=None, metadata_count=None):
    entries = metadata() if entries is None else entries
    tensors = {} if tensors is None else tensors
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if metadata_count is None else metadata_count,
    )
    head += b"".join(text(key) + value(item) for key, item in entries.items())
    data = b""
    for name, (values, type_name) in tensors.items():
        shape = values.shape[::-1]
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPE_NUMBERS[type_name], len(data))
        data += pack(values, type_name)
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data


def tiny_llama(matrix_type="Q4_1", **changes):
    entries = metadata(**changes)
    return file_bytes(entries, weights(len(entries["tokenizer.ggml.tokens"]), matrix_type))
