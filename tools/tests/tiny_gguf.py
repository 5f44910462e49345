# SPDX-License-Identifier: Apache-2.0
"""Writes small GGUF files for the tests: a random decoder of each architecture, or anything that is wrong with one."""

import struct

import numpy as np

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64 = 4, 5, 6, 7, 8, 9, 10, 11
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
        if 0 <= item < 2**32:
            return struct.pack("<II", UINT32, item)
        return struct.pack("<IQ", UINT64, item) if item > 0 else struct.pack("<Iq", INT64, item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + text(item)
    kind, layout = INT32, "<i"
    if item and isinstance(item[0], (str, float, bool)):
        kind, layout = {str: (STRING, ""), float: (FLOAT32, "<f"), bool: (BOOL, "<?")}[type(item[0])]
    items = b"".join(text(entry) if kind == STRING else struct.pack(layout, entry) for entry in item)
    return struct.pack("<IIQ", ARRAY, kind, len(item)) + items


def _byte_letters():
    """GPT-2's letters for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = {}, 256
    for byte in range(256):
        letters[byte] = chr(byte) if byte in kept else chr(extra)
        extra += byte not in kept
    return [letters[byte] for byte in range(256)]


TOKENS = ["<|end|>", "<|im_start|>", "<|im_end|>", *_byte_letters(), "th", "in"]
# What each architecture adds to llama's metadata, under its own name. Windows are short, so that short texts leave them.
_SHAPES = {
    "llama": {},
    "smollm3": {"block_count": 4},
    "qwen2": {},
    "qwen3": {"attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": None},
    "gemma2": {
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "block_count": 7,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.sliding_window": 8,
        "attention.head_count_kv": 1,
        "rope.freq_base": 1000000.0,
    },
    "phi3": {
        "context_length": 256,
        "rope.scaling.original_context_length": 128,
        "rope.scaling.attn_factor": 1.1,
        "rope.dimension_count": 12,
    },
    "granite": {"embedding_scale": 6.0, "residual_scale": 0.3, "attention.scale": 0.2, "logit_scale": 4.0},
}
ARCHITECTURES = tuple(_SHAPES)


def metadata(architecture="llama", **changes):
    """Of a tiny decoder. In the names of changes two underscores are a dot; None takes an entry out."""
    shape = {
        "block_count": LAYERS,
        "context_length": 128,
        "embedding_length": HIDDEN,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": HIDDEN // HEADS,
        "vocab_size": len(TOKENS),
    } | _SHAPES[architecture]
    entries = {
        "general.architecture": architecture,
        "general.file_type": 7,
        **{f"{architecture}.{key}": item for key, item in shape.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
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


def sentence_piece(pieces, **changes):
    """The metadata of a vocabulary of SentencePiece's kind: `pieces` in the order of their merging."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "  ", *pieces]
    return {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__pre": "default",
        "tokenizer__ggml__tokens": tokens,
        "tokenizer__ggml__token_type": [2, 3, 3] + [6] * 256 + [4] + [1] * len(pieces),
        "tokenizer__ggml__scores": [0.0] * 260 + [-float(index) for index in range(len(pieces))],
        "tokenizer__ggml__merges": None,
        "tokenizer__ggml__add_bos_token": True,
        **changes,
    }


# Phi-3's marks, in the order of their numbers.
PHI3_MARKS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def phi3(pieces, marks=PHI3_MARKS, mark_type=3, **changes):
    """The metadata of a vocabulary like Phi-3's."""
    entries = sentence_piece(pieces)
    entries["tokenizer__ggml__tokens"] += marks
    entries["tokenizer__ggml__token_type"] += [mark_type] * len(marks)
    entries["tokenizer__ggml__scores"] += [0.0] * len(marks)
    return {**entries, "phi3__vocab_size": len(entries["tokenizer__ggml__tokens"]), **changes}


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


def weights(entries, matrix_type, seed=7):
    """The tensors of the tiny decoder that `entries` describe: name -> (values, type)."""
    generator = np.random.default_rng(seed)
    architecture = entries["general.architecture"]

    def of(key, missing=None):
        return entries.get(f"{architecture}.{key}", missing)

    hidden, inner, vocabulary = of("embedding_length"), of("feed_forward_length"), len(entries["tokenizer.ggml.tokens"])
    heads, kv_heads, dim = (
        of("attention.head_count"),
        of("attention.head_count_kv"),
        of("attention.key_length", HIDDEN // HEADS),
    )
    is_gemma = architecture.startswith("gemma")

    def matrix(rows, columns, type_name=matrix_type):
        # A mean that is not zero, as in a real model's groups, so that rounded zero points show.
        return generator.normal(0.01, 0.1, (rows, columns)).astype(np.float32), type_name

    def around(middle, size=hidden):
        return generator.normal(middle, 0.1, size).astype(np.float32), "F32"

    tensors = {"token_embd.weight": matrix(vocabulary, hidden), "output_norm.weight": around(1)}
    if architecture in ("qwen3", "granite", "phi3"):
        tensors["output.weight"] = matrix(vocabulary, hidden)
    if architecture == "phi3":
        pairs = of("rope.dimension_count") // 2
        tensors["rope_factors_short.weight"] = (np.linspace(1, 1.5, pairs, dtype=np.float32), "F32")
        tensors["rope_factors_long.weight"] = (np.linspace(1, 4, pairs, dtype=np.float32), "F32")
    sizes = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * dim}
    for layer in range(of("block_count")):
        block = f"blk.{layer}."
        tensors |= {block + "attn_norm.weight": around(1), block + "ffn_norm.weight": around(1)}
        if architecture == "phi3":
            tensors[block + "attn_qkv.weight"] = matrix(sum(sizes.values()), hidden)
            tensors[block + "ffn_up.weight"] = matrix(2 * inner, hidden)
        else:
            tensors |= {block + f"attn_{part}.weight": matrix(size, hidden) for part, size in sizes.items()}
            tensors |= {block + f"ffn_{part}.weight": matrix(inner, hidden) for part in ("gate", "up")}
        tensors[block + "attn_output.weight"] = matrix(hidden, heads * dim)
        tensors[block + "ffn_down.weight"] = matrix(hidden, inner)
        if architecture == "qwen2":
            tensors |= {block + f"attn_{part}.bias": around(0, size) for part, size in sizes.items()}
        if architecture in ("qwen3", "gemma3"):
            tensors |= {block + f"attn_{part}_norm.weight": around(1, dim) for part in "qk"}
        if is_gemma:
            tensors |= {block + "post_attention_norm.weight": around(1), block + "post_ffw_norm.weight": around(1)}
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


def tiny(architecture, matrix_type="F16", more_tensors=None, **changes):
    """A whole file: a random decoder of `architecture`."""
    entries = metadata(architecture, **changes)
    return file_bytes(entries, weights(entries, matrix_type) | (more_tensors or {}))


def parts(entries, tensors, count):
    """The files of a model in several parts, as gguf-split writes them: the metadata is in the first."""
    names = list(tensors)
    files = []
    for index in range(count):
        own = {"split.no": index, "split.count": count, "split.tensors.count": len(tensors)}
        held = {name: tensors[name] for name in names[index::count]}
        files.append(file_bytes((entries if index == 0 else {}) | own, held))
    return files


def tiny_llama(matrix_type="Q4_1", **changes):
    return tiny("llama", matrix_type, **changes)
