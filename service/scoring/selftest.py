"""What a model catches of its own valid rows, spoilt in known ways: the result of `service.scoring.selftesting`."""

from __future__ import annotations

import math

import numpy as np

from service.system.frozen import Frozen

LEAST_ROWS = 10  # of a kind of spoil


class Caught(Frozen):
    """The share of rows, spoilt in one way, that each rule calls invalid: `shares` in the order of `SelfTest.rules`.

    `columns` says, of the spoils that change one column, how many rows were spoilt in each, and how many the last of the
    rules caught.
    """

    spoil: str
    rows: int
    shares: tuple[float, ...]
    columns: dict[str, tuple[int, int]] = {}

    def std_error(self, rule: int = -1) -> float:
        """Of a rule's share."""
        share = self.shares[rule]
        return math.sqrt(max(share * (1.0 - share), 0.25 / self.rows) / self.rows)


class SelfTest(Frozen):
    """What each of some rules catches of spoilt rows at a rate of false alarms, and how many valid rows it refuses."""

    false_alarm: float
    rules: tuple[str, ...]
    rows: int
    alarms: tuple[float, ...]
    caught: tuple[Caught, ...]

    def mean(self, rule: int = -1) -> float:
        """The mean share that a rule catches, over the kinds of spoils."""
        return float(np.mean([one.shares[rule] for one in self.caught]))
