# SPDX-License-Identifier: Apache-2.0
"""Turns of a chat template on the real model: what ends them, and what is taken back."""

import json
import os
import time
import unittest

from program import MODEL, TINY_MODEL, ModelTestCase, run
from terminal import Terminal

QUESTIONS = ("Name one colour.", "Name one animal.", "What is two plus two?")


class Endings(ModelTestCase):
    def answers(self, *flags):
        """The questions' answers, in one conversation."""
        result = run("chat", "--model", MODEL, "--temperature", "0", "--max-new-tokens", "120", *flags,
                     stdin="\n".join(QUESTIONS).encode())
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn(b"cut off", result.stderr)
        return result.stdout.decode().splitlines()

    def test_a_repetition_penalty_lets_answers_end(self):
        plain = self.answers("--repetition-penalty", "1")
        for flags in ((), ("--repetition-penalty", "1.3")):  # the chat's own is 1.1
            words = [len(answer.split()) for answer in self.answers(*flags)]
            for mine, theirs in zip(words, plain, strict=True):
                self.assertLess(mine, 2 * len(theirs.split()) + 4, words)

    def test_the_templates_end_of_turn_ends_an_answer_whatever_the_config_says(self):
        model = self.folder / "model"
        model.mkdir()
        for entry in os.scandir(MODEL.resolve()):
            if entry.name != "config.json":
                (model / entry.name).symlink_to(entry.path)
        config = json.loads((MODEL / "config.json").read_text()) | {"eos_token_id": 0}
        (model / "config.json").write_text(json.dumps(config))
        flags = ("generate", "--prompt", QUESTIONS[0], "--max-new-tokens", "60", "--json", "-")
        summary = json.loads(run(*flags, "--model", model).stdout)
        self.assertEqual(summary["finish_reason"], "stop")
        self.assertNotIn("stop_string", summary)
        self.assertEqual(summary["text"], json.loads(run(*flags, "--model", MODEL).stdout)["text"])
        # Unless it is to be ignored, as every end.
        summary = json.loads(run(*flags, "--model", model, "--ignore-eos").stdout)
        self.assertEqual(summary["finish_reason"], "length")

    def test_a_stop_string_that_is_a_control_token(self):
        summary = json.loads(run("generate", "--model", MODEL, "--prompt", QUESTIONS[0], "--ignore-eos", "--stop",
                                 "<|im_end|>", "--max-new-tokens", "60", "--json", "-").stdout)
        self.assertEqual((summary["finish_reason"], summary["stop_string"]), ("stop", "<|im_end|>"))
        self.assert_fails(run("generate", "--model", TINY_MODEL, "--prompt", "hi", "--stop", "so<|im_end|>"), 2, "--stop",
                          "<|im_end|>")


class TakenBack(ModelTestCase):
    def test_a_first_message_that_was_not_read_whole_leaves_no_trace(self):
        saved = self.folder / "chat.json"
        # A message of 3,000 tokens in chunks of 32 takes seconds to read.
        terminal = Terminal("chat", "--model", MODEL, "--temperature", "0", "--max-new-tokens", "8", "--chunk", "32",
                            "--system", "word " * 3000)
        terminal.expect("> ")
        terminal.type("Hello\r")
        terminal.expect("Hello")
        time.sleep(0.3)
        terminal.type("\x03")
        terminal.expect("stopped before your message was read; your message is taken back")
        terminal.expect("> ")
        terminal.type("/stats\r")
        terminal.expect("0 messages, 0 tokens")
        terminal.expect("> ")
        terminal.type(f"/save {saved}\r")
        terminal.expect("saved 0 messages")
        terminal.expect("> ")
        terminal.type("\x04")
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(json.loads(saved.read_text()), [])


if __name__ == "__main__":
    unittest.main()
