"""Weights of the statistics in the rule combined, chosen by what each choice would catch of valid rows that are spoilt.

The choice is between a few weightings, by a fixed rule, on rows that serve nothing else: they neither train, nor calibrate,
nor test. A quarter of the ways to spoil rows never choose, so that the self-test can report on ways that nothing was
chosen for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from service.data.inputs import InputSpec
from service.density.estimate import DIRECT, Execution
from service.scoring.model import Model
from service.scoring.spoils import spoils_of, spoilt
from service.scoring.statistic_kinds import StatisticName, aside_of, chosen_statistics, weights_of
from service.scoring.statistics import RowStatistics
from service.system.frozen import Frozen
from service.validity.combination import FULL_WEIGHT, MIN_ROWS, Combination

USUAL = "usual"
DISTANCES: tuple[StatisticName, ...] = ("nearest_row", "isolation")
DENSITY: tuple[StatisticName, ...] = ("log_likelihood", "worst_cell", "reconstruction")
LEAST_HELD_BACK = 400  # rows held back from training; with fewer, weights are not chosen
LEAST_SPOILT, MOST_SPOILT = 10, 40  # rows of each half that are spoilt in each way
RATES = (0.02, 0.05, 0.1)  # of false alarms, over which what is caught is averaged
# Standard errors, over the ways, by which a weighting must be better than the usual one in each half of the rows. With one
# half, or two standard errors, it is often chance that chooses: the threshold of so few rows errs for all ways alike.
CLEARLY = 3.0


class Weighting(Frozen):
    """Which weights were chosen by how many rows and ways of spoiling them, and what they caught beside the usual ones."""

    name: str
    rows: int
    ways: int
    caught: float
    usual: float


def weightings(spec: InputSpec, generation: int) -> dict[str, np.ndarray]:
    """The weightings to choose between, shape (K,) each.

    They are the usual one, those with full weight for one more statistic, or for all that usually have it but log p(x), and
    those with full weight for distances alone, or for the density alone.
    """
    usual, aside = weights_of(spec, generation)[0], aside_of(spec, generation)
    chosen = chosen_statistics(spec, generation)
    # Of log p(x), only unlikely is ever in full.
    names = ["log_likelihood", "", *(one.name for one in chosen for _ in range(2 if one.both else 1))]
    main = {name for name, weight in zip(names, usual.tolist(), strict=True) if weight >= FULL_WEIGHT}

    def in_full(some: Collection[str]) -> np.ndarray:
        return np.where([name in some for name in names], FULL_WEIGHT, aside)

    found = {USUAL: usual}
    found |= {f"{one.name} in full": in_full({*main, one.name}) for one in chosen if not one.is_main}
    found["all but log p(x)"] = in_full(main - {"log_likelihood"})
    found["distances alone"] = in_full(DISTANCES)
    found["the density alone"] = in_full(DENSITY)
    return found


def rows_to_assess(spec: InputSpec, rows: int) -> int:
    """About how many rows are assessed to choose weights by so many: these, and spoilt ones."""
    ways = sum(one.chooses for one in spoils_of(spec))
    return rows + 2 * ways * min(MOST_SPOILT, rows // 2)


def chosen_weights(
    model: Model, statistics: RowStatistics, rows: np.ndarray, execution: Execution = DIRECT
) -> tuple[np.ndarray, Weighting] | None:
    """The weights for a model's statistics, (K,), by valid rows that it has not seen, (n, D); None if they are few."""
    rows = rows[~np.isnan(rows).any(axis=1)]
    halves = []
    for half, some in enumerate(np.array_split(rows, 2)):
        if len(some) < MIN_ROWS:
            return None
        bad = spoilt_rows(model.input, some[:MOST_SPOILT], seed=half)
        ends = np.cumsum([len(some), *map(len, bad.values())])
        everything = np.concatenate([some, *bad.values()])
        assessed = model.assess(everything, statistics=statistics, execution=execution).statistics
        assert assessed is not None
        parts = [assessed[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        halves.append(Half(parts[0], dict(zip(bad, parts[1:], strict=True))))
    return best_weights(model.input, statistics.known.generation, halves[0], halves[1])


def spoilt_rows(spec: InputSpec, rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Rows, shape (n, D), spoilt in each way that may choose weights and changes enough of them, without missing cells."""
    ways = {one.name: spoilt(spec, rows, one, seed).whole().rows for one in spoils_of(spec) if one.chooses}
    return {name: found for name, found in ways.items() if len(found) >= LEAST_SPOILT}


@dataclass(frozen=True, slots=True)
class Half:
    """Statistics of valid rows, shape (n, K), and of rows spoilt in each way, (N, K) each."""

    valid: np.ndarray
    ways: dict[str, np.ndarray]


def best_weights(spec: InputSpec, generation: int, first: Half, second: Half) -> tuple[np.ndarray, Weighting] | None:
    """The weighting that catches most, if in both halves that is clearly more than the usual one; else the usual one.

    In each half, the other half's valid rows rank each statistic, and its own set the threshold.
    """
    if min(len(first.ways), len(second.ways)) < 2:
        return None
    scales, candidates = weights_of(spec, generation)[1], weightings(spec, generation)
    caught = {}
    for name, weights in candidates.items():
        of_halves = []
        for own, other in ((first, second), (second, first)):
            combination = Combination(np.sort(other.valid, axis=0), np.zeros(0), weights, scales)
            of_halves.append(caught_by(combination, own.valid, own.ways))
        caught[name] = of_halves
    means = {name: float(np.concatenate(shares).mean()) for name, shares in caught.items()}
    better = [name for name, shares in caught.items() if all(map(is_clear, shares, caught[USUAL]))]
    best = max([USUAL, *better], key=lambda name: means[name])
    rows, ways = len(first.valid) + len(second.valid), max(len(first.ways), len(second.ways))
    return candidates[best], Weighting(name=best, rows=rows, ways=ways, caught=means[best], usual=means[USUAL])


def is_clear(shares: np.ndarray, usual: np.ndarray) -> bool:
    """Whether shares of rows that are caught, by way, are clearly larger than the usual ones in the mean, (W,) both."""
    gains = shares - usual
    return bool(gains.mean() > CLEARLY * gains.std(ddof=1) / np.sqrt(len(gains)))


def caught_by(combination: Combination, valid: np.ndarray, ways: Mapping[str, np.ndarray]) -> np.ndarray:
    """The share that is caught of rows spoilt in each way, (N, K) each, in the mean over RATES: shape (number of ways,)."""
    known = np.sort(combination.combine(valid))
    limits = [known[-max(1, int((len(known) + 1) * rate))] for rate in RATES]
    return np.array(
        [np.mean([(combination.combine(rows) > limit).mean() for limit in limits]) for rows in ways.values()]
    )
