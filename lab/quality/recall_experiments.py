# SPDX-License-Identifier: Apache-2.0
"""What recall brings back, and what it costs."""

from quality.comparison import Comparison, Section, mean
from quality.settings import WHOLE, alone, recalling


def recall(lab):
    """What was forgotten comes back."""
    size = lab.size
    section = Section("recall", "Recall: 512 tokens resident, 256 recalled")
    short = Comparison(lab, ("passkey", "needle"), 4096 if lab.size_name != "quick" else 1536, size.recall_cases)
    short.carousel("whole cache", WHOLE)
    short.carousel("recall", recalling(512))
    short.carousel("eviction alone", alone(512))
    section.answers += [f"{short.length:,} tokens, {name}: found " + ", ".join(
        f"{mean(scores[task]):.2f} of {task}" for task in short.cases) + "." for name, scores in short.arms.items()]
    section.tables += [short.table(f"Found, {short.length:,} tokens"),
                       short.differences("Paired", "recall", ["whole cache", "eviction alone"])]
    for length, cases in ((16384, size.long_cases), (65536, size.longest_cases)):
        if not cases:
            continue
        found = Comparison(lab, ("passkey",), length, cases)
        found.carousel("recall", recalling(512))
        if lab.size_name == "full" and length == 16384:
            found.carousel("eviction alone", alone(512))
        section.tables.append(found.table(f"Found, {length:,} tokens"))
        section.answers += [f"{length:,} tokens, {name}: found {mean(scores['passkey']):.2f} of passkey."
                            for name, scores in found.arms.items()]
    return section


def decode_cost(lab):
    """Needs the machine for itself."""
    section = Section("decode-cost", "What recall costs a decoded token")
    lengths = {"quick": (4096,), "normal": (16384, 65536), "full": (4096, 16384, 65536)}[lab.size_name]
    tokens, rows = 64, []
    for length in lengths:
        ids = (lab.text_ids * (length // len(lab.text_ids) + 1))[:length + 512]
        seconds = {name: lab.decode_seconds(f"{name} recall", ids, tokens, flags)
                   for name, flags in {"without": alone(512), "with": recalling(512)}.items()}
        rows.append([f"{length:,}", f"{seconds['without'] * 1e3:.2f}", f"{seconds['with'] * 1e3:.2f}",
                     f"{seconds['with'] / seconds['without']:.3f}"])
    section.tables.append({"title": f"Median of 3 times {tokens} tokens, 512 resident, 256 recalled",
                           "columns": ["tokens in the store", "ms per token without", "with", "ratio"], "rows": rows})
    return section


def later_turns(lab):
    """Asked for in a later turn, after eviction has run."""
    size = lab.size
    section = Section("later-turns", "Questions in later turns")
    section.text.append(
        "The prompt, three unrelated turns, then the question; the turns in between have the same answers for all. "
        "\"at_end\" chooses once, by the attention of the first turn's question, as openvino.genai's SnapKV does. "
        "openvino.genai itself keeps no cache from turn to turn under eviction (prefix caching with eviction fails), "
        "so it reads the conversation anew for each question and then chooses by that question: its row has the "
        "conversation so far as one prompt, and holds all of it at its peak.")
    for length, cases in ((4096 if lab.size_name != "quick" else 1536, size.recall_cases), (16384, size.long_cases)):
        if not cases:
            continue
        found = Comparison(lab, ("later_passkey",), length, cases)
        if length <= lab.trained_window // 2:
            found.carousel("whole cache", WHOLE)
        found.carousel("recall", recalling(512))
        found.carousel("eviction alone", alone(512))
        if lab.size_name == "full" or length < 16384:
            found.carousel("at_end", alone(512, "--prompt-eviction", "at_end", "--policy", "snapkv"))
        if length <= lab.trained_window // 2:
            found.genai("genai snapkv", 512)
        section.tables.append(found.table(f"Found, {length:,} tokens in the first turn, 512 kept"))
        section.answers += [f"Asked in a later turn, {length:,} tokens, {name}: found "
                            f"{mean(scores['later_passkey']):.2f}." for name, scores in found.arms.items()]
        section.tables.append(found.differences("Paired", "recall", ["whole cache", "eviction alone", "at_end"]))
    harder = Comparison(lab, ("tenkeys", "later_needles"), 4096 if lab.size_name != "quick" else 1536,
                        size.recall_cases // 2 or 1)
    harder.carousel("whole cache", WHOLE)
    harder.carousel("recall", recalling(512))
    harder.carousel("recall, keep", recalling(512, "--positions", "keep"))
    harder.carousel("eviction alone", alone(512))
    section.tables += [harder.table(f"Harder, {harder.length:,} tokens"),
                       *(harder.differences(f"Paired, {name}", name, ["whole cache"])
                         for name in ("recall", "recall, keep"))]
    return section
