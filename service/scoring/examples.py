"""Rows to try a model with: two that it draws itself, and one of them spoilt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.data.inputs import InputSpec, Mixed
from service.errors import CalibrationError
from service.scoring.options import ScoreOptions
from service.scoring.scorer import Scorer
from service.scoring.scores import Scores
from service.scoring.spoils import spoils_of, spoilt

DRAWN, SEED = 6, 7
AT_MOST = 6  # ways of spoiling a row that are tried
# Ways that anyone sees at once, in the order in which they are tried; what an input does not have is passed over.
PLAIN_TO_SEE = (
    "a colour cast of 40 levels", "upside down", "a quarter hidden", "inverted", "a number x 10", "a number x 100",
    "another category", "a number's sign flipped",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """A row, shape (D,), and what it is; with `spoil`, in which way it was spoilt."""

    title: str
    row: np.ndarray
    spoil: str | None = None


ROWS = DRAWN + AT_MOST  # that are scored for examples


def examples(scorer: Scorer) -> list[Example]:
    """Two of a few samples, those that are most like valid rows, and a third one, spoilt so that the model notices."""
    spec = scorer.model.input
    # The mean of an image looks like one; the mean of a category is none.
    drawn = scorer.sample(DRAWN, SEED, "mean" if spec.kind == "image" else "observation").samples
    drawn = spec.rows(np.rint(np.clip(drawn, 0, 255)) if spec.kind == "image" else as_written(spec, drawn))
    order = np.argsort(-p_values(judged(scorer, drawn)), kind="stable")
    first, second, third = (drawn[at] for at in order[:3])
    found = [Example("A row that the model drew", first), Example("Another one", second)]
    ways = {one.name: one for one in spoils_of(spec)}
    changed: dict[str, np.ndarray] = {}
    for name in [name for name in PLAIN_TO_SEE if name in ways][:AT_MOST]:
        rows = spoilt(spec, third[None], ways[name], SEED).whole().rows
        changed |= {name: rows[0]} if len(rows) else {}
    if changed:
        scores = judged(scorer, np.array(list(changed.values())))
        at = int(np.argmin(scores.valid)) if not scores.valid.all() else int(np.argmin(p_values(scores)))
        name = list(changed)[at]
        found.append(Example("A row that was spoilt", changed[name], name))
    return found


def as_written(spec: InputSpec, rows: np.ndarray) -> np.ndarray:
    """Sampled rows of a table, shape (B, D), with as many digits as the cells of its columns have."""
    if not isinstance(spec.transform, Mixed):
        return np.round(rows, 4)
    steps = np.array([getattr(one, "step", None) or 0.0 for one in spec.transform.columns])
    nearest = np.rint(rows / np.where(steps > 0, steps, 1.0)) * steps
    return np.where(steps > 0, nearest, rows)


def judged(scorer: Scorer, rows: np.ndarray) -> Scores:
    """Scores by the rule combined at its usual rate, or by log p(x) where there is none."""
    options = ScoreOptions("combined" if scorer.calibration.statistics is not None else "band")
    try:
        return scorer.score(rows, options)
    except CalibrationError:
        return scorer.score(rows, ScoreOptions("band"))


def p_values(scores: Scores) -> np.ndarray:
    """The p-values of the rule that judged, shape (B,)."""
    return scores.p_value if scores.rule is None else scores.combined_p_value
