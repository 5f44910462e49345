# SPDX-License-Identifier: Apache-2.0
"""The lab's command line; `./run lab` starts it with everything in place."""

import argparse
import sys
from pathlib import Path

from quality import report
from quality.carousel import Failure, Program
from quality.experiments import EXPERIMENTS
from quality.lab import Lab
from quality.settings import SIZES
from quality.store import Store, commit_of, digest
from quality.text import Tokens, default_text

ROOT = Path(__file__).resolve().parents[2]


def arguments_of(words):
    parser = argparse.ArgumentParser(prog="./run lab", description=(
        "Measures what a cache that forgets does to the model, and writes report.html, report.md and plots. Finished "
        "cells are kept by settings and commit: a run that was stopped goes on where it was."))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="all experiments, small: minutes")
    size.add_argument("--full", action="store_true", help="all experiments, large: hours")
    parser.add_argument("--only", help=f"these experiments, with commas between: {', '.join(EXPERIMENTS)}")
    parser.add_argument("--text", type=Path, help="what streams and prose are taken from (default: what is installed)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2-135m-instruct")
    parser.add_argument("--precision", choices=("f32", "int8"), default="f32",
                        help="of activations, in all engines: int8 rounds them where weights are, and is faster")
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "release" / "apps" / "cli" / "carousel")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "lab", help="default: build/lab")
    arguments = parser.parse_args(words)
    arguments.only = arguments.only.split(",") if arguments.only else list(EXPERIMENTS)
    for name in arguments.only:
        if name not in EXPERIMENTS:
            parser.error(f"--only: {name} is none of {', '.join(EXPERIMENTS)}")
    return arguments


def main():
    arguments = arguments_of(sys.argv[1:])
    size_name = "quick" if arguments.quick else "full" if arguments.full else "normal"
    name, text = (str(arguments.text), arguments.text.read_text(encoding="utf-8")) if arguments.text else default_text()
    import openvino

    libraries = Path(openvino.__file__).resolve().parent / "libs"
    model = arguments.model.resolve()
    commit = commit_of(ROOT, arguments.program)
    lab = Lab(program=Program(arguments.program.resolve(), libraries, model, arguments.precision), tokens=Tokens(model),
              store=Store(arguments.out / "results.jsonl"), commit=commit, model=model, precision=arguments.precision,
              text_name=name, text=text, size_name=size_name, size=SIZES[size_name], folder=arguments.out.resolve())
    sections = []
    for number, experiment in enumerate(arguments.only, 1):
        lab.progress.where = f"[{number}/{len(arguments.only)} {experiment}] "
        try:
            sections.append(EXPERIMENTS[experiment](lab))
        except (Failure, KeyError) as failure:
            lab.failures.append(f"{experiment}: {failure!r}")
            lab.progress.say(f"failed: {failure!r}")
    header = (f"Commit {commit}; model {model.name}; activations {arguments.precision}; size {size_name}: {lab.size}; "
              f"text: {name} ({digest(text.encode())}).")
    report.write(sections, header, lab.failures, arguments.out)
    print((arguments.out / "report.md").read_text(encoding="utf-8"))
    print(f"The report: {arguments.out / 'report.html'}")
    return 1 if lab.failures and not sections else 0


if __name__ == "__main__":
    sys.exit(main())
