#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the README's picture: perplexity and memory along a stream, and speed beside other engines.

What is drawn is stored beside the picture, with the commands, the commit and the machine: docs/picture/stream.json, which
--measure makes anew (some minutes; neither figure depends on what else the machine does), and docs/picture/speed.json,
whose figures come from lab/compare_engines.py on a quiet machine. The picture is plain SVG that follows the reader's
dark or light scheme.

    ./run picture
    ./run picture --measure
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "picture"
TEXT = "build/demo/pydoc_topics.txt"  # ./run demo and ./run picture write it
TOKENS, SEGMENT, TRAINED_WINDOW = 16384, 1024, 8192
SIZES = ["--start-size", "32", "--recent-size", "256", "--max-cache-size", "512"]
# What is compared: a name, the class that colours it, flags.
STREAMS = (
    ("Carousel", "ours", SIZES),
    ("the same without rotation", "control", SIZES + ["--rotation", "off", "--positions", "keep"]),
)

STYLE = """
  text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328 }
  .title { font-size: 14px; font-weight: 600 }
  .faint { fill: #59636e }
  .paper { fill: #ffffff }
  .grid { stroke: #d8dee4; stroke-width: 1 }
  .edge { stroke: #59636e; stroke-width: 1; stroke-dasharray: 3 3 }
  .line { fill: none; stroke-width: 2.5; stroke-linejoin: round }
  .ours { stroke: #0969da } .control { stroke: #bc4c00 }
  .bar { stroke: none; fill: #818b98 } .bar.ours { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .faint { fill: #9198a1 } .paper { fill: #0d1117 }
    .grid { stroke: #2f353d } .edge { stroke: #9198a1 }
    .ours { stroke: #58a6ff } .control { stroke: #f0883e }
    .bar { fill: #7d8590 } .bar.ours { fill: #58a6ff }
  }"""


# --- Drawing -------------------------------------------------------------------------------------------------------


class Panel:
    """A plot's place on the page, [left, right] by [top, bottom], and its scales."""

    def __init__(self, left, right, top, bottom, x_most, y_least, y_most, logarithmic):
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self.x_most, self.y_least, self.y_most = x_most, y_least, y_most
        self.logarithmic = logarithmic

    def x(self, value):
        return round(self.left + (self.right - self.left) * value / self.x_most, 1)

    def y(self, value):
        low, high, at = self.y_least, self.y_most, min(max(value, self.y_least), self.y_most)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return round(self.bottom - (self.bottom - self.top) * (at - low) / (high - low), 1)


def text(x, y, words, kind="", anchor="start"):
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{named} text-anchor="{anchor}">{escape(words)}</text>'


def line(x1, y1, x2, y2, kind):
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{kind}"/>'


def plot(panel, title, runs, figure, marks):
    """A curve for each run, over the tokens read."""
    parts = [text(panel.left, panel.top - 16, title, "title")]
    for mark in marks:
        y = panel.y(mark)
        parts += [line(panel.left, y, panel.right, y, "grid"), text(panel.left - 6, y + 4, f"{mark:,}", "faint", "end")]
    for tokens in range(0, panel.x_most + 1, 4096):
        parts.append(text(panel.x(tokens), panel.bottom + 18, f"{tokens:,}", "faint", "middle"))
    edge = panel.x(TRAINED_WINDOW)
    parts.append(line(edge, panel.top, edge, panel.bottom, "edge"))
    for run in reversed(runs):  # the first lies on top
        points = " ".join(f"{panel.x(s['tokens'])},{panel.y(s[figure])}" for s in run["segments"])
        parts.append(f'<polyline points="{points}" class="line {run["kind"]}"/>')
    return parts


def bars(left, right, top, title, engines, figure):
    """A bar for each engine, with its number."""
    most = max(engine[figure] for engine in engines)
    names, height = 100, 18
    parts = [text(left, top, title, "title")]
    for i, engine in enumerate(engines):
        y = top + 12 + i * (height + 6)
        width = round((right - left - names - 44) * engine[figure] / most, 1)
        kind = "bar ours" if engine["name"] == "Carousel" else "bar"
        parts += [
            text(left + names - 8, y + 13, engine["name"], "", "end"),
            f'<rect x="{left + names}" y="{y}" width="{width}" height="{height}" class="{kind}"/>',
            text(left + names + width + 6, y + 13, f"{engine[figure]:,}", "faint"),
        ]
    return parts


def powers_of_ten(runs, figure):
    values = [segment[figure] for run in runs for segment in run["segments"]]
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))


