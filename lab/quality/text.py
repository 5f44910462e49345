# SPDX-License-Identifier: Apache-2.0
"""Long prose that is on the machine already, and the model's own tokens of it."""

import gzip
from pathlib import Path

# What Debian's packages of prose put where: perl-doc and debian-reference. Nothing is downloaded.
INSTALLED = ("/usr/share/perl/*/pod/perl*.pod",
             "/usr/share/doc/debian-reference-common/docs/debian-reference.en.txt.gz")
LEAST_CHARACTERS = 600_000


def _read(path):
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8", "replace")
    return text.replace("\0", "")


def help_topics():
    """The interpreter's own help: some 115,000 tokens of technical prose that every Python has."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def default_text(patterns=INSTALLED):
    """A name and a text: the first of `patterns` that gives enough, else the interpreter's help."""
    for pattern in patterns:
        # A file under two names is one text: what is read twice is known.
        paths = sorted({path.resolve() for path in Path("/").glob(pattern.lstrip("/"))})
        text = "\n\n".join(_read(path) for path in paths)
        if len(text) >= LEAST_CHARACTERS:
            return pattern, text
    return "the interpreter's help topics", help_topics()


class Tokens:
    """The model's tokenizer, as openvino.genai runs it."""

    PIECE = 8192  # characters: the tokenizer cuts longer texts off without a word

    def __init__(self, model):
        import openvino_genai

        self._tokenizer = openvino_genai.Tokenizer(str(model))

    def encode(self, text):
        ids = []
        while text:
            cut = len(text) if len(text) <= self.PIECE else self._cut(text)
            ids += [int(i) for i in self._tokenizer.encode(text[:cut], add_special_tokens=False).input_ids.data[0]]
            text = text[cut:]
        return ids

    def decode(self, ids):
        return self._tokenizer.decode(list(ids))

    def _cut(self, text):
        """Before a space that follows something else: there the tokens of both parts are those of the whole."""
        cut = self.PIECE
        while cut > 1 and not (text[cut] == " " and not text[cut - 1].isspace()):
            cut -= 1
        return cut if cut > 1 else self.PIECE

    def count(self, text):
        return len(self.encode(text))

    def decode(self, ids):
        return self._tokenizer.decode(list(ids))
