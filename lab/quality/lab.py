# SPDX-License-Identifier: Apache-2.0
"""Runs cells: conversations, distributions and streams under one setting each; finished ones are not run again."""

import json
import re
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path

import numpy

from quality import carousel, metrics, rival
from quality.settings import BLOCK, CHUNK, START
from quality.store import digest
from quality.tasks import Haystack

RIVAL_PATIENCE_SECONDS = 3600


class Progress:
    """One line per cell on standard error, with the time since the start."""

    def __init__(self):
        self._begin = time.monotonic()
        self.where = ""

    def say(self, text):
        minutes, seconds = divmod(int(time.monotonic() - self._begin), 60)
        print(f"lab {minutes:3}:{seconds:02} {self.where}{text}", file=sys.stderr, flush=True)


def last_words(result):
    """Why a Python process ended: the exception and what it said, not what libraries say while they are torn down."""
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith(("[ERROR]", " "))]
    raised = [i for i, line in enumerate(lines) if line.split(":")[0].endswith("Error")]
    said = " ".join(line for line in lines[raised[-1]:] if line) if raised else (lines or [""])[-1]
    said = re.sub(r"failed at \S+/", "failed at ", said)
    return said[:300] or f"exit status {result.returncode}"


class Lab:
    def __init__(self, program, tokens, store, commit, model, precision, text_name, text, size_name, size, folder):
        self.program, self.tokens, self.model, self.precision = program, tokens, model, precision
        self.text_name, self.text = text_name, text
        self.size_name, self.size = size_name, size
        self._store, self._commit, self._folder = store, commit, folder
        self.progress = Progress()
        self.trained_window = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"]
        self.failures = []

    @cached_property
    def text_ids(self):
        return self.tokens.encode(self.text[:max(self.size.stream_tokens, 40_000) * 5])

    def haystack(self, kind):
        return Haystack(kind, self.text)

    @staticmethod
    def usual_haystack(task):
        return "filler" if task.endswith("passkey") or task == "stream_questions" else "prose"

    # --- Cells ------------------------------------------------------------------------------------------------------

    def _cell(self, what, name, settings, run):
        """The stored result of `settings`, or that of `run()`, which is then stored. A failure is a result as well."""
        settings = {"what": what, "commit": self._commit, "precision": self.precision, **settings}
        result = self._store.get(settings)
        if result is not None:
            self.progress.say(f"{what} of {name}: known")
        else:
            begin = time.monotonic()
            try:
                result = run()
            except (carousel.Failure, subprocess.TimeoutExpired) as failure:
                result = {"error": str(failure)}
            self._store.put(settings, result)
            self.progress.say(f"{what} of {name}: {result.get('error') or f'{time.monotonic() - begin:.0f} s'}")
        if "error" in result:
            self.failures.append(f"{self.progress.where}{what} of {name}: {result['error']}")
        return result

    def _evaluate(self, tasks, flags, logits=None):
        return self.program.evaluate(tasks, flags, logits)

    def run_cases(self, name, cases, flags):
        """{"turns": {case id: [turn's line]}} of the program."""
        tasks = carousel.task_lines(cases)

        def run():
            lines = self._evaluate(tasks, flags)
            turns = {}
            for line in lines[:-1]:
                turns.setdefault(line["id"], []).append(
                    {key: line.get(key) for key in ("text", "token_ids", "prompt_tokens", "peak_cache_bytes",
                                                "peak_recall_bytes", "cache_bytes", "evicted_tokens",
                                                "decode_seconds", "prompt_seconds")})
            return {"turns": turns}

        return self._cell("tasks", name, {"tasks": digest(tasks), "flags": list(map(str, flags))}, run)

    def run_greedy(self, name, prompts, tokens, flags):
        tasks = [{"id": i, "raw": True, "turns": [{"prompt": ids, "max_new_tokens": tokens}]}
                 for i, ids in enumerate(prompts)]

        def run():
            return {"ids": [line["token_ids"] for line in self._evaluate(tasks, flags)[:-1]]}

        return self._cell("greedy text", name, {"tasks": digest(tasks), "flags": list(map(str, flags))}, run)

    @staticmethod
    def _forced_tasks(prompts, forced):
        return [{"id": i, "raw": True, "turns": [{"prompt": ids, "score": score}]}
                for i, (ids, score) in enumerate(zip(prompts, forced))]

    def reference_rows(self, prompts, forced, flags):
        """A file of the whole cache's log-probabilities: NumPy's format, [prompts, tokens, vocabulary]."""
        tasks = self._forced_tasks(prompts, forced)
        path = self._folder / "rows" / f"{digest([tasks, list(map(str, flags)), self._commit, self.precision])}.npy"
        if not path.exists():
            self.progress.say("distributions of the whole cache")
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.with_suffix(".f32")
            summary = self._evaluate(tasks, flags, raw)[-1]
            rows = carousel.rows_of(raw, summary["vocabulary_size"])
            part = path.with_suffix(".part.npy")
            numpy.save(part, rows.reshape(len(prompts), len(forced[0]), -1))
            part.rename(path)
            raw.unlink()
        return path

    def run_closeness(self, name, prompts, forced, flags, reference):
        tasks = self._forced_tasks(prompts, forced)

        def run():
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                raw = Path(folder) / "rows"
                lines = self._evaluate(tasks, flags, raw)
                rows = carousel.rows_of(raw, lines[-1]["vocabulary_size"])
                whole = numpy.load(reference, mmap_mode="r")
                pairs = [(whole[i], rows[line["logits_row"]:line["logits_row"] + len(line["token_ids"])])
                         for i, line in enumerate(lines[:-1])]
                return {"kl": [metrics.kl_divergence(*pair).tolist() for pair in pairs],
                        "top1": [metrics.top1_agreement(*pair).tolist() for pair in pairs],
                        "nll": [line["nll"] for line in lines[:-1]],
                        "peak_cache_bytes": max(line["peak_cache_bytes"] for line in lines[:-1])}

        return self._cell("closeness", name, {"tasks": digest(tasks), "flags": list(map(str, flags)),
                                              "reference": reference.name}, run)

    def run_stream(self, name, ids, flags):
        """Every token's negative log-likelihood but the first one's."""
        tasks = [{"id": 0, "raw": True, "turns": [{"prompt": ids, "score_prompt": True, "max_new_tokens": 0}]}]

        def run():
            line = self._evaluate(tasks, flags)[0]
            return {"nll": [round(value, 5) for value in line["prompt_nll"]],
                    "peak_cache_bytes": line["peak_cache_bytes"]}

        return self._cell("stream", name, {"tasks": digest(tasks), "flags": list(map(str, flags))}, run)

    def run_afresh(self, windows, scored):
        """Each window read from an empty cache without eviction; the likelihoods of its last `scored` tokens."""
        tasks = [{"id": i, "raw": True, "turns": [{"prompt": ids, "score_prompt": True, "max_new_tokens": 0}]}
                 for i, ids in enumerate(windows)]
        flags = ["--no-eviction", "--chunk", CHUNK, "--block-size", BLOCK]

        def run():
            return {"nll": [line["prompt_nll"][-scored:] for line in self._evaluate(tasks, flags)[:-1]]}

        settings = {"tasks": digest(tasks), "flags": flags}
        return self._cell("recomputing", f"{len(windows)} windows", settings, run)["nll"]

    def decode_seconds(self, name, ids, tokens, flags):
        """Per token, the median of three answers after one prompt. Timing: the machine should do nothing else."""
        turns = [{"prompt": ids[:-3], "max_new_tokens": 1}]
        turns += [{"prompt": [token], "score": ids[-tokens - 10:-10]} for token in ids[-3:]]
        tasks = [{"id": 0, "raw": True, "turns": turns}]

        def run():
            lines = self._evaluate(tasks, flags)[1:-1]
            return {"seconds": [line["decode_seconds"] / (len(line["token_ids"]) - 1) for line in lines]}

        result = self._cell("decoding", name, {"tasks": digest(tasks), "flags": list(map(str, flags))}, run)
        return float(numpy.median(result["seconds"]))

    # --- openvino.genai, a process per cell -------------------------------------------------------------------------

    def _run_rival(self, job):
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job | {"folder": folder, "model": str(self.model)}))
            result = subprocess.run([sys.executable, "-m", "quality.rival", str(path)], capture_output=True, text=True,
                                    cwd=Path(__file__).resolve().parents[1], timeout=RIVAL_PATIENCE_SECONDS,
                                    check=False)
        lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        if result.returncode != 0 or len(lines) != len(job["prompts"]):
            raise carousel.Failure(last_words(result))
        return lines

    def _rival_job(self, setting, budget, recent):
        told, crushed = rival.limits(setting, budget, START, recent, BLOCK)
        return {"setting": setting, "told": told, "kvcrush_blocks": crushed, "start": START, "recent": recent,
                "chunk": CHUNK, "block": BLOCK, "precision": self.precision}

    def run_genai_cases(self, setting, cases, budget, recent):
        """As run_cases. For every judged turn the conversation is read anew, with the answers that all are given."""
        prompts, owners = [], []
        for case in cases:
            for index in case.judged:
                prompts.append(self.tokens.encode(self._conversation(case, index)))
                owners.append((case, index))
        job = self._rival_job(setting, budget, recent)
        job |= {"prompts": prompts, "max_new_tokens": [case.turns[i].max_new_tokens for case, i in owners]}

        def run():
            turns = {case.id: [{"peak_cache_bytes": 0, "cache_bytes": 0} for _ in case.turns] for case in cases}
            for (case, index), line in zip(owners, self._run_rival(job)):
                text = self.tokens.decode(line["token_ids"])
                turns[case.id][index] = {"text": text, "token_ids": line["token_ids"],
                                         "peak_cache_bytes": line["peak_cache_bytes"],
                                         "cache_bytes": line["cache_bytes"],
                                         "prompt_tokens": line["prompt_tokens"]}
            return {"turns": turns}

        return self._cell("tasks", setting, {"job": digest(job)}, run)

    @staticmethod
    def _conversation(case, index):
        return "".join(turn.prompt + turn.said for turn in case.turns[:index]) + case.turns[index].prompt

    def run_genai_greedy(self, setting, prompts, tokens, budget, recent):
        job = self._rival_job(setting, budget, recent) | {"prompts": prompts, "max_new_tokens": [tokens] * len(prompts)}

        def run():
            return {"ids": [line["token_ids"] for line in self._run_rival(job)]}

        return self._cell("greedy text", setting, {"job": digest(job)}, run)

    def run_genai_closeness(self, setting, prompts, forced, budget, recent, reference):
        job = self._rival_job(setting, budget, recent)
        job |= {"prompts": prompts, "forced": forced, "reference": str(reference)}

        def run():
            lines = self._run_rival(job)
            return {"kl": [line["kl"] for line in lines], "top1": [line["top1"] for line in lines],
                    "peak_cache_bytes": max(line["peak_cache_bytes"] for line in lines)}

        return self._cell("closeness", setting, {"job": digest(job | {"reference": reference.name})}, run)
