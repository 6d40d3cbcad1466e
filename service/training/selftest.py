"""The self-test at the end of a training run: which rows it takes, and how many of them the time allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.scoring.scorer import Scorer
from service.scoring.selftest import LEAST_ROWS
from service.scoring.selftesting import Judge, selftested
from service.scoring.spoils import spoils_of
from service.scoring.version import Draft
from service.system.cpus import cpu_quota
from service.training.course import Course
from service.training.recipe import Split

MOST_ROWS = 400
SHARE_OF_CALIBRATION = 0.25  # of the rows beyond those that the combined rule needs
SHARE_OF_VALIDATION = 0.33
SHARE_OF_TIME = 0.15  # of the time that the run has taken
TIMED_ROWS = 64
ENOUGH = 1.5  # times the time that the rows should take: rows with missing cells take longer
TESTING = "testing the model against itself"
TOO_FEW = "too few rows for a self-test: what the rules catch is not known"
NO_TIME = "--minutes leaves no time for a self-test: what the rules catch is not known"


def with_test_rows(splits: Sequence[Split], least: int) -> tuple[Sequence[Split], np.ndarray]:
    """The splits without the rows that are kept for the self-test, and these, which may be none.

    They are calibration rows beyond the `least` that are needed or, where there are too few, rows for early stopping. With
    folds there are none.
    """
    split, *others = splits
    if others:
        return splits, split.calibration[:0]
    some = min(MOST_ROWS, int(SHARE_OF_CALIBRATION * (len(split.calibration) - least)))
    if some >= LEAST_ROWS:
        return [replace(split, calibration=split.calibration[:-some])], split.calibration[-some:]
    some = int(SHARE_OF_VALIDATION * len(split.validation))
    if split.pilot is None and some >= LEAST_ROWS:
        return [replace(split, validation=split.validation[:-some])], split.validation[-some:]
    return splits, split.calibration[:0]


def with_selftest(draft: Draft, rows: np.ndarray, course: Course) -> Draft:
    """A draft that says what its rules catch of rows that it has not seen, as the split has them, once they are spoilt.

    All kinds of spoils are tried on as many rows as a share of the run's time allows.
    """
    if not len(rows):
        course.notes.append(TOO_FEW)
        return draft
    course.enter(TESTING)
    scorer = Scorer(draft.unpublished(), threads=cpu_quota())
    rows = rows.reshape(len(rows), -1)
    aside = scorer.model.input.features + len(scorer.reader.beside) - rows.shape[1]
    rows = scorer.model.input.read(np.pad(rows, ((0, 0), (0, aside))), scorer.reader)  # nothing is told of what is 0
    seconds = min(SHARE_OF_TIME * (time.monotonic() - course.started), course.left() - course.publishing)
    kinds, each = len(spoils_of(draft.model.input)), seconds_a_row(scorer, rows)
    most = int(min(seconds / (each * kinds), len(rows)))
    if most < LEAST_ROWS:
        course.notes.append(NO_TIME)
        return draft
    began = time.monotonic()
    until = began + ENOUGH * seconds

    def on_spoil(done: int, number: int) -> None:
        course.move((number - done) * (time.monotonic() - began) / done)

    return replace(
        draft, selftest=selftested(scorer, rows, draft.false_alarm, most=most, on_spoil=on_spoil, until=until)
    )


def seconds_a_row(scorer: Scorer, rows: np.ndarray) -> float:
    """How long a row's score takes by the rules, in a batch."""
    judge, some = Judge.of(scorer), rows[:TIMED_ROWS]
    start = time.monotonic()
    judge.flagged(some)
    return (time.monotonic() - start) / len(some)
