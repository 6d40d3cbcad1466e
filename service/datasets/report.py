"""The report of a run, as HTML and JSON: counts, histograms, strangest rows, drift, false discovery rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from service.console.report import page
from service.datasets.plan import Plan, Shard
from service.datasets.scored import p_value_column
from service.scoring.drift_monitor import DriftMonitor, p_value_counts
from service.scoring.scorer import Scorer
from service.system.frozen import Frozen
from service.validity.band import SIDES
from service.validity.conformal import RejectionLimit, too_few_warning

BINS, P_VALUE_BINS, STRANGEST = 50, 20, 10
DRIFT_LEVEL = 0.01  # chance of a false drift alarm


class NotDone(Frozen):
    """Rows without results, and why."""

    file: str
    rows: str
    reason: str


class Strange(Frozen):
    """A strange row: its index in its file, from 0, and how strange it is."""

    file: str
    row: int
    log_likelihood: float
    std_error: float
    p_value: float
    blamed: tuple[str, ...] = ()


class Histogram(Frozen):
    """Counts between edges, for rows and for validation rows; the outer bins include everything beyond them."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    validation: tuple[float, ...]


class Held(Frozen):
    """A controlled false discovery rate: rows with a p-value of at most `p_value` are invalid.

    In expectation at most a share `level` of them is valid. `estimate` is the expected share of valid rows among them
    if all other rows are valid: rows x p_value / discoveries.
    """

    level: float
    procedure: str = "Benjamini-Hochberg"
    p_value: float | None
    discoveries: int
    estimate: float | None
    needed: int
    warning: str | None


class Drift(Frozen):
    """Whether the rows, in order, look like validation rows; `file` and `row` say where drift was detected."""

    drifts: bool
    direction: str | None
    watched_rows: int
    log_capital: float
    limit: float
    level: float
    file: str | None = None
    row: int | None = None


class Report(Frozen):
    """What a run found. With a false discovery rate, the `invalid` rows are the discoveries.

    Of `unreadable` rows a cell cannot be read, or they have no value; `violations` are those of all rows, in words.
    """

    vouch: str
    model: str
    model_digest: str
    rule: str
    files: int
    rows: int
    valid: int
    invalid: int
    sides: dict[str, int]
    unreadable: int = 0
    violations: dict[str, int] = {}
    blamed: dict[str, int] | None
    log_likelihood: Histogram
    p_values: tuple[int, ...]
    strangest: tuple[Strange, ...]
    drift: Drift
    fdr: Held | None
    not_done: tuple[NotDone, ...]


