#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares an import's tokenizer with llama.cpp's own on the same GGUF file, token by token, over mixed text.

    lab/compare_tokenizers.py --gguf model.gguf --model models/imported [--text more.txt]

The text is made here, the same each time: prose and code that every Python brings, words in thirty scripts, emoji with
joiners and skin tones, runs of all kinds of space, numbers, damaged-looking sequences, and the file's special tokens in
between. Each difference is shown with what stands around it.

It needs llama-cpp-python (pip install llama-cpp-python), which is no requirement of this project; without it nothing is
compared, and the exit status is 77.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_tokenizers  # noqa: F401  (registers the tokenizer's operations with every Core)

SKIPPED = 77
DOCUMENT_CHARACTERS = 2000
SHOWN = 12

SCRIPTS = {
    "latin": (0xC0, 0x24F), "greek": (0x391, 0x3C9), "cyrillic": (0x410, 0x44F), "armenian": (0x561, 0x586),
    "hebrew": (0x5D0, 0x5EA), "arabic": (0x621, 0x64A), "syriac": (0x710, 0x72F), "thaana": (0x780, 0x7A5),
    "devanagari": (0x904, 0x94D), "bengali": (0x985, 0x9CD), "gurmukhi": (0xA05, 0xA4D), "gujarati": (0xA85, 0xACD),
    "tamil": (0xB85, 0xBCD), "telugu": (0xC05, 0xC4D), "kannada": (0xC85, 0xCCD), "malayalam": (0xD05, 0xD4D),
    "sinhala": (0xD85, 0xDC6), "thai": (0xE01, 0xE3A), "lao": (0xE81, 0xEB9), "tibetan": (0xF40, 0xF6C),
    "myanmar": (0x1000, 0x1040), "georgian": (0x10D0, 0x10F0), "ethiopic": (0x1200, 0x1248), "khmer": (0x1780, 0x17B3),
    "mongolian": (0x1820, 0x1842), "hiragana": (0x3041, 0x3096), "katakana": (0x30A1, 0x30FA), "han": (0x4E00, 0x9FA5),
    "hangul": (0xAC00, 0xD7A3), "gothic": (0x10330, 0x1034A),
}  # fmt: skip
SPACES = [
    " ",
    "  ",
    "   ",
    " " * 9,
    " " * 40,
    "\n",
    "\n\n",
    "\n\n\n\n",
    "\r\n",
    "\t",
    "\t\t",
    " \n",
    "\n ",
    " \t ",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u2028",
    "\u200b",
]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "1️⃣", "🧑🏿‍🚀", "☕", "♻", "🫠", "🤷‍♀️"]
PUNCTUATION = list(".,;:!?-–—…()[]{}<>\"'`´“”‘’«»¿¡/\\|@#$%^&*_+=~°§¶€£¥") + [
    "...",
    "->",
    "!=",
    "'s",
    "'LL",
    "'ve",
    "``",
    '"""',
    "</",
    "/>",
    "▁",
    "▁▁",
]


def words(generator: random.Random) -> Iterator[str]:
    """One odd thing after another."""
    while True:
        kind = generator.randrange(10)
        if kind < 4:
            low, high = SCRIPTS[generator.choice(list(SCRIPTS))]
            yield "".join(chr(generator.randint(low, high)) for _ in range(generator.randint(1, 9)))
        elif kind == 4:
            yield generator.choice(EMOJI)
        elif kind == 5:
            yield str(generator.randrange(10 ** generator.randint(1, 12)))
        elif kind == 6:
            yield generator.choice(PUNCTUATION) * generator.choice([1, 1, 1, 2, 3, 17])
        elif kind == 7:
            yield "".join(generator.choice("abcdefgHIJK_0123éßñ") for _ in range(generator.randint(1, 14)))
        elif kind == 8:
            yield "".join(
                chr(generator.choice([generator.randint(0xA1, 0x2FFF), generator.randint(0x1F300, 0x1FAFF)]))
                for _ in range(3)
            )
        else:
            yield "e\u0301a\u0308\u0323"
        yield generator.choice(SPACES) if generator.random() < 0.3 else generator.choice([" ", " ", " ", ""])


def odd_text(characters: int, special: list[str], generator: random.Random) -> str:
    parts, size = [], 0
    for word in words(generator):
        if special and generator.random() < 0.01:
            word += generator.choice(special)
        parts.append(word)
        size += len(word)
        if size >= characters:
            return "".join(parts)
    return ""


def documents(special: list[str], more: list[Path]) -> dict[str, list[str]]:
    import pydoc_data.topics

    library = Path(random.__file__).parent
    prose = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    code = "".join(
        (library / name).read_text(encoding="utf-8")
        for name in ("argparse.py", "ast.py", "typing.py", "decimal.py", "_pydecimal.py", "pathlib.py")
    )
    texts = {"prose": prose[:400_000], "code": code[:400_000], "odd": odd_text(400_000, special, random.Random(17))}
    texts |= {path.name: path.read_text(encoding="utf-8") for path in more}
    return {
        name: [text[begin : begin + DOCUMENT_CHARACTERS] for begin in range(0, len(text), DOCUMENT_CHARACTERS)]
        for name, text in texts.items()
    }


def first_difference(ours: list[int], theirs: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an import of FILE")
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE", help="more text; repeatable")
    options = parser.parse_args()
    try:
        import llama_cpp
    except ImportError:
        print(
            "compare_tokenizers: skipped: llama-cpp-python is not installed (pip install llama-cpp-python)",
            file=sys.stderr,
        )
        return SKIPPED
    theirs = llama_cpp.Llama(str(options.gguf), vocab_only=True, verbose=False)
    core = ov.Core()
    ours = core.compile_model(options.model / "openvino_tokenizer.xml", "CPU")
    back = core.compile_model(options.model / "openvino_detokenizer.xml", "CPU")
    vocabulary = theirs.n_vocab()
    names = [theirs._model.token_get_text(index) for index in range(vocabulary)]
    special = [
        name
        for index, name in enumerate(names)
        if theirs._model.token_get_attr(index)
        & (llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)
        and name.strip()
    ]
    total_bytes = total_tokens = shown = 0
    for kind, parts in documents(special[:20] + special[-5:], options.text).items():
        differing = lost = size = count = 0
        seconds = 0.0
        for part in parts:
            wanted = theirs.tokenize(part.encode(), add_bos=True, special=True)
            begin = time.perf_counter()
            found = np.asarray(ours([part])["input_ids"])[0].tolist()
            seconds += time.perf_counter() - begin
            size, count = size + len(part.encode()), count + len(wanted)
            if part.strip(" ") not in str(back([np.array([found], np.int64)])[0][0]) and not any(
                name in part for name in special
            ):
                lost += 1
            if found == wanted:
                continue
            differing += 1
            if shown < SHOWN:
                shown += 1
                at = first_difference(found, wanted)
                print(
                    f"  {kind}: after {[names[i] for i in wanted[max(at - 3, 0) : at]]}: ours {[names[i] for i in found[at : at + 6]]}, llama.cpp {[names[i] for i in wanted[at : at + 6]]}"
                )
        print(
            f"{kind}: {size:,} bytes, {count:,} tokens in {len(parts)} documents: {differing} differ, {lost} do not come back; {size / seconds / 1e6:.2f} MB/s"
        )
        total_bytes, total_tokens = total_bytes + size, total_tokens + count
    print(f"{total_bytes:,} bytes, {total_tokens:,} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
