# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import random
import unittest

from quality import statistics


def slow_bootstrap_means(values):
    """Every resample there is, each as likely as the others."""
    return sorted(sum(draw) / len(values) for draw in itertools.product(values, repeat=len(values)))


class Bootstrap(unittest.TestCase):
    def test_is_that_of_all_resamples(self):
        values = [0.1, 0.9, 0.35, 0.6, 0.2]
        means = slow_bootstrap_means(values)
        low, high = statistics.bootstrap_interval(values, resamples=200_000)
        self.assertAlmostEqual(low, means[int(0.025 * len(means))], delta=0.01)
        self.assertAlmostEqual(high, means[int(0.975 * len(means))], delta=0.01)

    def test_equal_figures_have_no_width(self):
        self.assertEqual(statistics.bootstrap_interval([0.4] * 9), (0.4, 0.4))

    def test_a_seed_repeats_it(self):
        chance = random.Random(3)
        values = [chance.random() for _ in range(20)]
        self.assertEqual(statistics.bootstrap_interval(values), statistics.bootstrap_interval(values))
        self.assertNotEqual(statistics.bootstrap_interval(values, seed=2), statistics.bootstrap_interval(values))

    def test_pairs_are_narrower_than_what_they_differ_from(self):
        chance = random.Random(5)
        theirs = [chance.uniform(0, 10) for _ in range(30)]
        ours = [value + 0.5 + chance.uniform(-0.1, 0.1) for value in theirs]
        mean, low, high = statistics.paired_difference(ours, theirs)
        self.assertAlmostEqual(mean, 0.5, delta=0.05)
        self.assertTrue(0.4 < low <= mean <= high < 0.6)
        with self.assertRaises(ValueError):
            statistics.paired_difference([1], [1, 2])


class McNemar(unittest.TestCase):
    def slow(self, wins, losses):
        """The share of all signs of the decided pairs that are as uneven as these."""
        decided = wins + losses
        signs = list(itertools.product((0, 1), repeat=decided))
        return sum(abs(2 * sum(sign) - decided) >= abs(wins - losses) for sign in signs) / len(signs)

    def test_is_that_of_all_signs(self):
        for wins, losses in itertools.product(range(6), range(6)):
            ours = [1] * wins + [0] * losses + [1, 0]
            theirs = [0] * wins + [1] * losses + [1, 0]
            self.assertAlmostEqual(statistics.mcnemar(ours, theirs), self.slow(wins, losses) if wins + losses else 1,
                                   msg=(wins, losses))


class Wilson(unittest.TestCase):
    def test_ends_are_where_the_score_test_turns(self):
        """Each end is a share whose own standard error puts what was seen 1.96 of them away."""
        for successes, trials in ((0, 10), (3, 10), (10, 10), (47, 60)):
            for end in statistics.wilson_interval(successes, trials):
                if not 1e-9 < end < 1 - 1e-9:
                    continue
                error = math.sqrt(end * (1 - end) / trials)
                self.assertAlmostEqual(abs(successes / trials - end) / error, 1.96, places=3)

    def test_nothing_tried(self):
        self.assertTrue(math.isnan(statistics.wilson_interval(0, 0)[0]))
