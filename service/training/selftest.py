"""The self-test at the end of a training run: which rows it takes, and how many of them the time allows."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from service.errors import VouchError
from service.scoring.scorer import Scorer
from service.scoring.selftest import LEAST_ROWS, SelfTest
from service.scoring.selftesting import Judge, complete_rows, selftested
from service.scoring.spoils import spoils_of
from service.scoring.version import Draft
from service.system.cpus import cpu_quota
from service.training.course import Course

SHARE_OF_TIME = 0.15  # of the time that the run has taken
TIMED_ROWS = 64
ENOUGH = 1.5  # times the time that the rows should take: rows with missing cells take longer
TESTING = "testing the model against itself"
TOO_FEW = "too few rows for a self-test: what the rules catch is not known"
NO_TIME = "no time was left for a self-test: what the rules catch is not known"


def with_selftest(draft: Draft, rows: np.ndarray, course: Course) -> Draft:
    """A draft that says what its rules catch of rows that it has not seen, as the split has them, once they are spoilt.

    All kinds of spoils are tried on as many rows as a share of the run's time allows.
    """
    if not len(rows):
        course.notes.append(TOO_FEW)
        return draft
    course.enter(TESTING)
    seconds = min(SHARE_OF_TIME * (time.monotonic() - course.started), course.left() - course.publishing)
    scorer = Scorer(draft.unpublished(), threads=cpu_quota())
    rows = rows.reshape(len(rows), -1)
    aside = scorer.model.input.features + len(scorer.reader.beside) - rows.shape[1]
    rows = scorer.model.input.read(np.pad(rows, ((0, 0), (0, aside))), scorer.reader)  # nothing is told of what is 0
    whole = complete_rows(rows, scorer.model.input, must=scorer.groups is not None)
    try:
        found = tested_for(scorer, whole, rows, draft, seconds, course)
    except VouchError as error:  # what is fitted is not lost for want of a report on it
        course.notes.append(f"no self-test: {error}")
        return draft
    if found is None or not found.caught:
        course.notes.append(NO_TIME)
        return draft
    return replace(draft, selftest=found)


def tested_for(
    scorer: Scorer, whole: np.ndarray, rows: np.ndarray, draft: Draft, seconds: float, course: Course
) -> SelfTest | None:
    """A self-test that takes about so many seconds; None if that is too little for one.

    Args:
        whole: rows to learn from how long a score takes, shape (n, D + C).
    """
    if seconds <= 0 or not len(whole):
        return None
    ways = len(spoils_of(draft.model.input)) + 1  # and the rows as they are
    most = int(min(seconds / (seconds_a_row(scorer, whole) * ways), len(rows)))
    if most < LEAST_ROWS:
        return None
    began = time.monotonic()

    def on_spoil(done: int, number: int) -> None:
        course.move((number - done) * (time.monotonic() - began) / done)

    until = began + ENOUGH * seconds
    return selftested(scorer, rows, draft.false_alarm, most=most, on_spoil=on_spoil, until=until)


def seconds_a_row(scorer: Scorer, rows: np.ndarray) -> float:
    """How long a row's score takes by the rules, in a batch; the first one, which takes longer, does not count."""
    judge, some = Judge.of(scorer), rows[:TIMED_ROWS]
    judge.flagged(some[:1])
    start = time.monotonic()
    judge.flagged(some)
    return (time.monotonic() - start) / len(some)
