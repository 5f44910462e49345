# SPDX-License-Identifier: Apache-2.0
"""Builds the tokenizer and the detokenizer, as OpenVINO graphs, from the vocabulary in a GGUF file.

Two kinds are known, by tokenizer.ggml.model:
  gpt2   byte-level BPE: the text is cut by regular expressions (tokenizer.ggml.pre names which), then merged by rank.
  llama  SentencePiece's BPE: a space is written as U+2581, pieces are merged by the score of what they become, and what
         is in no piece becomes bytes.

Special tokens are recognised in the text, as llama.cpp does when it is asked to; of several that fit, the longest.
"""

from __future__ import annotations

import dataclasses

import gguf_header
import openvino as ov
import openvino_tokenizers.tokenizer_pipeline as pipeline_steps
from gguf.constants import TokenType
from openvino_tokenizers.utils import change_inputs_type, change_outputs_type

SPACE = "\u2581"
_NO_LIMIT = 2**31 - 1

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


class TokenizerError(gguf_header.GgufError):
    """The vocabulary cannot be used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    kind: str  # tokenizer.ggml.model
    cut: str  # tokenizer.ggml.pre
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    begin: int | None  # put before every text
    end: int | None  # put after every text
    unknown: int | None
    ends: list[int]  # what ends an answer
    adds_space: bool

    def ids(self, *types: TokenType) -> list[int]:
        return [index for index, kind in enumerate(self.types) if kind in types]

    @property
    def special(self) -> list[int]:
        """What is recognised in a text as a whole. Empty tokens would be found everywhere."""
        found = self.ids(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        return [index for index in found if self.tokens[index]]


def _list(metadata: dict, key: str, kind: type | tuple, length: int | None, path: str) -> list:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise TokenizerError(
            f"{path}: tokenizer.ggml.{key} is missing or no list of the kind that it must be; the file is incomplete"
        )
    if length is not None and len(value) != length:
        raise TokenizerError(
            f"{path}: tokenizer.ggml.{key} has {len(value)} entries for {length} tokens; the file is damaged"
        )
    return value


def read(metadata: dict, vocabulary_size: int, path: str) -> Vocabulary:
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise TokenizerError(f"{path}: tokenizer.ggml.model is {kind!r}; gpt2 and llama are known")
    cut = metadata.get("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and cut not in CUTS:
        raise TokenizerError(f"{path}: tokenizer.ggml.pre is {cut!r}; known are {', '.join(sorted(CUTS))}")
    tokens = _list(metadata, "tokens", str, None, path)
    if not 0 < len(tokens) <= vocabulary_size:
        raise TokenizerError(
            f"{path}: tokenizer.ggml.tokens has {len(tokens)} tokens and the model's vocabulary {vocabulary_size}"
        )

    def token(key: str) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens)
        ):
            raise TokenizerError(
                f"{path}: tokenizer.ggml.{key}_token_id is {value!r}, but must be in [0, {len(tokens)})"
            )
        return value

    def flag(key: str, missing: bool) -> bool:
        value = metadata.get(f"tokenizer.ggml.{key}", missing)
        if not isinstance(value, bool):
            raise TokenizerError(f"{path}: tokenizer.ggml.{key} is {value!r}, but must be true or false")
        return value

    begins = flag("add_bos_token", kind == "llama" or cut in _BEGINS_BY_ITSELF)
    types = metadata.get("tokenizer.ggml.token_type")
    return Vocabulary(
        kind=kind,
        cut=cut,
        tokens=tokens,
        types=(
            [TokenType.NORMAL] * len(tokens) if types is None else _list(metadata, "token_type", int, len(tokens), path)
        ),
        scores=_list(metadata, "scores", (int, float), len(tokens), path) if kind == "llama" else [],
        merges=_list(metadata, "merges", str, None, path) if kind == "gpt2" else [],
        begin=token("bos") if begins else None,
        end=token("eos") if flag("add_eos_token", False) else None,
        unknown=token("unknown"),
        adds_space=flag("add_space_prefix", kind == "llama"),
        ends=[end for end in (token("eos"), token("eot")) if end is not None],
    )


# --- SentencePiece ------------------------------------------------------------------------------------------------


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs of pieces that become a piece, the highest score first: what merging by score does, said by rank."""
    pieces = {vocabulary.tokens[index]: index for index in vocabulary.ids(TokenType.NORMAL)}
    found = []
    for piece, index in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                found.append((-vocabulary.scores[index], index, pieces[left], pieces[right]))
    found.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, _, left, right in found]


def _safe_cuts(vocabulary: Vocabulary) -> str:
    """An expression for stretches of text that no piece crosses, so that each can be merged, and remembered, by itself.

    A stretch begins with a run of spaces. It goes on past spaces where some piece of the vocabulary has that too.
    """
    crossed = sorted(
        {
            before
            for index in vocabulary.ids(TokenType.NORMAL)
            for before, after in zip(vocabulary.tokens[index], vocabulary.tokens[index][1:])
            if after == SPACE and before != SPACE
        }
    )
    inside = f"[^{SPACE}]"
    if crossed:
        inside = (
            f"(?:{inside}|(?<=[{''.join(f'x{{{ord(letter):x}}}'.join((chr(92), '')) for letter in crossed)}]){SPACE}+)"
        )
    return f"{SPACE}+{inside}*|{inside}+"


