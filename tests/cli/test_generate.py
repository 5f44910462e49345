# SPDX-License-Identifier: Apache-2.0
"""carousel generate and info."""

import json
import signal
import subprocess
import unittest

from program import (MODEL, PATIENCE_SECONDS, TINY_MODEL, ModelTestCase, ProgramTestCase, TinyModelTestCase, command,
                     environment, prose, run)

SUMMARY_KEYS = {"type", "prompt_tokens", "new_tokens", "text", "token_ids", "ttft_ms", "decode_tokens_per_s",
                "prompt_tokens_per_s", "finish_reason", "resident_tokens", "max_resident_tokens", "evicted_tokens",
                "cache_bytes", "peak_rss_bytes", "rotation", "positions"}


class GenerateTestCase(ProgramTestCase):
    model = TINY_MODEL

    def generate(self, *flags, note="", **options):
        """What is written; on standard error there is `note` in one line, or nothing."""
        result = run("generate", "--model", self.model, *flags, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr.decode(), f"^carousel: note: .*{note}.*\n$" if note else "^$")
        return result.stdout.decode()

    def summary(self, *flags, **options):
        return json.loads(self.generate("--json", "-", *flags, **options))


class Answers(GenerateTestCase, ModelTestCase):
    model = MODEL

    def test_answers_through_the_chat_template(self):
        out = self.folder / "out.json"
        text = self.generate("--prompt", "Hello", "--max-new-tokens", "400", "--json", out)
        (summary,) = self.read_lines(out)
        self.assertLessEqual(SUMMARY_KEYS, summary.keys())
        self.assertEqual(summary["type"], "summary")
        self.assertEqual(text.rstrip("\n"), summary["text"].rstrip("\n"))
        self.assertRegex(text, r"\w+ \w+")
        self.assertNotIn("<|im_", text)
        self.assertEqual(summary["finish_reason"], "stop")
        self.assertEqual(summary["new_tokens"], len(summary["token_ids"]))
        self.assertGreater(summary["prompt_tokens"], 30)  # the template's system message among them

    def test_a_stop_string_ends_the_text_before_it(self):
        summary = self.summary("--prompt", "Count: one, two, three,", "--raw", "--max-new-tokens", "64",
                               "--stop", "no such text", "--stop", ",")
        self.assertEqual(summary["finish_reason"], "stop")
        self.assertEqual(summary["stop_string"], ",")
        self.assertNotIn(",", summary["text"])


class Generate(GenerateTestCase, TinyModelTestCase):
    def test_raw_text_file_and_tokens_are_the_same(self):
        flags = ("--raw", "--max-new-tokens", "8", "--ignore-eos")
        from_flag = self.summary(*flags, "--prompt", "The quick brown fox", "--logprobs", "2")
        from_pipe = self.summary(*flags, "--prompt-file", "-", stdin=b"The quick brown fox")
        self.assertEqual(from_flag["prompt_tokens"], len("The quick brown fox"))
        self.assertEqual(from_flag["finish_reason"], "length")
        self.assertEqual(from_flag["token_ids"], from_pipe["token_ids"])
        for entry, token in zip(from_flag["logprobs"], from_flag["token_ids"], strict=True):
            self.assertEqual(entry["token"], token)
            self.assertEqual(entry["top"][0]["token"], token)  # greedy
            self.assertLessEqual(entry["top"][1]["logprob"], entry["top"][0]["logprob"])
        ids = self.put("ids.json", json.dumps(from_flag["token_ids"]))
        self.assertEqual(self.summary("--token-ids", ids, "--max-new-tokens", "1")["prompt_tokens"], 8)

    def test_a_seed_repeats_what_it_gave(self):
        flags = ("--raw", "--prompt", "Once upon a time", "--max-new-tokens", "12", "--temperature", "1.2", "--seed")
        first, again, other = (self.summary(*flags, seed)["token_ids"] for seed in ("7", "7", "8"))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_a_long_prompt_is_evicted_both_ways(self):
        prompt = self.put("prompt", prose(3000))
        for way in ("capped", "at_end"):
            summary = self.summary("--prompt-file", prompt, "--raw", "--max-new-tokens", "4", "--ignore-eos",
                                   "--max-cache-size", "512", "--prompt-eviction", way,
                                   note=r"[\d,]+ of the prompt's [\d,]+ tokens were no longer in the cache")
            self.assertGreater(summary["prompt_tokens"], 1500)
            self.assertLessEqual(summary["resident_tokens"], 512 + 256)
            self.assertEqual(summary["max_resident_tokens"] <= 512 + 256, way == "capped")

    def test_ctrl_c_keeps_what_there_is(self):
        out = self.folder / "out.json"
        flags = ("--raw", "--prompt", "Once upon a time", "--max-new-tokens", "100000", "--ignore-eos", "--temperature", "1")
        with subprocess.Popen(command("generate", "--model", TINY_MODEL, *flags, "--json", out), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, env=environment()) as program:
            begin = program.stdout.read(20)
            program.send_signal(signal.SIGINT)
            self.assertEqual(program.wait(PATIENCE_SECONDS), 130)
            text = begin + program.stdout.read()
            self.assertEqual(program.stderr.read(), b"")
        (summary,) = self.read_lines(out)
        self.assertEqual(summary["finish_reason"], "cancelled")
        self.assertEqual(text.decode().rstrip("\n"), summary["text"].rstrip("\n"))


class Info(ModelTestCase):
    def test_says_what_the_model_is(self):
        out = self.folder / "info.json"
        result = run("info", "--model", MODEL, "--json", out)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        for word in ("llama", "layers 0-29", "9 query heads", "theta 100000", "8,192", "23,040", "query"):
            self.assertIn(word, result.stdout.decode())
        (info,) = self.read_lines(out)
        self.assertEqual(info["rope"], "rotates")
        self.assertEqual(len(info["layers"]), 30)
        self.assertTrue(info["chat_template_reducible"])


if __name__ == "__main__":
    unittest.main()
