# SPDX-License-Identifier: Apache-2.0
"""Disks that fill up: what is remembered is a help, and a conversation goes on without; files stay whole.

On the tiny model, whose past fills a small disk.
"""

import json
import resource
import subprocess
import unittest

from program import PATIENCE_SECONDS, TINY_MODEL, TinyModelTestCase, command, environment, prose

SMALL_BYTES = 64 << 10
VOCABULARY = 261


class FullDisk(TinyModelTestCase):
    def small_disk(self):
        """A folder on a file system of 64 KB where one may be mounted, and what that says when it is full; else any
        folder, and a limit on the size of files."""
        folder = self.folder / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "none", folder]
        try:
            mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            mounted = False
        if not mounted:
            return folder, SMALL_BYTES, "File too large"
        self.addCleanup(subprocess.run, ["umount", folder], check=True)
        return folder, None, "No space left on device"

    @staticmethod
    def run_limited(limit, *arguments, stdin=b""):
        """Runs with files of at most so many bytes; None: as large as they will."""
        def lower():
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return subprocess.run(command(*arguments), input=stdin, capture_output=True, env=environment(),
                              timeout=PATIENCE_SECONDS, preexec_fn=lower, check=False)

    def test_a_chat_goes_on(self):
        disk, limit, reason = self.small_disk()
        words = prose(40_000).split()
        messages = [" ".join(words[i * 40:(i + 1) * 40]) for i in range(8)]  # of some 250 tokens
        saved = self.folder / "saved.json"
        result = self.run_limited(limit, "chat", "--model", TINY_MODEL, "--temperature", "0", "--max-new-tokens", "4",
                                  "--recall-store", disk / "past.bin", "--max-cache-size", "224", "--chunk", "64",
                                  stdin="\n".join([*messages, f"/save {saved}", ""]).encode())
        notes = result.stderr.decode()
        self.assertEqual(result.returncode, 0, notes)
        self.assertEqual(notes.count("remembered "), 8, notes)
        self.assertNotIn("begins anew", notes)
        self.assertEqual(notes.count(reason), 1, notes)
        self.assertEqual([message["content"] for message in json.loads(saved.read_text())
                          if message["role"] == "user"], messages)

    def test_a_stream_goes_on_and_says_so_once(self):
        disk, limit, reason = self.small_disk()
        out = self.folder / "out.jsonl"
        result = self.run_limited(limit, "stream", "--model", TINY_MODEL, "--text", self.put("text", prose(20_000)),
                                  "--max-tokens", "1000", "--segment", "250", "--recall-store", disk / "past.bin",
                                  "--max-cache-size", "224", "--recent-size", "64", "--chunk", "64", "--json", out)
        notes = result.stderr.decode()
        self.assertEqual(result.returncode, 0, notes)
        self.assertEqual(notes.count("\n"), 1, notes)
        self.assertTrue(notes.startswith(f"carousel: note: recall: {disk}/past.bin cannot grow"), notes)
        self.assertIn(reason, notes)
        *segments, summary = self.read_lines(out)
        self.assertEqual(len(segments), 4)
        self.assertEqual((summary["type"], summary["finish_reason"]), ("summary", "max_tokens"))
        self.assertGreaterEqual(summary["recall_refused_growths"], 1)
        self.assertIn(reason, summary["recall_limited_by"])
        # Every KV head holds as many.
        self.assertGreater(summary["recall_stored_tokens"], 0)
        self.assertEqual(summary["recall_stored_tokens"] + summary["recall_dropped_tokens"], summary["forgotten_tokens"])

    def test_a_limit_on_files_leaves_whole_lines(self):
        out = self.folder / "out.jsonl"
        result = self.run_limited(1000, "stream", "--model", TINY_MODEL, "--text", self.put("text", prose(2000)),
                                  "--segment", "32", "--json", out)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertEqual(result.stderr.decode(), f"carousel: --json: cannot write {out}: File too large\n")
        self.assertGreater(len(self.read_lines(out)), 1)

    def test_a_limit_on_files_leaves_whole_rows(self):
        rows = self.folder / "rows"
        tasks = self.put("tasks", json.dumps({"id": 1, "raw": True, "turns": [{"prompt": [1, 2], "score": [3, 4, 5]}]}))
        result = self.run_limited(2 * 4 * VOCABULARY + 100, "evaluate", "--model", TINY_MODEL, "--tasks", tasks,
                                  "--logits", rows)
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("--logits: cannot write", result.stderr.decode())
        self.assertEqual(rows.stat().st_size, 2 * 4 * VOCABULARY)


if __name__ == "__main__":
    unittest.main()
