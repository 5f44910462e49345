# SPDX-License-Identifier: Apache-2.0
"""carousel stream on the real model."""

import json
import math
import os
import pty
import signal
import subprocess
import unittest

from program import (MODEL, PATIENCE_SECONDS, TINY_MODEL, ModelTestCase, TinyModelTestCase, command, environment, prose, run,
                     wait_for)

SMALL_CACHE = ("--start-size", "32", "--recent-size", "256", "--max-cache-size", "512")
CHUNK = 256
SEGMENT_KEYS = {"type", "tokens_begin", "tokens_end", "nll", "ppl", "tokens_per_s", "resident_tokens", "rss_bytes"}
SUMMARY_KEYS = {"type", "tokens", "nll", "ppl", "tokens_per_s", "max_resident_tokens", "evicted_tokens",
                "peak_rss_bytes", "rotation", "positions", "evictions", "block_size", "start_size", "recent_size",
                "max_cache_size", "chunk", "key_type", "value_type", "model", "seconds", "cache_bytes",
                "attention_seconds"}


class LongText(ModelTestCase):
    """A text six times as long as the cache."""

    def test_evicts_within_its_limits(self):
        out = self.folder / "out.jsonl"
        result = run("stream", "--model", MODEL, "--text", self.put("text", prose(40_000)), "--max-tokens", "3000",
                     "--json", out, *SMALL_CACHE)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, b"")  # no progress line where there is no terminal
        *segments, summary = self.read_lines(out)
        self.assertEqual([(s["tokens_begin"], s["tokens_end"]) for s in segments],
                         [(0, 1024), (1024, 2048), (2048, 3000)])
        for segment in segments:
            self.assertLessEqual(SEGMENT_KEYS, segment.keys())
            self.assertEqual(segment["type"], "segment")
            self.assertAlmostEqual(segment["ppl"], math.exp(segment["nll"]), delta=1e-6 * segment["ppl"])
            self.assertLessEqual(segment["resident_tokens"], 512 + CHUNK)
            self.assertGreater(segment["tokens_per_s"], 0)
            self.assertGreater(segment["rss_bytes"], 50e6)
        self.assertLessEqual(SUMMARY_KEYS, summary.keys())
        self.assertEqual(summary["type"], "summary")
        self.assertEqual(summary["tokens"], 3000)
        self.assertLessEqual(summary["max_resident_tokens"], 512 + CHUNK)
        self.assertGreaterEqual(summary["evicted_tokens"], 3000 - 512 - CHUNK)
        self.assertEqual(summary["rotation"], "query")
        weights = [segment["predicted_tokens"] for segment in segments]
        self.assertEqual(sum(weights), 2999)
        mean = sum(s["nll"] * w for s, w in zip(segments, weights)) / sum(weights)
        self.assertAlmostEqual(summary["nll"], mean, places=9)
        # English that a language model has not lost hold of.
        self.assertLess(summary["ppl"], 40)
        self.assertLess(max(s["ppl"] for s in segments), 2 * summary["ppl"])
        table = result.stdout.decode()
        for word in ("tokens", "ppl", "tok/s", "resident", "3,000", "perplexity"):
            self.assertIn(word, table)
        self.assertNotIn("\x1b", table)


class Pipe(TinyModelTestCase):
    def test_standard_input_is_read_like_a_file(self):
        text = prose(4000)
        flags = ("stream", "--model", TINY_MODEL, "--max-tokens", "600", "--segment", "300", "--json", "-")
        from_file = run(*flags, "--text", self.put("text", text))
        from_pipe = run(*flags, "--text", "-", stdin=text.encode())
        self.assertEqual((from_file.returncode, from_pipe.returncode), (0, 0), from_pipe.stderr)
        figures = [[json.loads(line)["nll"] for line in result.stdout.splitlines()]
                   for result in (from_file, from_pipe)]
        self.assertEqual(len(figures[0]), 3)
        for left, right in zip(*figures):
            self.assertAlmostEqual(left, right, places=4)


class EndlessInput(TinyModelTestCase):
    def start(self, out, stderr=subprocess.PIPE):
        return subprocess.Popen(
            command("stream", "--model", TINY_MODEL, "--text", "-", "--segment", "64", "--chunk", "64", "--json", out),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment())

    def test_ctrl_c_while_waiting_gives_the_summary(self):
        out = self.folder / "out.jsonl"
        with self.start(out) as program:
            program.stdin.write(prose(2000).encode())
            program.stdin.flush()
            # Text is read while the input stays open, as far as whole chunks go.
            wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3, "segments")
            program.send_signal(signal.SIGINT)
            self.assertEqual(program.wait(PATIENCE_SECONDS), 130)
            self.assertEqual(program.stderr.read(), b"")
            self.assertIn("perplexity", program.stdout.read().decode())
        summary = self.read_lines(out)[-1]
        self.assertEqual(summary["type"], "summary")
        self.assertEqual(summary["finish_reason"], "cancelled")
        self.assertGreaterEqual(summary["tokens"], 192)

    def test_a_terminal_gets_a_progress_line(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        out = self.folder / "out.jsonl"
        with self.start(out, stderr=slave) as program:
            os.close(slave)
            program.stdin.write(prose(4000).encode())
            program.stdin.close()
            self.assertEqual(program.wait(PATIENCE_SECONDS), 0)
        shown = os.read(master, 65536).decode()
        self.assertRegex(shown, r"\r[\d,]+ tokens \| nll \d")
        self.assertTrue(shown.rstrip("\n").endswith("\r"), shown[-100:])  # and it is cleared


if __name__ == "__main__":
    unittest.main()
