# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests for figures that were taken on the same prompts under different settings."""

import math

import numpy

CONFIDENCE = 0.95
RESAMPLES = 10000


def bootstrap_interval(values, seed=1, resamples=RESAMPLES, confidence=CONFIDENCE):
    """The percentile bootstrap's interval of the mean (Efron 1979): least and most."""
    values = numpy.asarray(values, dtype=float)
    if len(values) == 0:
        return math.nan, math.nan
    draws = numpy.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    means = values[draws].mean(axis=1)
    tail = (1 - confidence) / 2
    return float(numpy.quantile(means, tail)), float(numpy.quantile(means, 1 - tail))


def paired_difference(ours, theirs, **options):
    """Mean of ours - theirs, prompt by prompt, and its paired bootstrap interval."""
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} figures are no pairs")
    differences = numpy.asarray(ours, dtype=float) - numpy.asarray(theirs, dtype=float)
    mean = float(differences.mean()) if len(differences) else math.nan
    return mean, *bootstrap_interval(differences, **options)


def mcnemar(ours, theirs):
    """The exact two-sided p of McNemar's test (1947): that as many prompts were won as lost by chance."""
    wins = sum(1 for a, b in zip(ours, theirs, strict=True) if a > b)
    losses = sum(1 for a, b in zip(ours, theirs, strict=True) if a < b)
    decided = wins + losses
    tail = sum(math.comb(decided, i) for i in range(min(wins, losses) + 1)) / 2**decided
    return min(1.0, 2 * tail)


def wilson_interval(successes, trials, z=1.959963984540054):
    """The score interval of a share (Wilson 1927), which also holds where all or none succeed."""
    if trials == 0:
        return math.nan, math.nan
    share = successes / trials
    scale = 1 / (1 + z * z / trials)
    middle = scale * (share + z * z / (2 * trials))
    half = scale * z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)
