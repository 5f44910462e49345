# SPDX-License-Identifier: Apache-2.0
"""What a GGUF file says about its vocabulary, read and checked; gguf_tokenizer.py builds graphs from it.

Two kinds are known, by tokenizer.ggml.model:
  gpt2   byte-level BPE: the text is cut by regular expressions (tokenizer.ggml.pre names which), then merged by rank.
  llama  SentencePiece's BPE: a space is written as U+2581, pieces are merged by the score of what they become, and what
         is in no piece becomes bytes.
"""

from __future__ import annotations

import dataclasses
import math
import re

import gguf_header
from gguf.constants import TokenType

# llama.cpp's names for the ways to cut a text before merging, and the expressions of the tokenizers they stand for. Of
# several expressions each is applied to what the one before it left.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LATER_WORDS = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CUTS = {
    ("default",): (r"[\p{P}$+<=>^~|]+", _WORDS, r"\p{N}+", "[0-9][0-9][0-9]"),
    ("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"): (_WORDS,),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (r"\p{N}", _WORDS),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"): (_LATER_WORDS % "",),
    ("llama-bpe", "llama-v3", "llama3", "falcon3", "pixtral", "smaug-bpe", "dbrx", "chatglm-bpe"): (
        _LATER_WORDS % "{1,3}",
    ),
    ("tekken",): (
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+"
        r"((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
}
CUTS = {name: expressions for names, expressions in _CUTS.items() for name in names}
# Those that put the first token before every text unless the file says otherwise.
_BEGINS_BY_ITSELF = ("llama-bpe", "llama-v3", "llama3", "falcon3", "pixtral", "tekken")

# tokenizer.ggml.NAME_token_id, and the type of such a token in files that give no types.
_NAMED = {
    "bos": TokenType.CONTROL,
    "eos": TokenType.CONTROL,
    "eot": TokenType.CONTROL,
    "padding": TokenType.CONTROL,
    "unknown": TokenType.UNKNOWN,
}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Of Phi-3's tokens, those after which white space is kept.
_PHI3_KEEPS_SPACE_AFTER = ("<unk>", "<s>", "<|endoftext|>")


class TokenizerError(gguf_header.GgufError):
    """The vocabulary cannot be used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    kind: str  # tokenizer.ggml.model
    cut: str  # tokenizer.ggml.pre
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    named: dict[str, int]  # bos, eos, eot, padding, unknown: those that the file gives
    begin: int | None  # put before every text
    end: int | None  # put after every text
    adds_space: bool
    swallows_space_after: frozenset[int]  # white space that follows such a token in a text is none of the text
    chat_template: str | None

    def ids(self, *types: TokenType) -> list[int]:
        return [index for index, kind in enumerate(self.types) if kind in types]

    @property
    def special(self) -> list[int]:
        """What is recognised in a text as a whole. Empty tokens would be found everywhere."""
        return [index for index in self.ids(*_SPECIAL) if self.tokens[index]]

    @property
    def unknown(self) -> int | None:
        return self.named.get("unknown")

    @property
    def ends(self) -> list[int]:
        """What ends an answer."""
        return [self.named[name] for name in ("eos", "eot") if name in self.named]


_SPECIAL = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


class _Reader:
    def __init__(self, metadata: dict, path: str) -> None:
        self.metadata = metadata
        self.path = path

    def refuse(self, problem: str) -> TokenizerError:
        return TokenizerError(f"{self.path}: {problem}")

    def refuse_value(self, key: str, value: object, wanted: str) -> TokenizerError:
        return self.refuse(f"tokenizer.{key} is {gguf_header.shown(value)}, but must be {wanted}")

    def list(self, key: str, kind: type | tuple, length: int | None) -> list:
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.refuse(
                f"tokenizer.ggml.{key} is missing or no list of the kind that it must be; the file is incomplete"
            )
        if length is not None and len(value) != length:
            raise self.refuse(f"tokenizer.ggml.{key} has {len(value)} entries for {length} tokens; the file is damaged")
        return value

    def flag(self, key: str, missing: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{key}", missing)
        if not isinstance(value, bool):
            raise self.refuse_value(f"ggml.{key}", value, "true or false")
        return value

    def text(self, key: str) -> str | None:
        value = self.metadata.get(f"tokenizer.{key}")
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.refuse_value(key, value, "text")
        # What the tokenizer's XML cannot hold.
        damage = re.search("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", value)
        if damage:
            raise self.refuse(
                f"tokenizer.{key} has U+{ord(damage.group()):04X} at character {damage.start()}, which is none of a text; "
                "the file is damaged"
            )
        return value

    def token(self, name: str, tokens: int, required: bool) -> int | None:
        """A token that the file names. Out of range it is refused, or, where nothing needs it, not there."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None or (gguf_header.is_whole(value) and 0 <= value < tokens):
            return value
        if gguf_header.is_whole(value) and not required:
            return None
        raise self.refuse_value(f"ggml.{name}_token_id", value, f"in [0, {tokens})")


