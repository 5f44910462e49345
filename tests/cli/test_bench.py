# SPDX-License-Identifier: Apache-2.0
"""carousel bench on the real program, with settings as small as they go: what is measured is another matter."""

import json
import unittest

from program import TINY_MODEL, ProgramTestCase, TinyModelTestCase, run

ATTENTION_KEYS = {"type", "engine", "phase", "context", "queries", "kv_type", "shifts", "threads", "layers",
                  "bytes_per_layer", "seconds", "seconds_least", "seconds_most", "gb_per_s", "memory_gb_per_s",
                  "memory_percent", "gflop_per_s", "peak_percent"}
MACHINE_KEYS = {"type", "target", "threads", "cache_bytes", "memory_gb_per_s", "peak_gflop_per_s"}
SMALL = ("--contexts", "128", "--rounds", "2", "--kv-types", "f16,int8")


class Attention(ProgramTestCase):
    """Both engines, once; needs no model."""

    def test_both_engines_side_by_side(self):
        out = self.folder / "out.jsonl"
        result = run("bench", "attention", *SMALL, "--shifts", "none,2,every_block", "--json", out)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        machine, *lines = self.read_lines(out)
        self.assertLessEqual(MACHINE_KEYS, machine.keys())
        self.assertEqual(machine["type"], "machine")
        self.assertGreater(machine["memory_gb_per_s"], 0.1)
        self.assertGreater(machine["peak_gflop_per_s"], 0.1)
        kinds = [("carousel", kv_type, shifts) for kv_type in ("f16", "int8") for shifts in ("none", "2", "every_block")]
        kinds += [("openvino", "f16", "none"), ("openvino", "u8", "none")]
        self.assertEqual([(line["phase"], line["engine"], line["kv_type"], line["shifts"]) for line in lines],
                         [(phase, *kind) for phase in ("decode", "prompt") for kind in kinds])
        for line in lines:
            self.assertEqual(line.keys(), ATTENTION_KEYS)
            self.assertEqual(line["type"], "attention")
            self.assertEqual(line["threads"], machine["threads"])
            self.assertEqual(line["queries"], 1 if line["phase"] == "decode" else 128)
            self.assertLessEqual(line["seconds_least"], line["seconds"])
            self.assertLessEqual(line["seconds"], line["seconds_most"])
            # A multiply-add for each of 64 dimensions of keys and of values, 9 heads; half of a prompt is hidden.
            seen = 128 if line["phase"] == "decode" else 128 * 129 / 2
            self.assertAlmostEqual(line["gflop_per_s"] * line["seconds"], seen * 9 * 128 * 2e-9, delta=1e-9)
            self.assertAlmostEqual(line["gb_per_s"] * line["seconds"], line["bytes_per_layer"] * 1e-9, delta=1e-12)
            self.assertAlmostEqual(line["memory_percent"] * line["memory_gb_per_s"], 100 * line["gb_per_s"], delta=1e-9)
            # Other programs may disturb either measurement, so there is room above 100.
            for share in ("memory_percent", "peak_percent"):
                self.assertGreater(line[share], 0)
                self.assertLess(line[share], 300)
            if line["phase"] == "decode":
                self.assertGreater(line["layers"] * line["bytes_per_layer"], 3 * machine["cache_bytes"])
        table = result.stdout.decode()
        for word in ("decode: 1 query over 128 tokens", "prompt: 128 queries", "openvino", "every_block", "GB/s"):
            self.assertIn(word, table)

    def test_evictions_by_both_rotations(self):
        result = run("bench", "attention", "--phase", "eviction", "--contexts", "256", "--rounds", "3",
                     "--kv-types", "f16,int8", "--json", "-")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        (self.folder / "out").write_bytes(result.stdout)
        _, *lines = self.read_lines(self.folder / "out")
        self.assertEqual([(line["type"], line["kv_type"], line["rotation"]) for line in lines],
                         [("eviction", kv_type, rotation) for kv_type in ("f16", "int8")
                          for rotation in ("query", "keys")])
        for line in lines:
            self.assertEqual(line["rewritten_keys"] > 0, line["rotation"] == "keys")
            self.assertLessEqual(line["seconds_least"], line["seconds"])

    def test_the_instruction_set_can_be_pinned(self):
        arguments = ("bench", "attention", *SMALL, "--phase", "decode", "--shifts", "none", "--json", "-")
        result = run(*arguments, CAROUSEL_FORCE_TARGET="avx2")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        self.assertEqual(json.loads(result.stdout.splitlines()[0])["target"], "AVX2")
        for name in ("NEON", "avx512", "AVX2,AVX3"):
            result = run(*arguments, CAROUSEL_FORCE_TARGET=name)
            self.assertNotEqual(result.returncode, 0, name)
            self.assertEqual(result.stdout, b"")
            complaint = result.stderr.decode()
            for word in ("CAROUSEL_FORCE_TARGET", name, "AVX2"):
                self.assertIn(word, complaint)

    def test_ours_alone_as_json(self):
        result = run("bench", "attention", *SMALL, "--phase", "prompt", "--queries", "32", "--shifts", "none",
                     "--no-openvino", "--threads", "1", "--json", "-")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        (self.folder / "out").write_bytes(result.stdout)
        machine, *lines = self.read_lines(self.folder / "out")
        self.assertEqual(machine["threads"], 1)
        self.assertEqual([(line["engine"], line["queries"]) for line in lines], [("carousel", 32)] * 2)

    def test_wrong_flags(self):
        def attention(*flags):
            return run("bench", "attention", *flags)
        self.assert_fails(run("bench"), 2, "bench: ", "attention or model")
        self.assert_fails(run("bench", "speed"), 2, "speed: unknown", "attention or model")
        self.assert_fails(attention("--contexts", "500"), 2, "--contexts: 500", "32", "480", "512")
        self.assert_fails(attention("--phase", "prefill"), 2, "--phase: ", "prefill", "decode, prompt, both")
        self.assert_fails(attention("--kv-types", "f16,u8"), 2, "--kv-types: ", "u8", "int8")
        self.assert_fails(attention("--shifts", "99"), 2, "--shifts: 99", "16 blocks", "every_block")
        self.assert_fails(attention("--queries", "4096"), 2, "--queries: 4096", "512")
        self.assert_fails(attention("--shape-of", "/no/model"), 1, "--shape-of: /no/model")
        self.assert_fails(run("bench", "attention", CAROUSEL_ROUNDS="0"), 2, "--rounds (CAROUSEL_ROUNDS): 0", "1")

    def test_a_file_that_cannot_be_written_is_told_before_measuring(self):
        for part in ("attention", "model"):
            self.assert_fails(run("bench", part, "--json", self.folder / "none" / "out"), 1,
                              "--json: cannot write ", "No such file")
            self.assert_fails(run("bench", part, "--json", self.folder), 1, "--json: cannot write ", "directory")

    def test_help_says_what_the_times_include(self):
        text = run("bench", "attention", "--help-all").stdout.decode()
        for word in ("Examples:\n  carousel bench attention", "writing the new tokens", "attention mass", "--rounds "):
            self.assertIn(word, text)
        self.assertIn("Examples:\n  carousel bench model", run("bench", "model", "--help").stdout.decode())


class WholeModel(TinyModelTestCase):
    def test_caches_in_turn(self):
        out = self.folder / "out.jsonl"
        result = run("bench", "model", "--model", TINY_MODEL, "--contexts", "300", "--decode-tokens", "2", "--rounds", "1",
                     "--max-cache-size", "off,256", "--recent-size", "64", "--chunk", "64", "--json", out)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        whole, evicted = self.read_lines(out)
        self.assertEqual((whole["max_cache_size"], evicted["max_cache_size"]), (None, 256))
        self.assertEqual(whole["resident_tokens"], 302)
        self.assertLessEqual(evicted["resident_tokens"], 256 + 64)
        for line in (whole, evicted):
            self.assertEqual((line["type"], line["context"]), ("model", 300))
            for key in ("prompt_tokens_per_s", "decode_tokens_per_s"):
                self.assertGreater(line[key], 0)
        self.assertIn("decode", result.stdout.decode())


if __name__ == "__main__":
    unittest.main()