@dataclass
class Tally:
    """Running totals over shards, which must be added in order."""

    scorer: Scorer
    plan: Plan
    limit: RejectionLimit | None
    monitor: DriftMonitor = field(init=False)
    edges: np.ndarray = field(init=False)
    counts: np.ndarray = field(init=False)
    random: np.random.Generator = field(init=False)
    sides: np.ndarray = field(init=False)
    p_values: np.ndarray = field(init=False)
    rows: int = 0
    invalid: int = 0
    unreadable: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    blamed: Counter[str] = field(default_factory=Counter)
    strangest: list[tuple[float, float, int, Strange]] = field(default_factory=list)
    alarm_at: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        self.monitor = DriftMonitor.of(self.scorer)
        self.edges = histogram_edges(self.scorer.calibration.scores)
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.sides, self.p_values = np.zeros(len(SIDES), np.int64), np.zeros(P_VALUE_BINS, np.int64)
        self.random = np.random.default_rng(int(self.plan.options.model_digest.rpartition(":")[2][:15], 16))

    def add(self, shard: Shard, scores: pa.Table) -> None:
        """Add a shard's scores to the totals."""
        log_likelihood = scores.column("log_likelihood").to_numpy()
        p_value = scores.column(p_value_column(self.plan.options.score_options)).to_numpy()
        invalid = np.array(scores.column("verdict").to_pylist()) == "invalid"
        if self.limit is not None:
            invalid = self.limit.chosen(p_value)
        self.rows, self.invalid = self.rows + len(scores), self.invalid + int(invalid.sum())
        sides = Counter(scores.column("side").to_pylist())
        self.sides += np.array([sides[side] for side in SIDES])
        self.counts += histogram(log_likelihood, self.edges)
        self.p_values += p_value_counts(p_value, P_VALUE_BINS)
        if self.plan.options.explain:
            self.blamed.update(scores.column("blamed_1_column").filter(pa.array(invalid)).drop_null().to_pylist())
        if "violations" in scores.column_names:
            self.unreadable += int(scores.column("unreadable").to_numpy().sum())
            for text in scores.column("violations").drop_null().to_pylist():
                self.violations.update(text.split("; "))
        self.look_for_strange(shard, scores, log_likelihood, p_value)
        self.bet(shard, scores, log_likelihood)

    def look_for_strange(self, shard: Shard, scores: pa.Table, log_likelihood: np.ndarray, p_value: np.ndarray) -> None:
        """Keep the rows with the smallest p-values; among equal ones, the least likely."""
        std_error = scores.column("std_error").to_numpy()
        for row in np.lexsort((log_likelihood, p_value))[:STRANGEST].tolist():
            strange = Strange(
                file=shard.file.name,
                row=shard.row_range.first + row,
                log_likelihood=float(log_likelihood[row]),
                std_error=float(std_error[row]),
                p_value=float(p_value[row]),
                blamed=tuple(blamed_text(scores, row, self.plan.options.explain)),
            )
            self.strangest.append((strange.p_value, strange.log_likelihood, shard.first + row, strange))
        self.strangest = sorted(self.strangest, key=lambda one: one[:3])[:STRANGEST]

    def bet(self, shard: Shard, scores: pa.Table, log_likelihood: np.ndarray) -> None:
        """Feed complete rows to the drift monitor.

        Models with folds are not monitored: their validation rows were scored by different networks.
        """
        if self.scorer.band.folds > 1:
            return
        complete = np.ones(len(scores), dtype=bool)
        if "missing" in scores.column_names:
            complete = scores.column("missing").to_numpy() == 0
            unreadable = scores.column("unreadable").to_numpy()
            log_likelihood = np.where(unreadable, -np.inf, log_likelihood)
        before, chosen = self.monitor.watched, np.flatnonzero(complete)
        if self.monitor.bet(log_likelihood[chosen], self.random.random(len(chosen)), DRIFT_LEVEL):
            assert self.monitor.alarm_row is not None
            self.alarm_at = shard.file.name, shard.row_range.first + int(chosen[self.monitor.alarm_row - before - 1])

    def report(self, not_done: Sequence[NotDone]) -> Report:
        """The report on all shards that were added."""
        options, said = self.plan.options, self.monitor.document(DRIFT_LEVEL)
        file, row = self.alarm_at or (None, None)
        validation = histogram(self.scorer.calibration.scores, self.edges)
        scaled = validation * (self.rows / max(1, len(self.scorer.calibration.scores)))
        return Report(
            vouch=options.version,
            model=options.model,
            model_digest=options.model_digest,
            rule=rule_text(self.scorer, self.plan),
            files=len(self.plan.files),
            rows=self.rows,
            valid=self.rows - self.invalid,
            invalid=self.invalid,
            sides=dict(zip(SIDES, self.sides.tolist(), strict=True)),
            unreadable=self.unreadable,
            violations=dict(self.violations.most_common()),
            blamed=dict(sorted(self.blamed.items(), key=lambda one: (-one[1], one[0]))) if options.explain else None,
            log_likelihood=Histogram(
                edges=tuple(self.edges.tolist()), counts=tuple(self.counts.tolist()), validation=tuple(scaled.tolist())
            ),
            p_values=tuple(self.p_values.tolist()),
            strangest=tuple(strange for *_, strange in self.strangest),
            drift=Drift(file=file, row=row, **{name: said[name] for name in Drift.model_fields if name in said}),
            fdr=None if self.limit is None else held(self.limit, self.plan, self.rows, self.invalid),
            not_done=tuple(not_done),
        )


def held(limit: RejectionLimit, plan: Plan, rows: int, discoveries: int) -> Held:
    level = plan.options.fdr
    assert level is not None
    return Held(
        level=level,
        p_value=limit.p_value,
        discoveries=discoveries,
        estimate=None if limit.p_value is None else rows * limit.p_value / discoveries,
        needed=limit.needed,
        warning=None if discoveries else too_few_warning(level, rows, limit.needed),
    )


def rule_text(scorer: Scorer, plan: Plan) -> str:
    """The rule by which rows are invalid, in words."""
    options = plan.options
    if options.fdr is not None:
        evidence = "the combined rule" if options.combined else "log p(x)"
        return f"a false discovery rate of {options.fdr:g}, by one-sided p-values of {evidence}"
    if options.combined:
        rule = scorer.combined_rule(options.false_alarm)
        return f"the combined rule at a false-alarm rate of {rule.false_alarm:g}"
    band = scorer.calibration.band(options.score_options.band_percentiles)
    low, high = ("any" if end is None else f"{end:.2f}" for end in band.ends_or_none)
    return (
        f"log p(x) outside the band from {low} to {high} nats"
        if high != "any"
        else (f"log p(x) outside the band from {low} nats upwards")
    )


def blamed_text(scores: pa.Table, row: int, explain: int) -> Iterator[str]:
    """The columns to blame for a row, each with its value and what was expected."""
    for place in range(1, explain + 1):
        name, value, expected = (
            scores.column(f"blamed_{place}_{part}")[row].as_py() for part in ("column", "value", "expected")
        )
        if name is not None:
            yield f"{name}: {value}, expected {expected}"


def histogram_edges(scores: np.ndarray) -> np.ndarray:
    """Edges of equal bins around the validation scores, with as much room again below, for invalid rows."""
    low, high = np.quantile(scores, (0.001, 0.999))
    span = max(float(high - low), 1e-6)
    return np.linspace(low - span, high + 0.25 * span, BINS + 1)


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts between edges; the outer bins include everything beyond them."""
    places = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
    return np.bincount(places, minlength=len(edges) - 1)


def as_html(report: Report) -> str:
    """A self-contained HTML page."""
    template = (Path(__file__).parent / "report.html").read_text()
    return page(f"{report.rows:,} rows by {report.model}", template, report=report)
