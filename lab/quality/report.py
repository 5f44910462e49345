# SPDX-License-Identifier: Apache-2.0
"""Sections as one HTML page with plots beside it."""

import html
import math
import re

STYLE = """body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0 2em}caption{text-align:left;font-weight:bold;padding:.3em 0}
td,th{border-bottom:1px solid #ddd;padding:.25em .8em;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}img{max-width:100%}.note{color:#555}"""


def table_html(table):
    head = "".join(f"<th>{html.escape(str(column))}</th>" for column in table["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
                   for row in table["rows"])
    return f"<table><caption>{html.escape(table['title'])}</caption><tr>{head}</tr>{rows}</table>"


def table_text(table):
    """Markdown."""
    lines = [f"**{table['title']}**", "", "| " + " | ".join(map(str, table["columns"])) + " |",
             "| " + " | ".join("---" for _ in table["columns"]) + " |"]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table["rows"]]
    return "\n".join(lines) + "\n"


def draw(plot, path):
    """False where there is nothing to draw, or nothing to draw with."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    series = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in plot["series"].items()}
    if not any(series.values()):
        return False
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for name, points in series.items():
        axes.plot(*zip(*points), marker="o", markersize=3, label=name)
    if "line" in plot:
        axes.axhline(plot["line"], color="grey", linestyle="--")
    if plot.get("log"):
        axes.set_yscale("log")
    axes.set(title=plot["title"], xlabel=plot["x"], ylabel=plot["y"])
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def write(sections, header, failures, folder):
    """report.html, report.md and the plots."""
    page = [f"<!doctype html><meta charset=utf-8><title>Carousel's lab</title><style>{STYLE}</style>",
            "<h1>What a cache that forgets does to the model</h1>", f"<p class=note>{html.escape(header)}</p>"]
    text = ["# What a cache that forgets does to the model", "", header, ""]
    answers = [f"{section.title}: {answer}" for section in sections for answer in section.answers]
    page.append("<h2>In short</h2><ul>" + "".join(f"<li>{html.escape(a)}</li>" for a in answers) + "</ul>")
    text += ["## In short", "", *(f"- {answer}" for answer in answers), ""]
    for section in sections:
        page.append(f"<h2 id={section.name}>{html.escape(section.title)}</h2>")
        text += [f"## {section.title}", ""]
        for paragraph in section.text:
            page.append(f"<p>{html.escape(paragraph)}</p>")
            text += [paragraph, ""]
        for table in section.tables:
            page.append(table_html(table))
            text += [table_text(table), ""]
        for number, plot in enumerate(section.plots):
            name = re.sub(r"[^a-z0-9]+", "-", f"{section.name} {plot['title']}".lower()) + f"-{number}.png"
            if draw(plot, folder / name):
                page.append(f"<img src={name} alt=\"{html.escape(plot['title'])}\">")
    if failures:
        page.append("<h2>What failed</h2><ul>" + "".join(f"<li>{html.escape(f)}</li>" for f in failures) + "</ul>")
        text += ["## What failed", "", *(f"- {failure}" for failure in failures)]
    (folder / "report.html").write_text("\n".join(page), encoding="utf-8")
    (folder / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
