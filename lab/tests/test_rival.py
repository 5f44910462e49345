# SPDX-License-Identifier: Apache-2.0
import unittest

import numpy
import openvino
from openvino import opset13 as op

from quality import metrics, rival

VOCABULARY, TOKENS, FIRST = 40, 5, (7, 20)


def log_softmax(rows):
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - numpy.log(numpy.exp(rows).sum(axis=-1, keepdims=True))


def table_model(logits):
    """Gives row p of `logits` at position p: a language model as far as the tail can see."""
    positions = op.parameter([-1, -1], numpy.int64, name="position_ids")
    positions.output(0).tensor.set_names({"position_ids"})
    rows = op.gather(op.constant(logits.astype(numpy.float32)), positions, op.constant(0))
    return openvino.Model([op.result(rows)], [positions], "table")


class Limits(unittest.TestCase):
    def test_what_is_kept_fits_the_budget(self):
        # Measured: it keeps its limit's blocks and one, and KVCrush's on top.
        for budget in (256, 512, 672):
            for setting in ("genai snapkv", "genai kvcrush"):
                told, crushed = rival.limits(setting, budget, 32, 64, 32)
                self.assertEqual(told + 32 + 32 * crushed, budget)
                self.assertGreater(told, 32 + 64)
                self.assertEqual(crushed > 0, setting == "genai kvcrush")


class Tail(unittest.TestCase):
    def setUp(self):
        chance = numpy.random.default_rng(4)
        self.logits = chance.normal(size=(30, VOCABULARY)) * 2
        self.forced = chance.integers(VOCABULARY, size=(len(FIRST), TOKENS))
        here = numpy.stack([self.logits[first:first + TOKENS] for first in FIRST])
        # One prompt's reference is what the model says, the other's is not.
        self.reference = log_softmax(numpy.stack([here[0], here[1] + chance.normal(size=here[1].shape)]))
        self.here = log_softmax(here)

    def test_forces_the_tokens_and_tells_the_divergence(self):
        model = rival.add_tail(table_model(self.logits), list(FIRST), self.forced, self.reference)
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for index, first in enumerate(FIRST):
            told = compiled([numpy.arange(first, first + TOKENS)[None]])[0]
            self.assertEqual(told.shape, (1, TOKENS, VOCABULARY))
            told = log_softmax(told[0].astype(float))
            self.assertEqual(told.argmax(axis=1).tolist(), self.forced[index].tolist())
            divergences = metrics.kl_divergence(self.reference[index], self.here[index])
            agreement = metrics.top1_agreement(self.reference[index], self.here[index])
            for place, token in enumerate(self.forced[index]):
                divergence, agrees = rival.from_logprob(told[place, token])
                self.assertAlmostEqual(divergence, divergences[place], delta=1e-4)
                self.assertEqual(agrees, agreement[place])
        self.assertLess(metrics.kl_divergence(self.reference[0], self.here[0]).max(), 1e-9)
        self.assertGreater(divergences.min(), 0.01)
