# SPDX-License-Identifier: Apache-2.0
"""carousel chat: from a script, and at a terminal."""

import json
import os
import re
import unittest

from program import MODEL, TINY_MODEL, ModelTestCase, TinyModelTestCase, run
from terminal import Terminal

FLAGS = ("chat", "--model", MODEL, "--temperature", "0")
TINY_FLAGS = ("chat", "--model", TINY_MODEL, "--temperature", "0", "--max-new-tokens", "4")
REMEMBERED = r"remembered [\d,]+ of [\d,]+ tokens, [\d,]+ forgotten; \d+ tok/s"


class Script(ModelTestCase):
    def test_a_conversation_through_a_pipe(self):
        saved = self.folder / "chat.json"
        text = self.folder / "chat.txt"
        script = (f"Hello, my name is Ada.\n/stats\n\nWhat is two\\\nplus two?\n/save {saved}\n/save {text}\n"
                  f"/reset\n/stats\n/nonsense\n/save /no/folder/file\n/exit\nnever said\n")
        result = run(*FLAGS, "--max-new-tokens", "24", "--system", "Be brief.", stdin=script.encode())
        self.assertEqual(result.returncode, 0, result.stderr)
        notes = result.stderr.decode()
        self.assertEqual(len(re.findall(REMEMBERED, notes)), 2, notes)
        self.assertIn("3 messages, ", notes)
        self.assertIn("0 messages, 0 tokens", notes)
        self.assertIn("/nonsense: no such command", notes)
        self.assertIn("/no/folder/file: cannot be written: No such file", notes)
        self.assertNotIn("\x1b", notes + result.stdout.decode())
        messages = json.loads(saved.read_text())
        self.assertEqual([message["role"] for message in messages],
                         ["system", "user", "assistant", "user", "assistant"])
        self.assertEqual(messages[3]["content"], "What is two\nplus two?")
        self.assertEqual(result.stdout.decode(), messages[2]["content"] + "\n" + messages[4]["content"] + "\n")
        self.assertIn("## assistant\n\n" + messages[4]["content"], text.read_text())
        self.assertEqual(sorted(os.listdir(self.folder)), ["chat.json", "chat.txt"])


class Lines(TinyModelTestCase):
    def test_a_script_with_the_line_ends_of_other_systems(self):
        saved = self.folder / "chat.json"
        script = f"Hello.\r\n/reset\r\nWhat is two\\\r\nplus two?\r\n/save {saved}\r\n/exit\r\nnever said\r\n"
        result = run(*TINY_FLAGS, stdin=script.encode())
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("no such command", result.stderr.decode())
        contents = [message["content"] for message in json.loads(saved.read_text()) if message["role"] == "user"]
        self.assertEqual(contents, ["What is two\nplus two?"])

    def test_a_bad_line_does_not_end_the_chat(self):
        result = run(*TINY_FLAGS, stdin=b"caf\xe9\n//slash\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        notes = result.stderr.decode()
        self.assertIn("UTF-8", notes)
        self.assertEqual(len(re.findall(REMEMBERED, notes)), 1, notes)


class AtATerminal(ModelTestCase):
    def test_a_conversation_with_interruptions(self):
        saved = self.folder / "chat.json"
        pasted = self.folder / "pasted.json"
        terminal = Terminal(*FLAGS, "--max-new-tokens", "2000")
        terminal.expect("Ctrl-D ends the chat")
        terminal.expect("> ")
        # Ctrl-C at the prompt drops the line, and the chat goes on.
        terminal.type("dropped")
        terminal.expect("dropped")
        terminal.type("\x03")
        terminal.expect("> ")
        # Editing: a character of two bytes is one, and can be taken back.
        terminal.type("Write a very long story about a caf\u00e9\u00e9\x7f and a fox.\r")
        terminal.expect("fox")
        # Ctrl-C stops the answer and not the chat.
        terminal.expect(r"\w+ \w+ \w+ \w+ \w+ \w+")
        terminal.type("\x03")
        terminal.expect(REMEMBERED + "; stopped")
        terminal.expect("> ")
        terminal.type(f"/save {saved}\r")
        terminal.expect("saved 2 messages")
        terminal.expect("> ")
        # History: two up is the message, which is not said again.
        terminal.type("\x1b[A\x1b[A")
        terminal.expect("fox")
        terminal.type("\x03")
        terminal.expect(r"\x1b\[\?2004h")  # pastes are marked from here on
        terminal.expect("> ")
        # A paste is one message with its lines, and can be edited and taken back as any other.
        terminal.type("Say \x1b[200~one\rtwo\r\nthree\nfour\x1b[201~!\r")
        terminal.expect(r"\x1b\[\?2004l")
        terminal.expect(REMEMBERED)
        terminal.expect(r"\x1b\[\?2004h")
        terminal.expect("> ")
        terminal.type(f"/save {pasted}\r")
        terminal.expect("saved 4 messages")
        terminal.expect("> ")
        terminal.type("\x04")
        self.assertEqual(terminal.wait(), 0)
        self.assertEqual(json.loads(pasted.read_text())[2]["content"], "Say one\ntwo\nthree\nfour!")
        messages = json.loads(saved.read_text())
        self.assertEqual(messages[0]["content"], "Write a very long story about a caf\u00e9 and a fox.")
        self.assertGreater(len(messages[1]["content"]), 10)


if __name__ == "__main__":
    unittest.main()
