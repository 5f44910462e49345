# SPDX-License-Identifier: Apache-2.0
"""How close one run is to another, and how good an answer is."""

import numpy


def kl_divergence(reference, other):
    """Sum of p * (log p - log q) for each row, in nats; both are log-probabilities [rows, vocabulary]."""
    reference = numpy.asarray(reference, dtype=float)
    other = numpy.asarray(other, dtype=float)
    with numpy.errstate(invalid="ignore"):
        terms = numpy.exp(reference) * (reference - other)
    return numpy.where(numpy.isneginf(reference), 0.0, terms).sum(axis=1)


def top1_agreement(reference, other):
    """Whether the likeliest token is the same, for each row."""
    return numpy.argmax(reference, axis=1) == numpy.argmax(other, axis=1)


def first_divergence(reference, other):
    """How many tokens are equal before the first that is not; None where one is a beginning of the other."""
    for place, (a, b) in enumerate(zip(reference, other)):
        if a != b:
            return place
    return None if len(reference) == len(other) else min(len(reference), len(other))


def diverging_tokens(reference, other):
    """How many places hold different tokens; places that only one text has count as different."""
    shared = sum(a == b for a, b in zip(reference, other))
    return max(len(reference), len(other)) - shared


def found(text, answers):
    """The share of `answers` that stand in `text` (as RULER counts, Hsieh et al. 2024)."""
    text = text.lower()
    return sum(answer.lower() in text for answer in answers) / len(answers)
