# SPDX-License-Identifier: Apache-2.0
"""Arms of an experiment on the same prompts, beside the whole cache, and how their figures are set in tables."""

import math
from dataclasses import dataclass, field

import numpy

from quality import metrics, statistics
from quality.settings import WHOLE, recent_size
from quality.tasks import generate

LOW_CEILING = 0.5  # below it a task says little: the whole cache itself fails


@dataclass
class Section:
    name: str
    title: str
    text: list = field(default_factory=list)
    tables: list = field(default_factory=list)  # {"title", "columns", "rows"}
    plots: list = field(default_factory=list)  # {"title", "kind", "series", "x", "y"}
    answers: list = field(default_factory=list)  # sentences with figures, for the report's beginning


def interval(value, low, high, digits=3):
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def mean(values):
    return float(numpy.mean(values)) if len(values) else math.nan


def score_cell(scores):
    """A share with Wilson's interval where answers are right or wrong, else the bootstrap's."""
    if all(score in (0, 1) for score in scores):
        return interval(mean(scores), *statistics.wilson_interval(sum(scores), len(scores)), digits=2)
    return interval(mean(scores), *statistics.bootstrap_interval(scores), digits=2)


def versus(ours, theirs, digits=2):
    """Ours - theirs by pairs: mean, paired bootstrap interval, McNemar's exact p where answers are right or wrong."""
    text = interval(*statistics.paired_difference(ours, theirs), digits=digits)
    if all(score in (0, 1) for score in [*ours, *theirs]):
        text += f", p = {statistics.mcnemar(ours, theirs):.2g}"
    return text


class Comparison:
    """Arms on the same cases, beside the whole cache."""

    def __init__(self, lab, tasks, length, cases, haystacks=None):
        self.lab = lab
        self.length = length
        haystacks = haystacks or {}
        self.cases = {task: generate(task, cases, length, lab.haystack(haystacks.get(task, lab.usual_haystack(task))),
                                     lab.tokens.count) for task in tasks}
        self.arms = {}  # name: {task: [score of each judged turn]}
        self.peaks = {}  # name: most bytes of the cache
        self.kept = {}  # name: bytes of the cache at the end of an answer
        self.stores = {}  # name: most bytes of what recall keeps beside it
        self.failures = {}

    @property
    def all_cases(self):
        return [case for cases in self.cases.values() for case in cases]

    def carousel(self, name, flags):
        self._add(name, self.lab.run_cases(name, self.all_cases, flags))

    def genai(self, setting, budget):
        self._add(setting, self.lab.run_genai_cases(setting, self.all_cases, budget, recent_size(budget)))

    def _add(self, name, result):
        if "error" in result:
            self.failures[name] = result["error"]
            return
        turns = result["turns"]
        self.arms[name] = {
            task: [metrics.found(turns[case.id][index]["text"], case.turns[index].answers)
                   for case in cases for index in case.judged]
            for task, cases in self.cases.items()}
        self.peaks[name] = max(turn["peak_cache_bytes"] for lines in turns.values() for turn in lines)
        self.kept[name] = max(turn["cache_bytes"] for lines in turns.values() for turn in lines)
        self.stores[name] = max(turn.get("peak_recall_bytes") or 0 for lines in turns.values() for turn in lines)

    def memory(self, name):
        """The most that the cache held and that it holds when an answer ends, and the second tier, in MB."""
        store = f" + {self.stores[name] / 1e6:.1f} stored" if self.stores[name] else ""
        return f"{self.peaks[name] / 1e6:.1f}, {self.kept[name] / 1e6:.1f}{store}"

    def table(self, title, ceiling="whole cache"):
        rows = []
        for name, scores in self.arms.items():
            rows.append([name, *(score_cell(scores[task]) for task in self.cases), self.memory(name)])
        for name, reason in self.failures.items():
            rows.append([name, *["failed"] * len(self.cases), reason[:90]])
        cache = "cache at its peak and in the end, MB"
        columns = ["", *self.cases, cache]
        if ceiling in self.arms:
            low = [task for task in self.cases if mean(self.arms[ceiling][task]) < LOW_CEILING]
            columns = ["", *(f"{task} (ceiling too low to tell)" if task in low else task for task in self.cases),
                       cache]
        return {"title": title, "columns": columns, "rows": rows}

    def differences(self, title, ours, others):
        rows = [[f"{ours} - {other}", *(versus(self.arms[ours][task], self.arms[other][task]) for task in self.cases)]
                for other in others if other in self.arms and ours in self.arms]
        return {"title": title, "columns": ["paired difference", *self.cases], "rows": rows}


