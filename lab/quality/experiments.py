# SPDX-License-Identifier: Apache-2.0
"""What is measured, by name. Each experiment is a function of the lab and gives a section of the report."""

from quality import eviction_experiments as eviction
from quality import recall_experiments as recall

EXPERIMENTS = {
    "rivals": eviction.rivals,
    "budgets": eviction.budgets,
    "groups": eviction.groups,
    "positions": eviction.positions,
    "stream100k": eviction.stream100k,
    "recall": recall.recall,
    "later-turns": recall.later_turns,
    "decode-cost": recall.decode_cost,
}
