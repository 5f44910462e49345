#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Instructions that the kernels execute on fixed inputs, against what was stored.

Each case of tests/counts/kernel_counts.cc runs under Callgrind on the AVX2 code (Callgrind knows no AVX-512), in one
thread. The counts repeat to the last digit for the same compiler, so a change of more than the tolerance comes from
the sources. Fewer instructions fail as well as more: stored counts that lie too high would hide the next regression.

    tools/kernel_counts.py build/core-only/tests/counts/kernel_counts [--update]
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STORED = Path(__file__).resolve().parent.parent / "tests" / "counts" / "counts.json"
TARGET = "AVX2"
TOLERANCE = 0.02
UPDATE = "./run counts --update"


class Failure(Exception):
    """What keeps the counts from being taken."""


def compiler():
    """The compiler's own line: counts of another one cannot be compared."""
    return subprocess.run(["g++", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[0]


def count(program, case):
    """Instructions inside CountedKernel."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=CountedKernel"]
        command += [f"--callgrind-out-file={folder}/out", str(program), case]
        environment = {**os.environ, "CAROUSEL_FORCE_TARGET": TARGET}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise Failure(f"{case}: {result.stderr.strip()[-500:]}")
    collected = re.search(r"Collected : (\d+)", result.stderr)
    if collected is None or int(collected[1]) == 0:
        raise Failure(f"{case}: Callgrind counted nothing; is the program built with its symbols?")
    return int(collected[1])


def count_all(program):
    names = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(names, pool.map(lambda name: count(program, name), names)))


def compare(stored, counts, tolerance=TOLERANCE):
    """Complaints, one per case that moved, came or went."""
    complaints = []
    for name in sorted(set(stored) | set(counts)):
        if name not in counts:
            complaints.append(f"{name}: stored, but there is no such case any more")
        elif name not in stored:
            complaints.append(f"{name}: {counts[name]:,} instructions, and none stored")
        elif abs(change := counts[name] / stored[name] - 1) > tolerance:
            word = "more" if change > 0 else "fewer"
            complaints.append(f"{name}: {counts[name]:,} instructions, {abs(change):.1%} {word} than the {stored[name]:,} stored")
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="the built kernel_counts")
    parser.add_argument("--update", action="store_true", help="store the counts instead of comparing them")
    parser.add_argument("--stored", type=Path, default=STORED, help="the file of stored counts")
    arguments = parser.parse_args()
    try:
        counts = count_all(arguments.program.resolve())
    except (Failure, OSError, subprocess.CalledProcessError) as failure:
        sys.exit(f"kernel_counts: {failure}")
    if arguments.update:
        stored = {"compiler": compiler(), "target": TARGET, "instructions": counts}
        arguments.stored.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
        print(f"kernel_counts: stored {len(counts)} counts in {arguments.stored}")
        return 0
    stored = json.loads(arguments.stored.read_text(encoding="utf-8"))
    if stored["compiler"] != compiler():
        print(f"kernel_counts: not compared: the counts are those of {stored['compiler']}, and this is {compiler()}; "
              f"{UPDATE} on the new compiler, from sources that are known to be good, makes them comparable")
        return 0
    complaints = compare(stored["instructions"], counts)
    for complaint in complaints:
        print(f"kernel_counts: {complaint}", file=sys.stderr)
    if complaints:
        print(f"kernel_counts: when the change is meant (look at carousel bench attention first), {UPDATE} and commit "
              f"{arguments.stored.name}", file=sys.stderr)
        return 1
    print(f"kernel_counts: {len(counts)} cases within {TOLERANCE:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
