"""Weights of the statistics in the rule combined, chosen by what each choice would catch of valid rows that are spoilt.

The choice is between a few weightings, by a fixed rule, on rows that serve nothing else: they neither train, nor calibrate,
nor test. A quarter of the ways to spoil rows never choose, so that the self-test can report on ways that nothing was
chosen for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from service.data.inputs import InputSpec
from service.density.estimate import DIRECT, Execution
from service.scoring.model import Model
from service.scoring.spoils import spoils_of, spoilt
from service.scoring.statistics import ASIDE, RowStatistics, StatisticName, chosen_statistics, weights_of
from service.system.frozen import Frozen
from service.validity.combination import FULL_WEIGHT, MIN_ROWS, Combination

USUAL = "usual"
DISTANCES: tuple[StatisticName, ...] = ("nearest_row", "isolation")
DENSITY: tuple[StatisticName, ...] = ("log_likelihood", "worst_cell", "reconstruction")
LEAST_HELD_BACK = 400  # rows held back from training; with fewer, weights are not chosen
LEAST_SPOILT, MOST_SPOILT = 10, 60  # rows that are spoilt in each way
RATES = (0.02, 0.05, 0.1)  # of false alarms, over which what is caught is averaged
CLEARLY = 2.0  # standard errors by which a weighting must be better than the usual one


class Weighting(Frozen):
    """Which weights were chosen by how many rows and ways of spoiling them, and what they caught beside the usual ones."""

    name: str
    rows: int
    ways: int
    caught: float
    usual: float


def weightings(spec: InputSpec, generation: int) -> dict[str, np.ndarray]:
    """The weightings to choose between, shape (K,) each.

    They are the usual one, those with full weight for one more statistic, for all, or for all that usually have it but
    log p(x), and those with full weight for distances alone, or for the density alone.
    """
    usual, aside = weights_of(spec, generation)[0], ASIDE[spec.kind]
    chosen = chosen_statistics(spec, generation)
    # Of log p(x), only unlikely is ever in full.
    names = ["log_likelihood", "", *(one.name for one in chosen for _ in range(2 if one.both else 1))]
    main = {name for name, weight in zip(names, usual.tolist(), strict=True) if weight >= FULL_WEIGHT}

    def in_full(some: Collection[str]) -> np.ndarray:
        return np.where([name in some for name in names], FULL_WEIGHT, aside)

    found = {USUAL: usual}
    found |= {f"{one.name} in full": in_full({*main, one.name}) for one in chosen if not one.is_main}
    found["all statistics in full"] = in_full(set(names) - {""})
    found["all but log p(x)"] = in_full(main - {"log_likelihood"})
    found["distances alone"] = in_full(DISTANCES)
    found["the density alone"] = in_full(DENSITY)
    return found


def rows_to_assess(spec: InputSpec, rows: int) -> int:
    """About how many rows are assessed to choose weights by so many: these, and spoilt ones."""
    ways = sum(one.chooses for one in spoils_of(spec))
    return rows + ways * min(MOST_SPOILT, rows // 2)


def chosen_weights(
    model: Model, statistics: RowStatistics, rows: np.ndarray, execution: Execution = DIRECT, seed: int = 0
) -> tuple[np.ndarray, Weighting] | None:
    """The weights for a model's statistics, shape (K,), by valid rows that it has not seen, (n, D); None if they are few.

    Half of the rows rank each statistic; the others set the threshold of each weighting, and are spoilt.
    """
    spec = model.input
    rows = rows[~np.isnan(rows).any(axis=1)]
    half = len(rows) // 2
    if half < MIN_ROWS:
        return None
    others, bad = rows[half:], []
    for one in spoils_of(spec):
        found = spoilt(spec, others[:MOST_SPOILT], one, seed).whole() if one.chooses else None
        if found is not None and len(found.rows) >= LEAST_SPOILT:
            bad.append((one.name, found.rows))
    ends = np.cumsum([len(rows), *(len(some) for _, some in bad)])
    everything = np.concatenate([rows, *(some for _, some in bad)])
    assessed = model.assess(everything, statistics=statistics, execution=execution).statistics
    assert assessed is not None
    parts = [assessed[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    ways = {name: part for (name, _), part in zip(bad, parts[1:], strict=True)}
    return best_weights(spec, statistics.known.generation, parts[0][:half], parts[0][half:], ways)


def best_weights(
    spec: InputSpec, generation: int, ranking: np.ndarray, valid: np.ndarray, ways: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, Weighting] | None:
    """The weighting that catches most, if that is clearly more than the usual one does; else the usual one.

    Args:
        ranking: statistics of valid rows that rank each statistic, shape (n, K).
        valid: those of other valid rows, (m, K).
        ways: those of rows that were spoilt, by the way in which they were, (N, K) each.
    """
    if len(ways) < 2:
        return None
    scales, candidates = weights_of(spec, generation)[1], weightings(spec, generation)
    caught = {
        name: caught_by(Combination(np.sort(ranking, axis=0), np.zeros(0), weights, scales), valid, ways)
        for name, weights in candidates.items()
    }
    usual, best, most = caught[USUAL], USUAL, 0.0
    for name, shares in caught.items():
        gains = shares - usual
        gain, error = float(gains.mean()), float(gains.std(ddof=1)) / np.sqrt(len(gains))
        if gain > most and gain > CLEARLY * error:
            best, most = name, gain
    chosen = Weighting(
        name=best,
        rows=len(ranking) + len(valid),
        ways=len(ways),
        caught=float(caught[best].mean()),
        usual=float(usual.mean()),
    )
    return candidates[best], chosen


def caught_by(combination: Combination, valid: np.ndarray, ways: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share that is caught of rows spoilt in each way, (N, K) each, in the mean over RATES: shape (number of ways,)."""
    known = np.sort(combination.combine(valid))
    limits = [known[-max(1, int((len(known) + 1) * rate))] for rate in RATES]
    return np.array(
        [np.mean([(combination.combine(rows) > limit).mean() for limit in limits]) for rows in ways.values()]
    )
