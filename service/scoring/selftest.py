"""What a model catches of its own valid rows, spoilt in known ways: the result of `service.scoring.selftesting`."""

from __future__ import annotations

import math

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


class SelfTest(Frozen):
    """What each of some rules catches of spoilt rows at a rate of false alarms, and how many valid rows it refuses."""

    false_alarm: float
    rules: tuple[str, ...]
    rows: int
    alarms: tuple[float, ...]
    caught: tuple[Caught, ...]


def mean_difference(before: SelfTest, after: SelfTest) -> tuple[float, float]:
    """How much more of spoilt rows a version catches than another, by the last rule of each, and its standard error.

    It is the mean over the ways of spoiling that both were tested with; (0, 0) if there are none.
    """
    old = {one.spoil: one for one in before.caught}
    pairs = [(old[one.spoil], one) for one in after.caught if one.spoil in old]
    if not pairs:
        return 0.0, 0.0
    changes = [new.shares[-1] - one.shares[-1] for one, new in pairs]
    # A share of 0 or 1 has an error, too: the one that half a row more would give (Agresti and Coull, 1998, in spirit).
    variances = [spread(one) + spread(new) for one, new in pairs]
    return sum(changes) / len(pairs), math.sqrt(sum(variances)) / len(pairs)


def spread(caught: Caught) -> float:
    """The variance of a share that was caught."""
    share = (caught.shares[-1] * caught.rows + 0.5) / (caught.rows + 1)
    return share * (1.0 - share) / caught.rows
