# SPDX-License-Identifier: Apache-2.0
"""Builds the tokenizer and the detokenizer, as OpenVINO graphs, from a vocabulary (gguf_vocabulary.py).

Special tokens are recognised in the text, as llama.cpp does when it is asked to; of several that fit, the longest.
"""

from __future__ import annotations

import itertools

import openvino as ov
import openvino_tokenizers.tokenizer_pipeline as pipeline_steps
from gguf.constants import TokenType
from gguf_vocabulary import CUTS, Vocabulary, bytes_by_letter
from openvino_tokenizers.utils import (
    change_inputs_type,
    change_outputs_type,
    create_string_constant_node,
    quote_meta,
)

SPACE = "\u2581"

# --- Special tokens -----------------------------------------------------------------------------------------------


class _SpecialTokensSplit(pipeline_steps.SpecialTokensSplit):
    """Cuts the special tokens out of a text, each with the white space after it where it swallows that.

    The base class tries the tokens that swallow white space apart from the others, and so not always the longest that fits
    first; and it does nothing where there are none, though the steps after it need what it hands on.
    """

    def get_ov_subgraph(self, input_nodes: list[ov.Output]) -> list[ov.Output]:
        groups = itertools.groupby(self.special_tokens, lambda token: token.strip_right)
        expression = "|".join(
            f"({'|'.join(quote_meta(token.text) for token in tokens)})" + r"(?:\s*)" * swallows
            for swallows, tokens in groups
        )
        matches_nothing = "(?!)"
        input_nodes.extend(create_string_constant_node(expression or matches_nothing))
        return pipeline_steps._get_factory().create("SpecialTokensSplit", input_nodes).outputs()


def _special_tokens_step(vocabulary: Vocabulary) -> _SpecialTokensSplit:
    return _SpecialTokensSplit(
        [
            pipeline_steps.SpecialToken(
                vocabulary.tokens[index], strip_right=index in vocabulary.swallows_space_after
            )
            for index in vocabulary.special
        ]
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
            merges=vocabulary.merges,
            added_tokens={vocabulary.tokens[index]: index for index in vocabulary.special},
        ),
    ]


# --- Graphs -------------------------------------------------------------------------------------------------------


def _token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    """What each token is in a text."""
    if vocabulary.kind == "llama":
        return [_bytes_of_piece(vocabulary, index) for index in range(len(vocabulary.tokens))]
    letters, special = bytes_by_letter(), set(vocabulary.special)
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
    pipeline.add_steps(_special_tokens_step(vocabulary))
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
