# SPDX-License-Identifier: Apache-2.0
"""Tokenizers made from the vocabularies of GGUF files."""

import sys
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import gguf_tokenizer  # noqa: E402
import gguf_vocabulary  # noqa: E402
import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402
import tiny_gguf  # noqa: E402


class Tokenizers(unittest.TestCase):
    def graphs(self, architecture="llama", **changes):
        entries = tiny_gguf.metadata(architecture, **changes)
        vocabulary = gguf_vocabulary.read(entries, len(entries["tokenizer.ggml.tokens"]), "file.gguf")
        tokenizer, detokenizer = gguf_tokenizer.build(vocabulary, {"bos_token_id": 1})
        core = ov.Core()
        tokenizer, detokenizer = core.compile_model(tokenizer, "CPU"), core.compile_model(detokenizer, "CPU")

        def there(text):
            return [entries["tokenizer.ggml.tokens"][token] for token in np.asarray(tokenizer([text])["input_ids"])[0]]

        def back(tokens):
            ids = [entries["tokenizer.ggml.tokens"].index(token) for token in tokens]
            return str(detokenizer([np.array([ids], np.int64)])[0][0])

        return there, back

    def test_bytes(self):
        there, back = self.graphs()
        self.assertEqual(there("thin 12"), ["th", "in", "Ġ", "1", "2"])
        self.assertEqual(there("a<|im_end|>b"), ["a", "<|im_end|>", "b"])
        self.assertEqual(there("é"), ["Ã", "©"])
        for text in ("thin 12", "é世😀 x\n\n  y\t", " ", ""):
            self.assertEqual(back(there(text)), text)

    def test_every_way_to_cut_compiles_and_loses_nothing(self):
        text = "It's 12345 THINGS, isn't  it?\n\n  \u00dcber\u4e16\u754c\r\n x=y;\t..."
        for cut in gguf_vocabulary.CUTS:
            there, back = self.graphs(tokenizer__ggml__pre=cut, tokenizer__ggml__add_bos_token=False)
            self.assertEqual(back(there(text)), text, cut)

    def test_what_begins_and_ends_a_text(self):
        there, _ = self.graphs(tokenizer__ggml__add_bos_token=True, tokenizer__ggml__add_eos_token=True)
        self.assertEqual(there("th"), ["<|im_start|>", "th", "<|im_end|>"])
        self.assertEqual(there(""), ["<|im_start|>", "<|im_end|>"])

    def test_pieces_are_merged_by_score(self):
        pieces = ["bc", "ab", "abc", "▁a", "▁abc", "a", "b", "c", "▁"]
        there, back = self.graphs(**tiny_gguf.sentence_piece(pieces, tokenizer__ggml__add_space_prefix=False))
        self.assertEqual(there("abc"), ["<s>", "abc"])  # bc before ab
        self.assertEqual(there("ab abc"), ["<s>", "ab", "▁abc"])
        self.assertEqual(there("a  b"), ["<s>", "a", "  ", "b"])
        self.assertEqual(there("aé"), ["<s>", "a", "<0xC3>", "<0xA9>"])
        for text in ("abc ab  c", "aé世😀", " a"):
            self.assertEqual(back(there(text)), text)

    def test_a_space_before_every_text(self):
        there, _ = self.graphs(**tiny_gguf.sentence_piece(["▁a", "a", "▁"]))
        self.assertEqual(there("a"), ["<s>", "▁a"])
        self.assertEqual(there("</s>a"), ["<s>", "</s>", "▁a"])

    def test_pieces_with_spaces_inside_are_found(self):
        pieces = ["▁b", "a▁b", "a", "b", "▁", "c", "▁c"]
        there, _ = self.graphs(**tiny_gguf.sentence_piece(pieces, tokenizer__ggml__add_space_prefix=False))
        self.assertEqual(there("a b"), ["<s>", "a▁b"])
        self.assertEqual(there("c b"), ["<s>", "c", "▁b"])

    def test_white_space_after_phi3s_marks(self):
        pieces = ["▁Hello", "Hello", "▁"]
        there, _ = self.graphs("phi3", **tiny_gguf.phi3(pieces))
        chat = "<|user|>\nHello<|end|>\n<|assistant|>\n"
        self.assertEqual(there(chat), ["<s>", "<|user|>", "▁Hello", "<|end|>", "<|assistant|>"])
        # All that Unicode calls white space, and nothing else.
        self.assertEqual(there("<|end|>\r\n\t \u00a0\u3000\u2028\u0085Hello"), ["<s>", "<|end|>", "▁Hello"])
        self.assertEqual(there("<|end|>\u200b")[:3], ["<s>", "<|end|>", "▁"])
        self.assertEqual(there("</s>\n")[1:], ["</s>"])
        # What stands before a mark, and what follows these three, is kept.
        self.assertEqual(there("Hello <|end|>")[1:], ["▁Hello", "▁", "<|end|>"])
        for mark in ("<s>", "<unk>", "<|endoftext|>"):
            self.assertEqual(there(mark + "\n")[1:], [mark, "▁", "<0x0A>"])

    def test_phi3_in_pieces(self):
        """A conversation's marks and contents, each encoded by itself, are what the whole is."""
        there, _ = self.graphs("phi3", **tiny_gguf.phi3(["▁Hello", "▁"], tokenizer__ggml__add_bos_token=False))
        parts = ["<|system|>\n", "Hello", "<|end|>\n<|user|>\n", "Hello  Hello", "<|end|>\n<|assistant|>\n"]
        self.assertEqual([token for part in parts for token in there(part)], there("".join(parts)))

    def test_which_vocabularies_are_phi3s(self):
        def after_a_mark(architecture, **changes):
            there, _ = self.graphs(architecture, **changes)
            return there("<|end|>\n")[-1]

        pieces = ["▁"]
        self.assertEqual(after_a_mark("phi3", **tiny_gguf.phi3(pieces, mark_type=4)), "<|end|>")
        self.assertEqual(after_a_mark("phi3", **tiny_gguf.phi3(pieces, general__name="mine")), "<|end|>")
        self.assertEqual(after_a_mark("llama", **tiny_gguf.phi3(pieces, general__name="My Phi-3 Mini")), "<|end|>")
        self.assertEqual(after_a_mark("llama", **tiny_gguf.phi3(pieces, general__name="Llama")), "<0x0A>")
        # Phi-4's, of the other kind.
        self.assertEqual(after_a_mark("phi3", general__name="phi3"), "Ċ")

    def test_of_marks_that_fit_the_longest(self):
        marks = (*tiny_gguf.PHI3_MARKS, "<|end", "<|endoftext|>y", "<s>x")
        there, _ = self.graphs("phi3", **tiny_gguf.phi3(["▁"], marks=marks))
        text = "<|endoftext|>\n<|endoftext|>y\n<|end|>\n<|end\n<s>\n<s>x\n"
        marks_and_lines = ["<|endoftext|>", "▁", "<0x0A>", "<|endoftext|>y", "<|end|>", "<|end", "<s>", "▁", "<0x0A>", "<s>x"]
        self.assertEqual(there(text)[1:], marks_and_lines)

    def test_vocabularies_without_special_tokens(self):
        count = len(tiny_gguf.TOKENS)
        there, back = self.graphs(tokenizer__ggml__token_type=[1] * count)
        self.assertEqual(there("thin<|x"), ["th", "in", "<", "|", "x"])
        self.assertEqual(back(there("thin é\n")), "thin é\n")
        pieces = tiny_gguf.sentence_piece(["▁a", "a", "▁"], tokenizer__ggml__add_bos_token=False)
        pieces["tokenizer__ggml__token_type"] = [1, 1, 1] + [6] * 256 + [1] * 4
        there, back = self.graphs(**pieces)
        self.assertEqual(there("a a\n"), ["▁a", "▁a", "<0x0A>"])
        self.assertEqual(back(there("a é")), " a é")

    def test_vocabularies_without_types(self):
        there, back = self.graphs(tokenizer__ggml__token_type=None)
        # What the file calls by a name is special all the same.
        self.assertEqual(there("a<|im_end|>b"), ["a", "<|im_end|>", "b"])
        self.assertEqual(back(there("a<|im_end|>b é")), "ab é")
        there, back = self.graphs(**tiny_gguf.sentence_piece(["▁a", "▁"], tokenizer__ggml__token_type=None))
        self.assertEqual(there("a\n")[-2:], ["▁a", "<0x0A>"])
        self.assertEqual(back(there("a é\n")), " a é\n")

    def test_refusals(self):
        for changes, words in (
            ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model is 'bert'; gpt2 and llama"),
            ({"tokenizer__ggml__pre": "mine"}, "tokenizer.ggml.pre is 'mine'; known are .*qwen2"),
            ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens is missing"),
            ({"tokenizer__ggml__merges": None}, "tokenizer.ggml.merges is missing"),
            ({"tokenizer__ggml__token_type": [1]}, "token_type has 1 entries for 261 tokens"),
            ({"tokenizer__ggml__bos_token_id": 999}, "bos_token_id is 999"),
            ({"tokenizer__ggml__add_eos_token": "yes"}, "add_eos_token is 'yes'"),
            ({"tokenizer__ggml__eos_token_id": True}, "eos_token_id is True"),
            ({"tokenizer__ggml__padding_token_id": "pad"}, "padding_token_id is 'pad'"),
            ({"tokenizer__ggml__pre": []}, r"tokenizer.ggml.pre is \[\]"),
            ({"tokenizer__ggml__merges": ["t h", "i"]}, "merges has 'i', but '' is no token"),
            ({"tokenizer__ggml__merges": ["t i"]}, "merges has 't i', but 'ti' is no token"),
            ({"tokenizer__ggml__tokens": ["a\0b", *tiny_gguf.TOKENS[1:]]}, r"the token 'a.x00b' holds a NUL"),
            ({"tokenizer__chat_template": 5}, "chat_template is 5, but must be text"),
            ({"tokenizer__chat_template": "{{ 1 }}\x1b"}, r"chat_template has U\+001B at character 7"),
            (tiny_gguf.sentence_piece(["a"], tokenizer__ggml__scores=[float("nan")] * 261), "scores holds values that"),
            (tiny_gguf.sentence_piece(["a"], tokenizer__ggml__token_type=[6] * 261), "'<unk>' is of the type for bytes"),
        ):
            entries = tiny_gguf.metadata(**{"tokenizer__ggml__add_bos_token": True} | changes)
            self.assertRaisesRegex(
                gguf_vocabulary.TokenizerError, f"file.gguf: .*{words}", gguf_vocabulary.read, entries, 261, "file.gguf"
            )


if __name__ == "__main__":
    unittest.main()