def _sentence_piece_steps(vocabulary: Vocabulary) -> list[pipeline_steps.BasePipelineStep]:
    steps: list[pipeline_steps.BasePipelineStep] = []
    if vocabulary.adds_space:
        steps.append(pipeline_steps.RegexNormalizationStep(r"^([\s\S])", r" $1", global_replace=False))
    steps += [
        pipeline_steps.RegexNormalizationStep(" ", SPACE),
        pipeline_steps.RegexSplitStep(_safe_cuts(vocabulary), behaviour="isolate"),
        pipeline_steps.BPETokenizationStep(
            vocab=list(vocabulary.tokens),
            merges=_merges_by_score(vocabulary),
            unk_token=vocabulary.tokens[vocabulary.unknown] if vocabulary.unknown is not None else "",
            byte_fallback=True,
            added_tokens={vocabulary.tokens[index]: index for index in vocabulary.special},
        ),
    ]
    return steps


def _bytes_of_piece(vocabulary: Vocabulary, index: int) -> bytes:
    token = vocabulary.tokens[index]
    if vocabulary.types[index] == TokenType.BYTE:
        return bytes([int(token[3:5], 16)])
    return token.replace(SPACE, " ").encode()


# --- Byte-level BPE -----------------------------------------------------------------------------------------------


def _byte_level_steps(vocabulary: Vocabulary) -> list[pipeline_steps.BasePipelineStep]:
    steps: list[pipeline_steps.BasePipelineStep] = [
        pipeline_steps.RegexSplitStep(expression, behaviour="isolate", mergeable=False)
        for expression in CUTS[vocabulary.cut]
    ]
    return steps + [
        pipeline_steps.BytesToCharsStep(),
        pipeline_steps.BPETokenizationStep(
            vocab=list(vocabulary.tokens),
            merges=[tuple(merge.split(" ", 1)) for merge in vocabulary.merges],
            added_tokens={vocabulary.tokens[index]: index for index in vocabulary.special},
        ),
    ]


def _bytes_by_letter() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others for what follows 255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + place): byte for place, byte in enumerate(others)}


# --- Graphs -------------------------------------------------------------------------------------------------------


def _token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """What each token is in a text."""
    if vocabulary.kind == "llama":
        return [_bytes_of_piece(vocabulary, index) for index in range(len(vocabulary.tokens))]
    letters, special = _bytes_by_letter(), set(vocabulary.special)
    return [
        (
            token.encode()
            if index in special or not set(token) <= letters.keys()
            else bytes(letters[letter] for letter in token)
        )
        for index, token in enumerate(vocabulary.tokens)
    ]


def _frame(vocabulary: Vocabulary) -> pipeline_steps.CombineSegmentsStep | None:
    parts: list = [pipeline_steps.Sequence(token_type_id=0)]
    if vocabulary.begin is not None:
        parts.insert(0, pipeline_steps.AddToken(token=None, _token_id=vocabulary.begin, token_type_id=0))
    if vocabulary.end is not None:
        parts.append(pipeline_steps.AddToken(token=None, _token_id=vocabulary.end, token_type_id=0))
    return pipeline_steps.CombineSegmentsStep(parts) if len(parts) > 1 else None


def _note(model: ov.Model, notes: dict[str, object]) -> None:
    for key, value in notes.items():
        if value is not None:
            model.set_rt_info(value, key)


def build(vocabulary: Vocabulary, notes: dict[str, object]) -> tuple[ov.Model, ov.Model]:
    """Tokenizer (texts -> input_ids, attention_mask, i64) and detokenizer (ids i64 -> texts). `notes` go into both."""
    pipeline = pipeline_steps.TokenizerPipeline()
    special = [vocabulary.tokens[index] for index in vocabulary.special]
    if special:
        pipeline.add_steps(pipeline_steps.SpecialTokensSplit.from_string_iter(special))
    pipeline.add_steps(
        _byte_level_steps(vocabulary) if vocabulary.kind == "gpt2" else _sentence_piece_steps(vocabulary)
    )
    frame = _frame(vocabulary)
    if frame is not None:
        pipeline.add_steps(frame)
    pipeline.add_steps(pipeline_steps.PaddingStep(_token_id=0, pad_right=False))
    pipeline.add_steps(
        [
            pipeline_steps.VocabDecoderStep(_token_bytes(vocabulary), skip_tokens=vocabulary.ids(TokenType.CONTROL)),
            pipeline_steps.FuseStep(),
            pipeline_steps.UTF8ValidateStep(),
        ]
    )
    tokenizer = change_outputs_type(pipeline.get_tokenizer_ov_subgraph(), ov.Type.i64)
    detokenizer = change_inputs_type(pipeline.get_detokenizer_ov_subgraph(), ov.Type.i64)
    for model in (tokenizer, detokenizer):
        _note(model, notes)
    return tokenizer, detokenizer
