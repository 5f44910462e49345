# SPDX-License-Identifier: Apache-2.0
"""What eviction does: policies, budgets, positions and streams, beside openvino.genai."""

import math

import numpy

from quality import statistics
from quality.comparison import Closeness, Comparison, Section, mean
from quality.settings import (BLOCK, CHUNK, GENAI, POLICIES, RECALLED_BLOCKS, START, WHOLE, alone, budgets_of, capped,
                              recent_size)


def rivals(lab):
    """Our default and openvino.genai's evictions on the same tokens and budgets."""
    size = lab.size
    section = Section("rivals", "Carousel and openvino.genai at the same budgets")
    section.text.append(
        "The same IR, token ids and most tokens kept (openvino.genai exceeds the limit that it is told, by up to a "
        "block less one token and by all blocks that KVCrush chooses, so it is told less); f16 caches on both sides. "
        "openvino.genai evicts only after the whole prompt has been read, so its peak holds the prompt; ours, unless "
        "\"at_end\" is said, never holds more than the budget and a chunk, and what recall stores, which is shown "
        "beside it. \"Default\" attends to what it recalls as well; \"equal attention\" takes that out of what is "
        "resident; \"equal bytes\" holds half of the budget and spends the other half's bytes on the second tier; "
        "\"at_end\" reads the whole prompt before it chooses, as openvino.genai does, by the same rule but head by "
        "head, and recalls nothing: the same bytes at every moment. \"int8\" and \"u8\" hold in codes of 8 bits what fits "
        "the bytes of that many tokens in f16. openvino.genai's divergences come out of its own "
        "engine (lab/quality/rival.py says how). Paired over prompts: bootstrap intervals (95 %), McNemar's exact "
        "test for answers that are right or wrong.")
    tasks = {"quick": ("passkey", "needle"), "normal": ("passkey", "needle", "key_value"),
             "full": ("passkey", "needle", "multikey", "key_value", "copy")}[lab.size_name]
    settings = GENAI if lab.size_name == "full" else GENAI[:1] + GENAI[2:4]
    for share, budget in budgets_of(size.length, (4, 8) if lab.size_name != "quick" else (8,)).items():
        at = f"{budget} of {size.length} tokens (1/{share})"
        found = Comparison(lab, tasks, size.length, size.cases)
        close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
        found.carousel("whole cache", WHOLE)
        ours = our_arms(budget, lab.program.cache_bytes_per_token)
        for name, flags in ours.items():
            found.carousel(name, flags)
            close.carousel(name, flags)
        for setting in settings:
            found.genai(setting, budget)
            close.genai(setting, budget)
        if share == 4:
            close.add_greedy(ours, settings[:1], budget)
        if lab.size_name != "quick":
            add_codes(found, close, budget)
        theirs = [name for name in settings if name in found.arms and name in close.arms]
        if theirs:
            best = min(theirs, key=lambda name: mean(close.kl(name)))
            section.answers += [
                f"At {at}, {name}: KL {mean(close.kl(name)):.3f} against {mean(close.kl(best)):.3f} of {best}, found "
                + ", ".join(f"{mean(found.arms[name][task]):.2f} against at most "
                            f"{max(mean(found.arms[other][task]) for other in theirs):.2f} of {task}" for task in tasks)
                + f"; the cache at its peak and in the end {found.memory(name)} against {found.memory(best)} MB."
                for name in ours if name in close.arms and name in found.arms]
        section.tables += [found.table(f"Found, {at}"), close.table(f"Closeness, {at}")]
        for name in ours:
            section.tables += [found.differences(f"{name} against openvino.genai, {at}", name, theirs),
                               close.differences(f"{name} against openvino.genai, {at}", name, theirs)]
        for name in OUR_CODES:
            if name in found.arms and THEIR_CODES in found.arms:
                section.tables += [found.differences(f"{name} against {THEIR_CODES}, {at}", name, [THEIR_CODES]),
                                   close.differences(f"{name} against {THEIR_CODES}, {at}", name, [THEIR_CODES])]
    return section


# How many bytes a head of 64 has in f16, in our int8 (a scale a token) and in openvino.genai's u8 (and a zero point).
HALF_BYTES, INT8_BYTES, U8_BYTES = 128, 68, 72
OUR_CODES, THEIR_CODES = ("default, int8", "at_end, int8"), "genai snapkv u8"
AT_END = ("--prompt-eviction", "at_end", "--policy", "snapkv", "--snapkv-window", 32, "--eviction-groups", "head")


def add_codes(found, close, budget):
    """Caches of 8-bit codes in the bytes of `budget` tokens in f16."""
    ours = budget * HALF_BYTES // INT8_BYTES // BLOCK * BLOCK
    theirs = budget * HALF_BYTES // U8_BYTES // BLOCK * BLOCK
    codes = ("--kv-type-k", "int8", "--kv-type-v", "int8")
    for name, flags in zip(OUR_CODES, (capped(ours, *codes), alone(ours, *codes, *AT_END))):
        found.carousel(name, flags)
        close.carousel(name, flags)
    found.genai(THEIR_CODES, theirs)
    close.genai(THEIR_CODES, theirs)


