# SPDX-License-Identifier: Apache-2.0
"""What files and devices can do to the program: each gives one line, and nothing is half-written. On the tiny model."""

import unittest

from program import BINARY, TINY_MODEL, TinyModelTestCase, run


class BadModels(TinyModelTestCase):
    def stream(self, model):
        return run("stream", "--model", model, "--text", self.put("text", "some words"))

    def damaged(self, **replaced: bytes | None):
        """The model's folder with files replaced, or left out; names have "__" for "."."""
        folder = self.folder / "model"
        folder.mkdir()
        for path in TINY_MODEL.iterdir():
            name = path.name.replace(".", "__")
            if name not in replaced:
                (folder / path.name).symlink_to(path.resolve())
            elif replaced[name] is not None:
                (folder / path.name).write_bytes(replaced[name])
        return folder

    @staticmethod
    def half_of(name: str) -> bytes:
        content = (TINY_MODEL / name).read_bytes()
        return content[:len(content) // 2]

    def test_no_folder(self):
        self.assert_fails(self.stream("/no/model"), 1, "--model", "/no/model")

    def test_an_empty_folder(self):
        self.assert_fails(self.stream(self.folder), 1, "--model", "openvino_model.xml")

    def test_missing_weights(self):
        self.assert_fails(self.stream(self.damaged(openvino_model__bin=None)), 1, "openvino_model.bin")

    def test_truncated_weights(self):
        weights = self.half_of("openvino_model.bin")
        self.assert_fails(self.stream(self.damaged(openvino_model__bin=weights)), 1, "openvino_model")

    def test_a_truncated_graph(self):
        graph = self.half_of("openvino_model.xml")
        self.assert_fails(self.stream(self.damaged(openvino_model__xml=graph)), 1, "openvino_model.xml")

    def test_a_graph_that_is_no_decoder(self):
        graph = (TINY_MODEL / "openvino_detokenizer.xml").read_bytes()
        weights = (TINY_MODEL / "openvino_detokenizer.bin").read_bytes()
        folder = self.damaged(openvino_model__xml=graph, openvino_model__bin=weights)
        self.assert_fails(self.stream(folder), 1, "--model", "openvino_model.xml")

    def test_a_missing_tokenizer(self):
        self.assert_fails(self.stream(self.damaged(openvino_tokenizer__xml=None)), 1, "openvino_tokenizer.xml")

    def test_no_turn_format(self):
        folder = self.damaged(turn_format__json=None)
        self.assert_fails(run("generate", "--model", folder, "--prompt", "hi"), 1, "turn_format.json", "--raw",
                          "tools/prepare_model.py")
        self.assert_fails(run("chat", "--model", folder), 1, "turn_format.json", "tools/prepare_model.py")

    def test_a_damaged_turn_format(self):
        folder = self.damaged(turn_format__json=b'{"format":')
        self.assert_fails(run("generate", "--model", folder, "--prompt", "hi"), 1, "turn_format.json", "JSON")

    def test_a_chat_template_that_cannot_be_reduced(self):
        folder = self.damaged(turn_format__json=b'{"format":"carousel-turn-format","version":1,"reducible":false,'
                                                b'"reason":"it counts turns"}')
        self.assert_fails(run("generate", "--model", folder, "--prompt", "hi"), 1, "it counts turns", "--raw")
        self.assert_fails(run("chat", "--model", folder), 1, "it counts turns")


class BadText(TinyModelTestCase):
    def stream(self, *flags, stdin=b""):
        return run("stream", "--model", TINY_MODEL, *flags, stdin=stdin)

    def test_empty(self):
        self.assert_fails(self.stream("--text", self.put("empty", "")), 2, "--text", "empty")
        self.assert_fails(self.stream("--text", "-"), 2, "--text", "empty")
        self.assert_fails(run("generate", "--model", TINY_MODEL, "--prompt", ""), 2, "--prompt", "empty")

    def test_a_single_token(self):
        result = self.stream("--text", self.put("one", "a"), "--json", self.folder / "out")
        self.assertEqual(result.returncode, 2)
        self.assertIn("--text", result.stderr.decode())

    def test_bytes_that_are_no_text_do_not_end_a_stream(self):
        out = self.folder / "out.jsonl"
        text = self.put("odd", b"caf\xe9 au lait, ab" + bytes(64) + b"cd, some caf\xc3")
        result = self.stream("--text", text, "--json", out)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.read_lines(out)[-1]["replaced_sequences"], 3)

    def test_a_file_that_is_no_text_is_refused_at_once(self):
        program = run("stream", "--model", "/no/model", "--text", BINARY)
        self.assert_fails(program, 2, "--text", "no text in UTF-8", "convert")

    def test_a_prompt_that_is_no_text(self):
        self.assert_fails(run("generate", "--model", TINY_MODEL, "--prompt-file", "-", stdin=b"caf\xe9!"), 2,
                          "--prompt-file", "UTF-8", "byte 3")
        self.assert_fails(run("generate", "--model", TINY_MODEL, "--prompt-file", "-", stdin=b"ab\0cd"), 2,
                          "--prompt-file", "NUL", "byte 2")

    def test_missing_files_and_folders(self):
        self.assert_fails(self.stream("--text", self.folder / "none"), 1, "--text", "No such file")
        self.assert_fails(self.stream("--text", self.folder), 1, "--text", "directory")


class BadOutput(TinyModelTestCase):
    def test_a_json_path_that_cannot_be_written_fails_at_once(self):
        text = self.put("text", "some words")
        self.assert_fails(run("stream", "--model", "/no/model", "--text", text, "--json", "/no/folder/out"), 1,
                          "--json", "/no/folder/out", "No such file")

    def test_a_full_disk(self):
        text = self.put("text", "Some words that are read before anything is written.")
        result = run("stream", "--model", TINY_MODEL, "--text", text, "--json", "/dev/full")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stderr, b"carousel: --json: cannot write /dev/full: No space left on device\n")

    def test_a_failed_run_leaves_the_json_file_alone(self):
        out = self.put("out.jsonl", "what was there\n")
        run("stream", "--model", TINY_MODEL, "--text", self.put("empty", ""), "--json", out)
        self.assertEqual(out.read_text(), "what was there\n")


class BadLimits(TinyModelTestCase):
    def test_a_cache_limit_that_is_too_small(self):
        text = self.put("text", "some words")
        self.assert_fails(run("stream", "--model", TINY_MODEL, "--text", text, "--cache-limit", "10K"), 1,
                          "--cache-limit", "10240")

    def test_a_cache_beyond_the_trained_window(self):
        text = self.put("text", "some words")
        self.assert_fails(run("stream", "--model", TINY_MODEL, "--text", text, "--max-cache-size", "16384"), 2,
                          "--max-cache-size: 16384", "8192")

    def test_a_token_outside_the_vocabulary(self):
        ids = self.put("ids.json", "[1, 261]")
        self.assert_fails(run("generate", "--model", TINY_MODEL, "--token-ids", ids), 2, "--token-ids", "261")


if __name__ == "__main__":
    unittest.main()