def _types(reader: _Reader, tokens: list[str], named: dict[str, int], kind: str) -> list[int]:
    if "tokenizer.ggml.token_type" in reader.metadata:
        types = reader.list("token_type", int, len(tokens))
    else:
        # A guess, from what the file says elsewhere.
        types = [
            TokenType.BYTE if kind == "llama" and _BYTE_TOKEN.fullmatch(token) else TokenType.NORMAL for token in tokens
        ]
        for name, index in named.items():
            types[index] = _NAMED[name]
    for token, token_type in zip(tokens, types):
        if kind == "llama" and token_type == TokenType.BYTE and not _BYTE_TOKEN.fullmatch(token):
            raise reader.refuse(
                f"the token {gguf_header.shown(token)} is of the type for bytes, but not written as <0x00> to <0xFF>; "
                "the file is damaged"
            )
    return types


def _tokens(reader: _Reader, vocabulary_size: int) -> list[str]:
    tokens = reader.list("tokens", str, None)
    if not 0 < len(tokens) <= vocabulary_size:
        raise reader.refuse(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens and the model's vocabulary {vocabulary_size}"
        )
    with_nul = next((token for token in tokens if "\0" in token), None)
    if with_nul is not None:
        raise reader.refuse(f"the token {gguf_header.shown(with_nul)} holds a NUL; the file is damaged")
    return tokens


def bytes_by_letter() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for what follows 255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _merges(reader: _Reader, tokens: list[str], types: list[int]) -> list[tuple[str, str]]:
    letters = {byte: letter for letter, byte in bytes_by_letter().items()}
    # Special tokens stand in the file as they are, all others in GPT-2's letters, as merges do.
    special = {
        "".join(letters[byte] for byte in token.encode()) for token, kind in zip(tokens, types) if kind in _SPECIAL
    }
    known, merges = special | set(tokens), []
    for merge in reader.list("merges", str, None):
        left, _, right = merge.partition(" ")
        unknown = next((part for part in (left, right, left + right) if part not in known), None)
        if unknown is not None:
            raise reader.refuse(
                f"tokenizer.ggml.merges has {gguf_header.shown(merge)}, but {gguf_header.shown(unknown)} is no token; "
                "the file is damaged"
            )
        merges.append((left, right))
    return merges


def _scores(reader: _Reader, tokens: list[str]) -> list[float]:
    scores = reader.list("scores", (int, float), len(tokens))
    if any(math.isnan(score) for score in scores):
        raise reader.refuse("tokenizer.ggml.scores holds values that are not numbers; the file is damaged")
    return scores


def _swallows_space_after(metadata: dict, kind: str, tokens: list[str], types: list[int]) -> frozenset[int]:
    """The tokens that the model's own tokenizer strips white space after (`rstrip` in Hugging Face's files).

    GGUF files do not say so. Of the known architectures it is Phi-3's vocabulary that has such tokens, Phi-3.5's too;
    llama.cpp knows it by the model's name, which does not always say it ("Phi 3 Mini"), so the architecture counts as well.
    Phi-4 has the architecture too, with another kind of vocabulary.
    """
    name = str(metadata.get("general.name", "")).lower()
    is_phi3 = metadata.get("general.architecture") == "phi3" or "phi-3" in name or "phi3" in name
    if kind != "llama" or not is_phi3:
        return frozenset()
    return frozenset(
        index
        for index, token in enumerate(tokens)
        if types[index] in _SPECIAL and token and token not in _PHI3_KEEPS_SPACE_AFTER
    )


def read(metadata: dict, vocabulary_size: int, path: str) -> Vocabulary:
    reader = _Reader(metadata, path)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise reader.refuse(f"tokenizer.ggml.model is {gguf_header.shown(kind)}; gpt2 and llama are known")
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and (not isinstance(cut, str) or cut not in CUTS):
        raise reader.refuse(f"tokenizer.ggml.pre is {gguf_header.shown(cut)}; known are {', '.join(sorted(CUTS))}")
    tokens = _tokens(reader, vocabulary_size)
    begins = reader.flag("add_bos_token", kind == "llama" or cut in _BEGINS_BY_ITSELF)
    not_required = ("padding",) if begins else ("padding", "bos")
    given = {name: reader.token(name, len(tokens), name not in not_required) for name in _NAMED}
    named = {name: index for name, index in given.items() if index is not None}
    types = _types(reader, tokens, named, kind)
    return Vocabulary(
        kind=kind,
        cut=cut,
        tokens=tokens,
        types=types,
        scores=_scores(reader, tokens) if kind == "llama" else [],
        merges=_merges(reader, tokens, types) if kind == "gpt2" else [],
        named=named,
        begin=named.get("bos") if begins else None,
        end=named.get("eos") if reader.flag("add_eos_token", False) else None,
        adds_space=reader.flag("add_space_prefix", kind == "llama"),
        swallows_space_after=_swallows_space_after(metadata, kind, tokens, types),
        chat_template=reader.text("chat_template"),
    )
