# SPDX-License-Identifier: Apache-2.0
"""carousel evaluate on the real model."""

import array
import json
import math
import unittest

from program import MODEL, ModelTestCase, prose, run


class Evaluate(ModelTestCase):
    def evaluate(self, tasks: list[dict], *flags) -> list[dict]:
        path = self.put("tasks.jsonl", "".join(json.dumps(task) + "\n" for task in tasks))
        result = run("evaluate", "--model", MODEL, "--tasks", path, *flags)
        self.assertEqual((result.returncode, result.stderr), (0, b""))
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_turns_follow_one_another(self):
        turns = [{"prompt": "What is the capital of France?"}, {"prompt": "And what is that of Italy?"}]
        lines = self.evaluate([{"id": "capitals", "turns": turns}])
        self.assertIn("Paris", lines[0]["text"])
        self.assertIn("Rome", lines[1]["text"])
        self.assertEqual(lines[1]["finish_reason"], "stop")
        self.assertEqual([line["type"] for line in lines], ["turn", "turn", "summary"])

    def rows(self, path, vocabulary: int) -> list[array.array]:
        values = array.array("f", path.read_bytes())
        self.assertEqual(len(values) % vocabulary, 0)
        return [values[begin:begin + vocabulary] for begin in range(0, len(values), vocabulary)]

    def test_distributions_move_when_tokens_are_evicted(self):
        task = {"id": 1, "raw": True, "turns": [{"prompt": prose(2500), "score": prose(2550)[2500:]}]}
        rows = {}
        for name, flags in {"whole": ("--no-eviction",), "again": ("--max-cache-size", "1024"),
                            "small": ("--max-cache-size", "256", "--prompt-eviction", "at_end",
                                      "--recall-blocks", "0")}.items():
            turn, summary = self.evaluate([task], *flags, "--logits", self.folder / name)
            rows[name] = self.rows(self.folder / name, summary["vocabulary_size"])
            self.assertEqual(len(rows[name]), len(turn["token_ids"]))
            for row, token, nll in zip(rows[name], turn["token_ids"], turn["nll"], strict=True):
                self.assertAlmostEqual(math.fsum(map(math.exp, row)), 1, delta=1e-4)
                self.assertAlmostEqual(row[token], -nll, delta=1e-5)
        self.assertEqual(rows["again"], rows["whole"])
        self.assertEqual(turn["peak_resident_tokens"], turn["prompt_tokens"])  # until the prompt's end
        self.assertLessEqual(turn["resident_tokens"], 256)
        # The first distribution is still of the whole prompt.
        self.assertEqual(rows["small"][0], rows["whole"][0])
        divergences = [math.fsum(math.exp(p) * (p - q) for p, q in zip(whole, small, strict=True))
                       for whole, small in zip(rows["whole"][1:], rows["small"][1:], strict=True)]
        self.assertGreater(sum(divergences) / len(divergences), 0.01)


if __name__ == "__main__":
    unittest.main()
