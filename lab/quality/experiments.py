# SPDX-License-Identifier: Apache-2.0
"""What is measured. Each experiment is a function of the lab and gives a section of the report."""

import math
from dataclasses import dataclass, field

import numpy

from quality import metrics, statistics
from quality.tasks import generate

START, BLOCK, CHUNK = 32, 32, 256
RECALLED_BLOCKS = 8  # of 32 tokens: 256
LOW_CEILING = 0.5  # below it a task says little: the whole cache itself fails

POLICIES = ("snapkv", "h2o", "tova", "keynorm", "keydiff", "adaptive_rkv", "expected_attention", "window", "random")
GENAI = ("genai snapkv", "genai snapkv sum", "genai kvcrush", "genai adaptive-rkv", "genai snapkv rotated")


@dataclass
class Section:
    name: str
    title: str
    text: list = field(default_factory=list)
    tables: list = field(default_factory=list)  # {"title", "columns", "rows"}
    plots: list = field(default_factory=list)  # {"title", "kind", "series", "x", "y"}
    answers: list = field(default_factory=list)  # sentences with figures, for the report's beginning


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    cases: int  # of each task
    policy_cases: int  # the same where every policy is run
    length: int
    closeness_prompts: int
    forced_tokens: int
    stream_tokens: int
    long_cases: int  # at 16,384 tokens
    longest_cases: int  # at 65,536 tokens; 0: not at all


SIZES = {
    "quick": Size(3, 3, 1024, 2, 16, 12288, 0, 0),
    "normal": Size(8, 5, 2048, 6, 32, 100_000, 5, 3),
    "full": Size(30, 20, 4096, 24, 64, 100_000, 20, 10),
}