def draw(stream, speed):
    """The picture, as SVG."""
    runs, tokens = stream["runs"], stream["tokens"]
    low, high = powers_of_ten(runs, "perplexity")
    top, bottom = 56, 250
    perplexity = Panel(56, 316, top, bottom, tokens, 10**low, 10**high, True)
    most = max(segment["megabytes"] for run in runs for segment in run["segments"])
    step = 200 if most > 500 else 100
    memory = Panel(376, 616, top, bottom, tokens, 0, math.ceil(most / step) * step, False)
    parts = plot(perplexity, "Perplexity: lower is better", runs, "perplexity", [10**i for i in range(low, high + 1)])
    parts += plot(memory, "Memory of the process, MB", runs, "megabytes", range(0, int(memory.y_most) + 1, step))
    for panel in (perplexity, memory):
        parts.append(text((panel.left + panel.right) / 2, bottom + 36, "tokens read", "faint", "middle"))
    x = 56
    for run in runs:
        parts += [line(x, 312, x + 22, 312, f"line {run['kind']}"), text(x + 28, 316, run["name"])]
        x += 48 + 7 * len(run["name"])
    parts += [line(x, 304, x, 320, "edge"), text(x + 8, 316, "end of the window it was trained on")]
    parts += bars(664, 944, top - 16, "Reading, tokens per second", speed["engines"], "prompt_tokens_per_s")
    parts += bars(664, 944, top + 96, "Writing, tokens per second", speed["engines"], "decode_tokens_per_s")
    parts.append(text(664, bottom + 18, "the same model, after a prompt of 2,048 tokens", "faint"))
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 336" width="960" height="336" role="img">',
            "<title>Perplexity and memory along a stream, and speed beside other engines</title>",
            f"<style>{STYLE}\n</style>",
            '<rect class="paper" width="960" height="336" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


# --- Measuring -----------------------------------------------------------------------------------------------------


def commit():
    """Of the sources; what is drawn and written here changes none of the figures."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "src", "include", "apps/cli"], capture_output=True, text=True, check=True
    )
    return head.stdout.strip() + (" with changes" if changed.stdout else "")


def machine():
    facts = {}
    for row in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = row.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags", "").split()
    best = next((name for name in ("avx512_vnni", "avx512f", "avx2") if name in flags), "neither AVX-512 nor AVX2")
    return f"{len(os.sched_getaffinity(0))} cores, {facts.get('model name', 'unknown')}, {best}"


def read_stream(flags):
    """The segments of one run."""
    arguments = ["stream", "--text", TEXT, "--max-tokens", str(TOKENS), "--segment", str(SEGMENT), *flags]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("CAROUSEL_")}
    command = [str(ROOT / "run"), "carousel", *arguments, "--json", "-"]
    result = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"picture: {' '.join(command)} failed: {result.stderr.strip()}")
    lines = [json.loads(row) for row in result.stdout.splitlines()]
    segments = [
        {
            "tokens": row["tokens_end"],
            "perplexity": round(row["ppl"], 2),
            "resident": row["resident_tokens"],
            "megabytes": round(row["rss_bytes"] / 2**20),
        }
        for row in lines
        if row["type"] == "segment"
    ]
    summary = next(row for row in lines if row["type"] == "summary")
    return " ".join(["./run carousel", *arguments]), segments, round(summary["ppl"], 2)


def measure():
    runs = []
    for name, kind, flags in STREAMS:
        print(f"picture: reading {TOKENS:,} tokens: {name}", file=sys.stderr)
        command, segments, perplexity = read_stream(flags)
        runs.append(
            {"name": name, "kind": kind, "command": command, "perplexity_of_all": perplexity, "segments": segments}
        )
    return {"commit": commit(), "machine": machine(), "tokens": TOKENS, "runs": runs}


def stored(data):
    """JSON with a line for each segment, which is better to compare."""
    rows = json.dumps(data, indent=1)
    innermost = re.compile(r"\{[^{}\[\]]*\}")
    return innermost.sub(lambda found: " ".join(found[0].split()), rows) + "\n"


def write(path, words):
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(words, encoding="utf-8")
    part.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="read the streams anew, and store what they gave")
    arguments = parser.parse_args()
    if arguments.measure:
        write(FOLDER / "stream.json", stored(measure()))
    stream, speed = (json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in ("stream", "speed"))
    write(FOLDER / "picture.svg", draw(stream, speed))
    print(f"picture: drew {(FOLDER / 'picture.svg').relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
