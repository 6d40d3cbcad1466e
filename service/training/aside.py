"""Rows that are kept aside: those that test the model, and those that choose the weights of its statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.data.inputs import InputSpec
from service.scoring.groups import Terms
from service.scoring.selftest import LEAST_ROWS
from service.scoring.weighing import LEAST_HELD_BACK
from service.training.recipe import Split

MOST_TESTING, MOST_WEIGHING = 400, 300
SHARE_OF_CALIBRATION = 0.25  # for each, of the rows beyond those that the combined rule needs
SHARE_OF_VALIDATION = 0.33
USUAL_CALIBRATION = 299  # rows for the usual rate of the rule combined of tables, 0.01


@dataclass(frozen=True, slots=True)
class Aside:
    """Rows that neither train nor calibrate: some test the model, others choose weights; there may be none of either."""

    testing: np.ndarray
    weighing: np.ndarray

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Aside:
        """Apply a function to each part."""
        return Aside(function(self.testing), function(self.weighing))

    def terms(self, terms: Terms, spec: InputSpec) -> Terms:
        """Terms of a calibration with the rows that choose weights, if there are any."""
        if not len(self.weighing):
            return terms
        rows = self.weighing.reshape(len(self.weighing), -1)[:, : spec.features]
        return replace(terms, weighing=spec.rows(rows))


def with_rows_aside(splits: Sequence[Split], least: int) -> tuple[Sequence[Split], Aside]:
    """The splits without the rows that are kept aside, and these.

    They are calibration rows beyond the `least` that are needed or, where there are too few to test with, rows for early
    stopping. With folds there are none, and weights are chosen only where LEAST_HELD_BACK rows were held back.
    """
    split, *others = splits
    nothing = split.calibration[:0]
    if others:
        return splits, Aside(nothing, nothing)
    rows = split.calibration
    if len(rows) >= USUAL_CALIBRATION:
        least = max(least, USUAL_CALIBRATION)
    spare = int(SHARE_OF_CALIBRATION * max(0, len(rows) - least))
    testing, weighing = min(MOST_TESTING, spare), min(MOST_WEIGHING, spare)
    if len(rows) < LEAST_HELD_BACK:
        weighing = 0
    if testing >= LEAST_ROWS:
        kept, chosen, tested = np.split(rows, [len(rows) - testing - weighing, len(rows) - testing])
        return [replace(split, calibration=kept)], Aside(tested, chosen)
    some = int(SHARE_OF_VALIDATION * len(split.validation))
    if split.pilot is None and some >= LEAST_ROWS:
        return [replace(split, validation=split.validation[:-some])], Aside(split.validation[-some:], nothing)
    return splits, Aside(nothing, nothing)
