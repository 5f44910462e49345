# SPDX-License-Identifier: Apache-2.0
"""What can be told without a model: help, versions, exit statuses, flags and variables."""

import os
import subprocess
import unittest

from program import ProgramTestCase, command, environment, run

COMMANDS = ("info", "stream", "generate", "evaluate", "chat")
# Flags that all commands with a model and a cache have, and those that --help shows.
COMMON_CACHE_FLAGS = ("--max-cache-size", "--recall-blocks", "--no-eviction")
CACHE_FLAGS = ("--start-size", "--recent-size", "--max-cache-size", "--aggregation", "--rotation", "--positions",
               "--chunk", "--no-eviction", "--block-size", "--kv-type-k", "--kv-type-v", "--snapkv-window",
               "--cache-limit")


class Help(ProgramTestCase):
    def test_version(self):
        result = run("--version")
        self.assertEqual(result.returncode, 0)
        self.assertRegex(result.stdout.decode(), r"^carousel \d+\.\d+\.\d+\n$")

    def test_help_names_the_commands(self):
        result = run("--help")
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        for word in ("models", *COMMANDS, "bench", "Examples:", "CAROUSEL_MAX_CACHE_SIZE"):
            self.assertIn(word, result.stdout.decode())

    def test_help_of_each_command_has_examples_and_flags(self):
        for name in COMMANDS:
            text = run(name, "--help").stdout.decode()
            self.assertIn(f"Examples:\n  carousel {name}", text)
            self.assertNotIn("\x1b", text)
            for flag in ("--model", "--threads", *(COMMON_CACHE_FLAGS if name != "info" else ())):
                self.assertIn(flag + " ", text, name)

    def test_help_is_one_screen_and_help_all_has_every_flag(self):
        for name in COMMANDS:
            lines = run(name, "--help").stdout.decode().splitlines()
            self.assertLessEqual(len(lines), 45, name)
            self.assertLessEqual(max(map(len, lines)), 100, name)
            result = run(name, "--help-all")
            self.assertEqual((result.returncode, result.stderr), (0, b""))
            for flag in ("--model", "--threads", *(CACHE_FLAGS if name != "info" else ())):
                self.assertIn(flag + " ", result.stdout.decode(), name)
            if name != "info":
                self.assertEqual([line for line in lines if line][-1], "--help-all says everything there is.", name)

    def test_output_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "wb") as full:
            result = subprocess.run(command("--help"), stdout=full, stderr=subprocess.PIPE, env=environment())
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"No space left", result.stderr)


class BadUsage(ProgramTestCase):
    def stream(self, *flags):
        return run("stream", "--text", self.put("text", "some words"), *flags)

    def test_no_or_unknown_command(self):
        self.assert_fails(run(), 2, "no command", "stream")
        self.assert_fails(run("stram"), 2, "stram: unknown command", "stream")

    def test_unknown_flag(self):
        self.assert_fails(self.stream("--max-cache-sizes", "512"), 2, "did you mean --max-cache-size?")
        self.assert_fails(self.stream("--frobnicate"), 2, "--frobnicate: unknown flag")

    def test_values_that_are_none(self):
        self.assert_fails(self.stream("--threads", "many"), 2, "--threads", "many", "whole number")
        self.assert_fails(self.stream("--rotation", "left"), 2, "--rotation", "left", "query")
        self.assert_fails(self.stream("--cache-limit", "lots"), 2, "--cache-limit", "lots", "64M")
        self.assert_fails(self.stream("--threads"), 2, "--threads: a value is missing")

    def test_sizes_name_flag_value_limit_and_mend(self):
        self.assert_fails(self.stream("--max-cache-size", "500"), 2,
                          "--max-cache-size: 500 is not a multiple of the block size 32", "480", "512")
        self.assert_fails(self.stream("--start-size", "40"), 2, "--start-size: 40", "32", "64")
        self.assert_fails(self.stream("--recent-size", "1"), 2, "--recent-size: 1", "32")
        self.assert_fails(self.stream("--block-size", "20"), 2, "--block-size: 20", "8")
        self.assert_fails(self.stream("--chunk", "8"), 2, "--chunk: 8", "32")

    def test_sizes_of_zero_and_below(self):
        for flag in ("--start-size", "--recent-size", "--max-cache-size", "--block-size", "--chunk", "--segment",
                     "--max-tokens", "--cache-limit", "--cache-limit-tokens", "--pooling-width"):
            for value in ("0", "-64"):
                self.assert_fails(self.stream(flag, value), 2, f"{flag}: ")

    def test_areas_that_leave_nothing_to_evict(self):
        self.assert_fails(self.stream("--start-size", "32", "--recent-size", "480", "--max-cache-size", "512"), 2,
                          "--max-cache-size: 512", "--start-size 32", "--recent-size 480", "544")

    def test_sampling_out_of_range(self):
        for flag, value in (("--temperature", "-0.1"), ("--top-p", "1.5"), ("--top-p", "0"), ("--min-p", "2"),
                            ("--repetition-penalty", "0"), ("--presence-penalty", "2.5"), ("--top-k", "-3"),
                            ("--logprobs", "21"), ("--max-new-tokens", "0"), ("--seed", "-1")):
            self.assert_fails(run("generate", "--prompt", "hi", flag, value), 2, f"{flag}: ")

    def test_prompts_exclude_each_other(self):
        self.assert_fails(run("generate"), 2, "--prompt", "--prompt-file", "--token-ids")
        self.assert_fails(run("generate", "--prompt", "a", "--prompt-file", "b"), 2, "give one of them")

    def test_an_invalid_prompt(self):
        self.assert_fails(run("generate", "--prompt", os.fsdecode(b"caf\xe9")), 2, "--prompt", "UTF-8", "byte 3")


class Variables(ProgramTestCase):
    def test_a_variable_stands_for_its_flag(self):
        text = self.put("text", "some words")
        self.assert_fails(run("stream", CAROUSEL_TEXT=str(text), CAROUSEL_MAX_CACHE_SIZE="500"), 2,
                          "--max-cache-size (CAROUSEL_MAX_CACHE_SIZE): 500", "480")
        self.assert_fails(run("stream", CAROUSEL_TEXT=str(text), CAROUSEL_MODEL="/no/model"), 1,
                          "--model (CAROUSEL_MODEL): /no/model")

    def test_the_command_line_wins(self):
        self.assert_fails(run("stream", "--max-cache-size", "512", "--text", self.folder / "none",
                              CAROUSEL_MAX_CACHE_SIZE="500"), 1, "--text", "No such file")


if __name__ == "__main__":
    unittest.main()