def our_arms(budget, bytes_per_token):
    """Flags by name: the default, and what is left of it when something is made equal or taken away."""
    arms = {"default": capped(budget)}
    shared = RECALLED_BLOCKS // 2 * BLOCK
    if budget - shared >= START + 3 * BLOCK:
        arms["equal attention"] = capped(budget - shared, "--recall-blocks", RECALLED_BLOCKS // 2)
    half = budget // 2 // BLOCK * BLOCK
    if half >= START + 3 * BLOCK:
        arms["equal bytes"] = capped(half, "--recall-limit", (budget - half) * bytes_per_token)
    arms["without recall"] = alone(budget)
    arms["at_end"] = alone(budget, *AT_END)
    return arms


def budgets(lab):
    """Every policy at every budget, nothing recalled."""
    size = lab.size
    section = Section("budgets", "Policies and budgets")
    shares = (8,) if lab.size_name == "quick" else (2, 4, 8, 16)
    policies = POLICIES if lab.size_name != "quick" else (POLICIES[0], "window", "random")
    tasks = {"quick": ("passkey", "needle"), "normal": ("passkey", "needle"),
             "full": ("passkey", "needle", "multikey", "multivalue", "multiquery", "key_value", "copy",
                      "stream_questions")}[lab.size_name]
    curves = {}
    for share, budget in budgets_of(size.length, shares).items():
        at = f"{budget} of {size.length} tokens (1/{share})"
        found = Comparison(lab, tasks, size.length, size.policy_cases)
        close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
        found.carousel("whole cache", WHOLE)
        for policy in policies:
            flags = alone(budget, "--policy", policy)
            found.carousel(policy, flags)
            close.carousel(policy, flags)
            if policy in close.arms:
                curves.setdefault(policy, []).append((budget, mean(close.kl(policy))))
        if lab.size_name != "quick":
            crushed = (budget - START - recent_size(budget)) // BLOCK // 2
            flags = alone(budget, "--policy", "snapkv", "--kvcrush-budget", crushed)
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
    """Budgets that differ per layer and per KV head, at equal bytes, nothing recalled."""
    size = lab.size
    section = Section("groups", "Budgets per layer and per KV head")
    budget = budgets_of(size.length, (8,))[8]
    found = Comparison(lab, ("passkey", "needle", "key_value"), size.length, size.cases)
    close = Closeness(lab, size.length, size.closeness_prompts, size.forced_tokens)
    found.carousel("whole cache", WHOLE)
    arms = {"uniform": (), "uniform per head": ("--eviction-groups", "head"),
            "pyramid": ("--budget", "pyramid", "--budget-slope", 2),
            "adaptive": ("--budget", "adaptive", "--eviction-groups", "head")}
    for name, flags in arms.items():
        found.carousel(name, alone(budget, *flags))
        close.carousel(name, alone(budget, *flags))
    at = f"{budget} of {size.length} tokens (1/8)"
    others = list(arms)[1:]
    section.tables += [found.table(f"Found, {at}"), close.table(f"Closeness, {at}")]
    for name in others:
        section.tables += [found.differences(f"{name} against uniform", name, ["uniform"]),
                           close.differences(f"{name} against uniform", name, ["uniform"])]
    return section


def positions(lab):
    """Rotation and position rules, inside the trained window and past it; cache types. Nothing recalled."""
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
        result = lab.run_stream(name, ids, alone(512, *flags))
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
    """An endless stream against reading the same start and recent window from scratch."""
    size = lab.size
    budget, segment = 512, 4096
    ids = lab.text_ids[:size.stream_tokens]
    section = Section("stream100k", f"A stream of {len(ids):,} tokens in a cache of {budget}")
    every = 4 if lab.size_name == "quick" else 1  # half of the places leave 2 % of noise in a segment
    places = [begin for begin in range(2 * CHUNK, len(ids) - CHUNK + 1, CHUNK) if begin // CHUNK % every == 0]
    kept = budget - START
    afresh = lab.run_afresh([ids[:START] + ids[begin - kept:begin + CHUNK] for begin in places], CHUNK)
    section.text.append(
        f"Recomputing: the first {START} tokens, the {kept} before a place and the {CHUNK} after it are read from an "
        f"empty cache without eviction; the {CHUNK} are scored, which in the stream are one step that sees just "
        f"as many tokens before it. {len(places)} places. A ratio above 1.02 in any segment of {segment:,} tokens "
        "would break the claim.")
    # The window keeps what is recomputed: nothing between the start and the recent tokens.
    arms = {"default": capped(budget), "without recall": alone(budget),
            "window": ["--start-size", START, "--recent-size", budget - START - BLOCK, "--max-cache-size", budget,
                       "--chunk", CHUNK, "--block-size", BLOCK, "--policy", "window", "--recall-blocks", 0]}
    curves, rows = {}, []
    for name, flags in arms.items():
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
