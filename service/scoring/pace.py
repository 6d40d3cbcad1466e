"""The pace of a calibration: what is still to do, how long that takes, and how many rows the time allows.

Rows are scored in blocks of a fixed size, one on each thread, so a step takes as long as its rows rounded up to whole
rounds of blocks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from service.density.estimate import Execution

Step = Literal["few", "some", "known", "suspects", "imputed", "trial", "weighing", "calibration"]
# Typical costs of a row in each step, relative to "suspects": an estimate of log p(x) and of every column.
COSTS: dict[Step, float] = {
    "few": 0.4, "some": 0.7, "known": 0.6, "suspects": 1.0, "imputed": 0.5, "trial": 1.3, "weighing": 1.3,
    "calibration": 1.3,
}  # fmt: skip
ALIKE: tuple[Step, ...] = ("trial", "suspects", "some", "few")  # steps that tell another's pace, the best first
PREPARING = "preparing the calibration"
SUSPECT_ROWS = 1_000  # pilot rows for known rows' typical values and for suspects
LEAST_PILOT = 100
PILOT_TIME = 0.35  # largest share of the time for what comes before the calibration rows
TRIAL = 8  # with fewer rounds of calibration rows, no rows are scored just to learn their pace
OPTIONAL = 0.1  # largest share of the time left for a step that may be left out
CAUTION = 0.9  # share of the time left that calibration rows may take, by their expected pace


def unheard(stage: str, seconds_left: float | None) -> None:
    """The default listener."""


class Pace:
    """Counts the rows that a calibration scores, and tells its stage, in words, and the seconds left.

    Scores do not depend on it, unless it has to end by `until`, a time of `time.monotonic`: then it allows fewer pilot and
    calibration rows, but no fewer than `least` that calibrate. How many is decided before the first of them is scored.

    Args:
        round_rows: rows that are scored at a time, by all threads.
        seconds: of a row in the step "suspects", as measured before; None: unknown.
    """

    def __init__(
        self,
        tell: Callable[[str, float | None], None] = unheard,
        until: float = math.inf,
        least: int = 1,
        round_rows: int = 1,
        seconds: float | None = None,
    ) -> None:
        self.tell, self.until, self.least, self.round_rows, self.seconds = tell, until, least, round_rows, seconds
        self.planned: dict[Step, int] = {}
        self.paces: dict[Step, float] = {}  # seconds a row, of steps that are done
        self.done, self.spent = 0, 0.0
        self.step: Step | None = None
        self.stage, self.started = PREPARING, 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a time by which the calibration has to end."""
        return math.isfinite(self.until)

    def plan(self, pilot: int, rows: int, networks: int = 1, imputed: int = 0) -> None:
        """Expect this many pilot and calibration rows, each scored by this many networks; some have cells to impute."""
        few = networks * min(pilot, SUSPECT_ROWS)
        self.planned = {"few": pilot, "some": pilot, "known": few, "suspects": few, "imputed": imputed}
        if self.needs_trial(rows):
            self.planned["trial"] = networks * self.round_rows
        self.planned["calibration"] = networks * rows

    def counting(self, execution: Execution) -> Execution:
        """An execution that counts the rows."""
        return replace(execution, on_rows=self.count)

    def begin(self, step: Step, rows: int, stage: str = PREPARING) -> None:
        """A step begins, in which so many rows are scored, once for each network."""
        self.step, self.stage, self.started = step, stage, time.monotonic()
        self.planned = {} if step == "calibration" else self.planned  # which is the last one
        self.planned[step], self.done, self.spent = rows, 0, 0.0
        self.tell(stage, self.seconds_left())

    def count(self, rows: int) -> None:
        """Rows of the current step are scored."""
        if self.step is None:
            return
        self.done, self.spent = self.done + rows, time.monotonic() - self.started
        if self.done >= self.planned[self.step]:
            # Cells are imputed by one thread, a row at a time.
            size = self.done if self.step == "imputed" else self.in_rounds(self.done)
            self.paces[self.step], self.planned[self.step] = self.spent / size, 0
        self.tell(self.stage, self.seconds_left())

    def seconds_left(self) -> float | None:
        """How long the rest takes, by the pace so far; None if nothing is known."""
        if self.seconds is None and not self.paces:
            return None
        left = sum(
            self.seconds_a_row(step) * self.in_rounds(rows - (self.done if step == self.step else 0))
            for step, rows in self.planned.items()
        )
        return max(0.0, min(left, self.until - time.monotonic()))  # of what does not fit in, less is done

    def in_rounds(self, rows: int) -> int:
        """Rows rounded up to whole rounds."""
        return -(-max(0, rows) // self.round_rows) * self.round_rows

    def seconds_a_row(self, step: Step) -> float:
        """The pace of a step, its own once it is under way; 0 if nothing is known."""
        if step == self.step and self.done >= 4 * self.round_rows:
            return self.spent / self.done
        if step in self.paces:
            return self.paces[step]
        for known in ALIKE:
            if known in self.paces:
                return COSTS[step] / COSTS[known] * self.paces[known]
        return COSTS[step] * (self.seconds or 0.0)

    def needs_trial(self, rows: int) -> bool:
        """Whether some rows are scored beforehand for their pace: not if they would take as long as all the others."""
        return self.is_limited and rows > TRIAL * self.round_rows

    def allows(self, step: Step, rows: int) -> bool:
        """Whether there is time for a step that may as well be left out: it takes a tenth of what is left, at most."""
        return not self.is_limited or rows * self.seconds_a_row(step) <= OPTIONAL * (self.until - time.monotonic())

    def pilot_rows(self, available: int, networks: int = 1) -> int:
        """How many pilot rows the time allows."""
        if not self.is_limited or self.seconds is None:
            return available
        rows, most = available, PILOT_TIME * (self.until - time.monotonic())
        while rows > LEAST_PILOT and self.seconds * self.pilot_cost(rows, networks) > most:
            rows = max(LEAST_PILOT, int(0.8 * rows))
        return rows

    def pilot_cost(self, rows: int, networks: int) -> float:
        """Cost of everything before the calibration rows."""
        each = self.in_rounds(min(rows, SUSPECT_ROWS)) * (COSTS["known"] + COSTS["suspects"])
        return self.in_rounds(rows) * (COSTS["few"] + COSTS["some"]) + networks * each

    def calibration_rows(self, available: int, networks: int = 1, imputed: float = 0.0) -> int:
        """How many calibration rows the time allows; a share `imputed` of them has missing cells to impute."""
        if not self.is_limited:
            return available
        each = networks * self.seconds_a_row("calibration") + imputed * self.seconds_a_row("imputed")
        left = CAUTION * (self.until - time.monotonic())
        rounds = int(left / max(1e-9, each * self.round_rows))
        return min(available, max(self.least, rounds * self.round_rows))