def recent_size(budget):
    """A quarter of the cache, in whole blocks, as far as 128 tokens: openvino.genai's default share and limit."""
    return min(128, max(BLOCK, budget // 4 // BLOCK * BLOCK))


def capped(budget, *more):
    return ["--start-size", START, "--recent-size", recent_size(budget), "--max-cache-size", budget,
            "--block-size", BLOCK, "--chunk", CHUNK, *more]


WHOLE = ["--no-eviction", "--block-size", BLOCK, "--chunk", CHUNK]
RECALL = ["--recall-blocks", RECALLED_BLOCKS]


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
        self.peaks = {}  # name: bytes of the cache
        self.stores = {}  # name: bytes of what recall keeps beside it
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
        self.stores[name] = max(turn.get("peak_recall_bytes") or 0 for lines in turns.values() for turn in lines)

    def memory(self, name):
        store = f" + {self.stores[name] / 1e6:.1f} stored" if self.stores[name] else ""
        return f"{self.peaks[name] / 1e6:.1f}{store}"

    def table(self, title, ceiling="whole cache"):
        rows = []
        for name, scores in self.arms.items():
            rows.append([name, *(score_cell(scores[task]) for task in self.cases), self.memory(name)])
        for name, reason in self.failures.items():
            rows.append([name, *["failed"] * len(self.cases), reason[:90]])
        columns = ["", *self.cases, "peak cache, MB"]
        if ceiling in self.arms:
            low = [task for task in self.cases if mean(self.arms[ceiling][task]) < LOW_CEILING]
            columns = ["", *(f"{task} (ceiling too low to tell)" if task in low else task for task in self.cases),
                       "peak cache, MB"]
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


def budgets_of(length, shares):
    """Tokens by share of the length; at least the start, two recent blocks and two to choose from."""
    return {share: max(length // share // BLOCK * BLOCK, START + 4 * BLOCK) for share in shares}


def rivals(lab):
    """Must-show 2: our default and openvino.genai's evictions on the same tokens and budgets."""
    size = lab.size
    section = Section("rivals", "Carousel and openvino.genai at the same budgets")
    section.text.append(
        "The same IR, token ids and most tokens kept (openvino.genai is told a block less, because it exceeds its "
        "limit by up to a block less one token); f16 caches on both sides. openvino.genai evicts only after the whole "
        "prompt has been read, so its peak holds the prompt; \"capped\" never holds more than the budget and a "
        "chunk. Its divergences come out of its own engine (lab/quality/rival.py says how). Paired over prompts: "
        "bootstrap intervals (95 %), McNemar's exact test for answers that are right or wrong.")
    tasks = ("passkey", "needle") if size.cases < 20 else ("passkey", "needle", "multikey", "key_value", "copy")
    settings = GENAI if lab.size_name == "full" else GENAI[:1] + GENAI[2:4]
    for share, budget in budgets_of(size.length, (4, 8) if lab.size_name != "quick" else (8,)).items():
        at = f"{budget} of {size.length} tokens (1/{share})"
        found = Comparison(lab, tasks, size.length, size.cases)
        close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
        found.carousel("whole cache", WHOLE)
        ours = {"default, capped": capped(budget), "default, at_end": capped(budget, "--prompt-eviction", "at_end")}
        if lab.program.knows("--recall-blocks"):
            ours["default, capped, recall"] = capped(budget, *RECALL)
            # As many tokens in all: what is recalled comes out of what is resident.
            if budget - RECALLED_BLOCKS // 2 * BLOCK >= START + 3 * BLOCK:
                ours["capped, recall, equal attention"] = capped(budget - RECALLED_BLOCKS // 2 * BLOCK,
                                                  "--recall-blocks", RECALLED_BLOCKS // 2)
        for name, flags in ours.items():
            found.carousel(name, flags)
            close.carousel(name, flags)
        for setting in settings:
            found.genai(setting, budget)
            close.genai(setting, budget)
        if share == 4:
            close.add_greedy(ours, settings[:1], budget)
        theirs = [name for name in settings if name in found.arms and name in close.arms]
        if theirs:
            best = min(theirs, key=lambda name: mean(close.kl(name)))
            section.answers += [
                f"At {at}, {name}: KL {mean(close.kl(name)):.3f} against {mean(close.kl(best)):.3f} of {best}, found "
                + ", ".join(f"{mean(found.arms[name][task]):.2f} against at most "
                            f"{max(mean(found.arms[other][task]) for other in theirs):.2f} of {task}" for task in tasks)
                + f"; peak {found.memory(name)} against {found.memory(best)} MB."
                for name in ours if name in close.arms and name in found.arms]
        section.tables += [found.table(f"Found, {at}"), close.table(f"Closeness, {at}")]
        for name in ours:
            section.tables += [found.differences(f"{name} against openvino.genai, {at}", name, theirs),
                               close.differences(f"{name} against openvino.genai, {at}", name, theirs)]
    return section


def budgets(lab):
    """Every policy at every budget."""
    size = lab.size
    section = Section("budgets", "Policies and budgets")
    shares = {"quick": (8,), "normal": (4, 8), "full": (2, 4, 8, 16)}[lab.size_name]
    policies = POLICIES if lab.size_name != "quick" else ("snapkv", "window", "random")
    if not lab.program.knows("--policy"):
        policies = ("snapkv",)
    tasks = ("passkey", "needle") if size.cases < 20 else (
        "passkey", "needle", "multikey", "multivalue", "multiquery", "key_value", "copy", "stream_questions")
    curves = {}
    for share, budget in budgets_of(size.length, shares).items():
        at = f"{budget} of {size.length} tokens (1/{share})"
        found = Comparison(lab, tasks, size.length, size.policy_cases)
        close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
        found.carousel("whole cache", WHOLE)
        for policy in policies:
            flags = capped(budget, *(("--policy", policy) if lab.program.knows("--policy") else ()))
            found.carousel(policy, flags)
            close.carousel(policy, flags)
            if policy in close.arms:
                curves.setdefault(policy, []).append((budget, mean(close.kl(policy))))
        if lab.program.knows("--kvcrush-budget") and lab.size_name != "quick":
            flags = capped(budget, "--kvcrush-budget", (budget - START - recent_size(budget)) // BLOCK // 2)
            found.carousel("snapkv + kvcrush", flags)
            close.carousel("snapkv + kvcrush", flags)
        ranked = sorted(((mean(close.kl(name)), name) for name in close.arms))
        section.answers.append(f"At {at}, from the closest to the whole cache: " + ", ".join(
            f"{name} {kl:.3f} nats (found {mean([mean(found.arms[name][task]) for task in tasks]):.2f})"
            for kl, name in ranked if name in found.arms) + ".")
        section.tables += [found.table(f"Found, capped at {at}"), close.table(f"Closeness, capped at {at}"),
                           close.differences(f"The default against the others, {at}", policies[0], policies[1:])]
    section.plots.append({"title": "KL from the whole cache", "x": "tokens kept", "y": "nats", "series": curves,
                          "log": True})
    return section


def groups(lab):
    """Must-show 6: budgets that differ per layer and per KV head, at equal bytes."""
    size = lab.size
    section = Section("groups", "Budgets per layer and per KV head")
    if not lab.program.knows("--budget "):
        section.text.append("This program has no --budget.")
        return section
    budget = budgets_of(size.length, (8,))[8]
    found = Comparison(lab, ("passkey", "needle", "key_value"), size.length, size.cases)
    close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
    found.carousel("whole cache", WHOLE)
    arms = {"uniform": (), "uniform per head": ("--eviction-groups", "head"), "pyramid": ("--budget", "pyramid"),
            "adaptive": ("--budget", "adaptive", "--eviction-groups", "head")}
    for name, flags in arms.items():
        found.carousel(name, capped(budget, *flags))
        close.carousel(name, capped(budget, *flags))
    at = f"{budget} of {size.length} tokens (1/8)"
    others = list(arms)[1:]
    section.tables += [found.table(f"Found, {at}"), close.table(f"Closeness, {at}")]
    for name in others:
        section.tables += [found.differences(f"{name} against uniform", name, ["uniform"]),
                           close.differences(f"{name} against uniform", name, ["uniform"])]
    return section


def positions(lab):
    """Rotation and position rules, inside the trained window and past it; cache types."""
    section = Section("positions", "Rotation, positions and cache types")
    length = {"quick": 10240, "normal": 16384, "full": 32768}[lab.size_name]
    segment = 2048
    ids = lab.text_ids[:length]
    arms = {"query, auto": ("--rotation", "query", "--positions", "auto"),
            "query, compact": ("--rotation", "query", "--positions", "compact"),
            "keys, compact": ("--rotation", "keys", "--positions", "compact"),
            "off, keep": ("--rotation", "off", "--positions", "keep"),
            "query, compact, int8": ("--positions", "compact", "--kv-type-k", "int8", "--kv-type-v", "int8"),
            "query, compact, int4": ("--positions", "compact", "--kv-type-k", "int4", "--kv-type-v", "int4"),
            "keys, compact, int8": ("--rotation", "keys", "--positions", "compact", "--kv-type-k", "int8",
                                    "--kv-type-v", "int8")}
    if lab.size_name == "quick":
        arms = {name: arms[name] for name in ("query, auto", "query, compact", "off, keep")}
    curves, rows = {}, []
    trained = lab.trained_window
    for name, flags in arms.items():
        result = lab.run_stream(name, ids, capped(512, *flags))
        if "error" in result:
            rows.append([name, "failed", result["error"][:90], ""])
            continue
        nll = numpy.array([math.nan, *result["nll"]])
        inside, past = nll[1:trained], nll[trained:]
        curves[name] = [(begin + segment, float(numpy.exp(numpy.nanmean(nll[begin:begin + segment]))))
                        for begin in range(0, length, segment)]
        rows.append([name, f"{math.exp(inside.mean()):.2f}", f"{math.exp(past.mean()):.2f}",
                     f"{result['peak_cache_bytes'] / 1e6:.1f}"])
        section.answers.append(f"{name}: perplexity {rows[-1][1]} inside the trained window, {rows[-1][2]} past it.")
    section.tables.append({"title": f"Perplexity of {lab.text_name}, {length:,} tokens, 512 kept",
                           "columns": ["rotation, positions", f"inside {trained:,}", f"past {trained:,}",
                                       "peak cache, MB"], "rows": rows})
    section.plots.append({"title": "Perplexity by segment", "x": "tokens", "y": "perplexity", "series": curves,
                          "log": True})
    return section


def stream100k(lab):
    """Must-show 3: an endless stream against reading the same start and recent window from scratch."""
    size = lab.size
    budget, segment = 512, 4096
    ids = lab.text_ids[:size.stream_tokens]
    section = Section("stream100k", f"A stream of {len(ids):,} tokens in a cache of {budget}")
    every = {"quick": 4, "normal": 4, "full": 1}[lab.size_name]
    places = [begin for begin in range(2 * CHUNK, len(ids) - CHUNK + 1, CHUNK) if begin // CHUNK % every == 0]
    kept = budget - START
    afresh = lab.run_afresh([ids[:START] + ids[begin - kept:begin + CHUNK] for begin in places], CHUNK)
    section.text.append(
        f"Recomputing: the first {START} tokens, the {kept} before a place and the {CHUNK} after it are read from an "
        f"empty cache without eviction; the {CHUNK} are scored, which in the stream are one step that sees just "
        f"as many tokens before it. {len(places)} places. A ratio above 1.02 in any segment of {segment:,} tokens "
        "would break the claim.")
    arms = {"default": ()}
    if lab.program.knows("--policy"):
        arms["window"] = ("--policy", "window")
    curves, rows = {}, []
    for name, flags in arms.items():
        # The window keeps what is recomputed: nothing between the start and the recent tokens.
        flags = (["--start-size", START, "--recent-size", budget - START - BLOCK, "--max-cache-size", budget,
                  "--chunk", CHUNK, "--block-size", BLOCK, *flags] if name == "window" else capped(budget, *flags))
        result = lab.run_stream(name, ids, flags)
        if "error" in result:
            rows.append([name, "failed", result["error"][:90], "", ""])
            continue
        nll = numpy.array([math.nan, *result["nll"]])
        ratios = []
        for begin in range(0, len(ids), segment):
            inside = [(place, values) for place, values in zip(places, afresh) if begin <= place < begin + segment]
            if not inside:
                continue
            stream = mean([nll[place:place + CHUNK].mean() for place, _ in inside])
            ratios.append((begin + segment, math.exp(stream - mean([mean(values) for _, values in inside]))))
        differences = [mean(values) - nll[place:place + CHUNK].mean() for place, values in zip(places, afresh)]
        curves[name] = ratios
        low, high = statistics.bootstrap_interval(differences)
        rows.append([name, f"{math.exp(numpy.nanmean(nll)):.2f}", f"{max(ratio for _, ratio in ratios):.4f}",
                     f"{math.exp(-mean(differences)):.4f} [{math.exp(-high):.4f}, {math.exp(-low):.4f}]",
                     f"{result['peak_cache_bytes'] / 1e6:.1f}"])
        section.answers.append(f"A stream of {len(ids):,} tokens, {name}: the worst segment's perplexity is "
                               f"{max(ratio for _, ratio in ratios):.4f} times that of recomputing.")
    section.tables.append({"title": "Stream against recomputing",
                           "columns": ["", "perplexity of all", "worst segment's ratio",
                                       "ratio over all places, bootstrap 95 %", "peak cache, MB"], "rows": rows})
    section.plots.append({"title": "Perplexity over that of recomputing", "x": "tokens", "y": "ratio",
                          "series": curves, "line": 1.02})
    return section


def recall(lab):
    """Must-show 4: what was forgotten comes back."""
    size = lab.size
    section = Section("recall", "Recall: 512 tokens resident, 256 recalled")
    if not lab.program.knows("--recall-blocks"):
        section.text.append("This program has no --recall-blocks.")
        return section
    short = Comparison(lab, ("passkey", "needle"), 4096 if lab.size_name != "quick" else 1536, size.cases)
    short.carousel("whole cache", WHOLE)
    short.carousel("recall", capped(512, *RECALL))
    short.carousel("eviction alone", capped(512))
    section.answers += [f"{short.length:,} tokens, {name}: found " + ", ".join(
        f"{mean(scores[task]):.2f} of {task}" for task in short.cases) + "." for name, scores in short.arms.items()]
    section.tables += [short.table(f"Found, {short.length:,} tokens"),
                       short.differences("Paired", "recall", ["whole cache", "eviction alone"])]
    for length, cases in ((16384, size.long_cases), (65536, size.longest_cases)):
        if not cases:
            continue
        found = Comparison(lab, ("passkey",), length, cases)
        found.carousel("recall", capped(512, *RECALL))
        if length == 16384 and lab.size_name != "quick":
            found.carousel("eviction alone", capped(512))
        section.tables.append(found.table(f"Found, {length:,} tokens"))
        section.answers += [f"{length:,} tokens, {name}: found {mean(scores['passkey']):.2f} of passkey."
                            for name, scores in found.arms.items()]
    return section


def decode_cost(lab):
    """Must-show 4's second half. Needs the machine for itself."""
    section = Section("decode-cost", "What recall costs a decoded token")
    if not lab.program.knows("--recall-blocks"):
        section.text.append("This program has no --recall-blocks.")
        return section
    lengths = {"quick": (4096,), "normal": (16384, 65536), "full": (4096, 16384, 65536)}[lab.size_name]
    tokens, rows = 64, []
    for length in lengths:
        ids = (lab.text_ids * (length // len(lab.text_ids) + 1))[:length + 512]
        seconds = {}
        for name, flags in {"without": (), "with": RECALL}.items():
            seconds[name] = lab.decode_seconds(f"{name} recall", ids, tokens, capped(512, *flags))
        rows.append([f"{length:,}", f"{seconds['without'] * 1e3:.2f}", f"{seconds['with'] * 1e3:.2f}",
                     f"{seconds['with'] / seconds['without']:.3f}"])
    section.tables.append({"title": f"Median of 3 times {tokens} tokens, 512 resident, 256 recalled",
                           "columns": ["tokens in the store", "ms per token without", "with", "ratio"], "rows": rows})
    return section


def later_turns(lab):
    """Must-show 5: asked for in a later turn, after eviction has run."""
    size = lab.size
    section = Section("later-turns", "Questions in later turns")
    section.text.append(
        "The prompt, three unrelated turns, then the question. \"at_end\" chooses once, by the attention of the first "
        "turn's question, as openvino.genai's SnapKV does. openvino.genai itself keeps no cache from turn to turn "
        "under eviction (prefix caching with eviction fails), so it reads the conversation anew for each question and then "
        "chooses by that question: its row has the conversation so far as one prompt, and holds all of it at its peak.")
    with_recall = lab.program.knows("--recall-blocks")
    for length, cases in ((4096 if lab.size_name != "quick" else 1536, size.cases), (16384, size.long_cases)):
        if not cases:
            continue
        found = Comparison(lab, ("later_passkey",), length, cases)
        if length <= lab.trained_window // 2:
            found.carousel("whole cache", WHOLE)
        if with_recall:
            found.carousel("recall", capped(512, *RECALL))
        found.carousel("eviction alone", capped(512))
        found.carousel("at_end", capped(512, "--prompt-eviction", "at_end"))
        if length <= lab.trained_window // 2:
            found.genai("genai snapkv", 512)
        section.tables.append(found.table(f"Found, {length:,} tokens in the first turn, 512 kept"))
        section.answers += [f"Asked in a later turn, {length:,} tokens, {name}: found "
                            f"{mean(scores['later_passkey']):.2f}." for name, scores in found.arms.items()]
        if with_recall:
            section.tables.append(found.differences("Paired", "recall", ["whole cache", "eviction alone", "at_end"]))
    harder = Comparison(lab, ("tenkeys", "later_needles"), 4096 if lab.size_name != "quick" else 1536, size.cases)
    harder.carousel("whole cache", WHOLE)
    if with_recall:
        harder.carousel("recall", capped(512, *RECALL))
    harder.carousel("eviction alone", capped(512))
    section.tables.append(harder.table(f"Harder, {harder.length:,} tokens"))
    if with_recall:
        section.tables.append(harder.differences("Paired", "recall", ["whole cache"]))
    return section


EXPERIMENTS = {
    "rivals": rivals,
    "budgets": budgets,
    "groups": groups,
    "positions": positions,
    "stream100k": stream100k,
    "recall": recall,
    "later-turns": later_turns,
    "decode-cost": decode_cost,
}