class Closeness:
    """Next-token distributions on a forced continuation, and greedy text, beside the whole cache's."""

    def __init__(self, lab, length, prompts, tokens):
        self.lab = lab
        self.tokens = tokens
        ids = lab.text_ids
        if len(ids) < prompts * (length + tokens) // 2:
            raise ValueError("the text is too short")
        stride = (len(ids) - length - (tokens + 1) * (prompts + 1)) // max(prompts, 1)
        # Every length is another, so that a table indexed by position can tell the prompts apart.
        begins = [stride * i for i in range(prompts)]
        lengths = [length + (tokens + 1) * i for i in range(prompts)]
        self.prompts = [ids[b:b + n] for b, n in zip(begins, lengths)]
        self.forced = [ids[b + n:b + n + tokens] for b, n in zip(begins, lengths)]
        self.reference = lab.reference_rows(self.prompts, self.forced, WHOLE)
        self.arms = {}
        self.failures = {}
        self.greedy = {}

    def carousel(self, name, flags):
        self._add(name, self.lab.run_closeness(name, self.prompts, self.forced, flags, self.reference))

    def genai(self, setting, budget):
        self._add(setting, self.lab.run_genai_closeness(setting, self.prompts, self.forced, budget,
                                                        recent_size(budget), self.reference))

    def add_greedy(self, flags_of, settings, budget):
        """Greedy texts of arms that have been added, and the whole cache's to set them beside."""
        for name, flags in {"whole cache": WHOLE, **flags_of}.items():
            self._add_greedy(name, self.lab.run_greedy(name, self.prompts, self.tokens, flags))
        for setting in settings:
            self._add_greedy(setting, self.lab.run_genai_greedy(setting, self.prompts, self.tokens, budget,
                                                                recent_size(budget)))

    def _add_greedy(self, name, result):
        if "ids" in result:
            self.greedy[name] = result["ids"]

    def _add(self, name, result):
        if "error" in result:
            self.failures[name] = result["error"]
        else:
            self.arms[name] = result

    def kl(self, name):
        """Of each prompt: the mean over places after the first, which a cache evicted at the end still sees whole."""
        return [mean(values[1:]) for values in self.arms[name]["kl"]]

    def top1(self, name):
        return [mean(values[1:]) for values in self.arms[name]["top1"]]

    def table(self, title):
        rows = []
        for name in self.arms:
            row = [name, interval(mean(self.kl(name)), *statistics.bootstrap_interval(self.kl(name))),
                   interval(mean(self.top1(name)), *statistics.bootstrap_interval(self.top1(name)), digits=2)]
            if self.greedy:
                row += self._greedy_cells(name)
            rows.append(row)
        rows += [[name, "failed", reason[:90]] for name, reason in self.failures.items()]
        columns = ["", "KL from the whole cache, nats", "same likeliest token"]
        columns += ["greedy: tokens before the first difference", "different tokens"] if self.greedy else []
        return {"title": title, "columns": columns, "rows": rows}

    def _greedy_cells(self, name):
        if name not in self.greedy or "whole cache" not in self.greedy:
            return ["", ""]
        whole = self.greedy["whole cache"]
        firsts = [metrics.first_divergence(a, b) for a, b in zip(whole, self.greedy[name])]
        firsts = [len(a) if first is None else first for first, a in zip(firsts, whole)]
        return [f"{mean(firsts):.1f} of {self.tokens}",
                f"{mean([metrics.diverging_tokens(a, b) for a, b in zip(whole, self.greedy[name])]):.1f}"]

    def differences(self, title, ours, others):
        rows = [[f"{ours} - {other}", versus(self.kl(ours), self.kl(other), digits=3),
                 versus(self.top1(ours), self.top1(other))]
                for other in others if other in self.arms and ours in self.arms]
        return {"title": title, "columns": ["paired difference", "KL, nats", "same likeliest token"], "rows": rows}
