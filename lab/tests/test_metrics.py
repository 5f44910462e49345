# SPDX-License-Identifier: Apache-2.0
import math
import unittest

import numpy

from quality import metrics, rival


def log_softmax(rows):
    rows = numpy.asarray(rows, dtype=float)
    return rows - numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))


class Divergence(unittest.TestCase):
    def setUp(self):
        chance = numpy.random.default_rng(1)
        self.p = log_softmax(chance.normal(size=(4, 50)) * 3)
        self.q = log_softmax(chance.normal(size=(4, 50)) * 3)

    def test_of_equals_is_0(self):
        self.assertEqual(metrics.kl_divergence(self.p, self.p).tolist(), [0.0] * 4)
        self.assertTrue(metrics.top1_agreement(self.p, self.p).all())

    def test_is_the_plain_sum(self):
        for row in range(4):
            plain = sum(math.exp(p) * (p - q) for p, q in zip(self.p[row], self.q[row]))
            self.assertAlmostEqual(metrics.kl_divergence(self.p, self.q)[row], plain, places=12)
            self.assertGreater(plain, 0)

    def test_what_cannot_be_counts_nothing(self):
        p = numpy.log([[0.5, 0.5, 1e-300]])
        p[0, 2] = -numpy.inf
        self.assertAlmostEqual(metrics.kl_divergence(p, numpy.log([[0.25, 0.5, 0.25]]))[0], 0.5 * math.log(2))


class GreedyText(unittest.TestCase):
    def test_first_and_number_of_differences(self):
        for a, b, first, number in (([1, 2, 3], [1, 2, 3], None, 0), ([1, 2, 3], [1, 9, 3], 1, 1),
                                    ([1, 2, 3], [1, 2], 2, 1), ([], [4], 0, 1), ([5, 6], [6, 5], 0, 2)):
            self.assertEqual(metrics.first_divergence(a, b), first)
            self.assertEqual(metrics.diverging_tokens(a, b), number)

    def test_found(self):
        self.assertEqual(metrics.found("It is 12345, or 678.", ["12345"]), 1)
        self.assertEqual(metrics.found("It is 12345, or 678.", ["12345", "999"]), 0.5)
        self.assertEqual(metrics.found("BADGER fox", ["badger", "fox"]), 1)


class RivalsTail(unittest.TestCase):
    def test_packing_comes_back(self):
        for divergence in (0.0, 1e-4, 0.3, 2.0, 15.0):
            for agrees in (True, False):
                value = rival.packed(divergence, agrees)
                self.assertTrue(0 <= value < 1)
                # What the tail does with it, in the engine's float32.
                second = numpy.float32(math.log(rival.SCALE * value))
                logprob = numpy.float32(-numpy.log1p(numpy.exp(second)))
                back, agreed = rival.from_logprob(float(logprob))
                self.assertEqual(agreed, agrees)
                self.assertAlmostEqual(back, divergence, delta=4e-6 * (1 + divergence) ** 2)
