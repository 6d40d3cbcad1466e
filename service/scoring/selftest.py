"""What a model catches of its own valid rows, spoilt in known ways: the result of `service.scoring.selftesting`."""

from __future__ import annotations

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


def difference(before: SelfTest, after: SelfTest) -> tuple[float, str]:
    """How much more of spoilt rows a version catches than another, by the last rule of each, and where it falls most.

    Both were tested with the same rows and ways of spoiling, at the same rate: the mean over the ways.
    """
    old = {one.spoil: one.shares[-1] for one in before.caught}
    changes = {one.spoil: one.shares[-1] - old[one.spoil] for one in after.caught}
    worst = min(changes, key=lambda spoil: changes[spoil])
    return sum(changes.values()) / len(changes), f"{worst}, {100 * changes[worst]:+.1f} points"
