"""What bad cells, holes and repeated rows do to verdicts: every promise, measured on real tables and on made ones.

    python benchmarks/bad_cells.py --data FOLDER [--part rates] [--part kinds] ...

rates    Realised share of valid rows that each rule accepts, beside what it says, over 100 re-partitions of held-back rows:
         adult and wine as they are, with unreadable cells, with violations that valid rows have, and rows in groups.
repeats  The same on new rows, where training rows are copies, and where discrete rows repeat by themselves.
kinds    Rows with one wrong cell of six kinds: how many are invalid, and which cell is named first; rows a second.
files    10,000 rows with 37 unreadable cells, by every door, beside the file without them.
trained  Calibration on rows that were trained on, and on honest rows that repeat by themselves.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table as Listing

from service.data.domains import is_lowest
from service.data.table import IS_TEXT, Table
from service.density.estimate import Execution
from service.density.estimator import Estimator
from service.density.tiling import worker_pool
from service.errors import CalibrationError
from service.files.tables import read_table
from service.scoring.missing_patterns import distinct_patterns
from service.scoring.model import Model
from service.scoring.options import ScoreOptions
from service.scoring.reference_rows import ReferenceRows
from service.scoring.scorer import Scorer
from service.scoring.scores import CombinedRule
from service.scoring.statistics import ReferenceStatistics
from service.scoring.version import Published, Reference
from service.store.loading import load_scorer
from service.store.store import Store
from service.system.cpus import cpu_quota
from service.training.fit import FitOptions
from service.training.recipe import Recipe, Split
from service.training.train import Trained, train_table
from service.validity.band import Band, percentiles_of
from service.validity.conformal import ScoreRanks
from service.validity.violations import ViolationReference

REPARTITIONS = 100
RATES = (0.02, 0.1)
CONSOLE = Console(width=170)
STORE = Path("build/bad-cells")
SMALL = Recipe(
    latents=2,
    hidden=(32,),
    fit=FitOptions(epochs=15, importance_samples=3),
    estimator=Estimator.of("fast"),
    prior="normal",
    calibration_share=0.4,
)


def execution() -> Execution:
    return Execution(worker_pool(cpu_quota()))


# Models


def trained(name: str, table: Table, recipe: Recipe, group: np.ndarray | None = None) -> tuple[Scorer, Split]:
    """A model of a table in the benchmark's store, trained where it is not there yet, and the split of its rows."""
    store = Store(STORE)
    if name not in (store.names() if STORE.is_dir() else []):
        store.publish(name, train_table(table, recipe, group=group).draft)
    return load_scorer(store, name, "cpu", threads=cpu_quota()), Split.shuffled(len(table), recipe)


# Rates, by the rows scored once


@dataclass(frozen=True)
class Scored:
    """Rows scored once: codes, which rank below every number, log p(x) and statistics; the same with cells hidden."""

    codes: np.ndarray
    lowest: np.ndarray
    missing: np.ndarray
    log_likelihood: np.ndarray
    statistics: np.ndarray
    hidden: list[
        tuple[np.ndarray, np.ndarray, np.ndarray]
    ]  # of each pattern: its mask, log p(x) and statistics of all rows

    @staticmethod
    def of(scorer: Scorer, rows: np.ndarray) -> Scored:
        """Of rows, shape (n, D)."""
        model, spec = scorer.model, scorer.model.input
        codes = scorer.domains.codes(spec, np.concatenate([rows, np.zeros((len(rows), len(scorer.domains.beside)))], 1))
        lowest = is_lowest(codes, spec.features)
        missing = np.isnan(rows)
        whole = rows.copy()
        whole[~lowest] = ReferenceRows.of(model, rows[~lowest]).rows
        whole[lowest] = whole[~lowest][0]
        own, patterns = assessed(scorer, rows), distinct_patterns(missing[~lowest])
        filled = assessed(scorer, whole)
        incomplete = missing.any(axis=1)
        # Complete rows are compared with all rows, whose missing cells are filled by draws.
        hidden = [(np.zeros(spec.features, dtype=bool), *filled)]
        hidden += [(mask, *assessed(scorer, np.where(mask, np.nan, whole))) for mask in patterns]
        assert incomplete[~lowest].any() == bool(patterns)
        return Scored(codes, lowest, missing, *own, hidden)

    def judged(self, calibrating: np.ndarray, fresh: np.ndarray, scorer: Scorer) -> Iterator[tuple[str, float, float]]:
        """Each rule with the share of fresh rows that it accepts, and what it says, calibrated on other rows."""
        spec, unreadable = scorer.model.input, self.lowest[calibrating]
        violations = ViolationReference.of(self.codes[calibrating], unreadable)
        readable = calibrating[~unreadable]
        few = min(1000, len(readable))
        among = int(unreadable[: np.flatnonzero(~unreadable)[few - 1]].sum())
        reference_rows = ReferenceRows(np.zeros((few, spec.features)), self.missing[readable[:few]], unreadable=among)
        for name, rule, said in rules(self, calibrating, scorer, violations):
            accepted = np.zeros(len(fresh), dtype=bool)
            for mask, log_likelihood, statistics in self.hidden:
                chosen = (self.missing[fresh] == mask).all(axis=1) & ~self.lowest[fresh]
                if not chosen.any():
                    continue
                below = np.where(self.lowest[calibrating], -np.inf, log_likelihood[calibrating])
                of_all = np.where(self.lowest[calibrating][:, None], np.inf, statistics[calibrating])
                more = 0
                if mask.any():
                    used = readable[:few][reference_rows.usable(mask)]
                    more = reference_rows.unreadable_among(len(used))
                    below = np.append(np.full(more, -np.inf), log_likelihood[used])
                    of_all = statistics[used]
                rows = fresh[chosen]
                beside = violations.p_values(self.codes[rows], self.lowest[rows])
                own = self.log_likelihood[rows], self.statistics[rows]
                accepted[chosen] = rule(np.sort(below), of_all, more, *own, beside)
            yield name, float(accepted.mean()), said


Judge = Callable[[np.ndarray, np.ndarray, int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rules(
    scored: Scored, calibrating: np.ndarray, scorer: Scorer, violations: ViolationReference
) -> Iterator[tuple[str, Judge, float]]:
    """The rules, each with what judges rows and the share of valid rows that it says it accepts."""
    spec, lowest = scorer.model.input, scored.lowest[calibrating]
    of_all = np.where(lowest[:, None], np.inf, scored.hidden[0][2][calibrating])
    scores = np.sort(np.where(lowest, -np.inf, scored.hidden[0][1][calibrating]))
    bands = {"band 25-75": (25.0, 75.0)}
    bands |= {f"band, {rate:g} on both sides": percentiles_of(rate) for rate in RATES}
    bands |= {f"band, {rate:g} below": percentiles_of(rate, "low") for rate in RATES}
    for name, percentiles in bands.items():
        yield name, by_band(percentiles), Band.fit(scores, percentiles).accepted.expected
    statistics = scorer.reference_statistics().fit_alike(of_all)
    assert statistics is not None
    for rate in RATES:
        rule = CombinedRule.of(statistics, spec, rate, violations)
        yield f"combined, {rate:g}", by_combined(rule, scorer.reference_statistics()), rule.accepted.expected


def by_band(percentiles: tuple[float, float]) -> Judge:
    def judge(
        scores: np.ndarray, of_all: np.ndarray, more: int, own: np.ndarray, statistics: np.ndarray, beside: np.ndarray
    ) -> np.ndarray:
        return Band.fit(scores, percentiles).sides_of(ScoreRanks.of(scores, own)) == 0

    return judge


def by_combined(rule: CombinedRule, like: ReferenceStatistics) -> Judge:
    def judge(
        scores: np.ndarray, of_all: np.ndarray, more: int, own: np.ndarray, statistics: np.ndarray, beside: np.ndarray
    ) -> np.ndarray:
        reference = like.fit_alike(of_all, more)
        assert reference is not None
        return rule.are_valid(rule.p_values(reference.combination.p_value(statistics), beside))

    return judge


def assessed(scorer: Scorer, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x) of rows, (n,), and their statistics, (n, K)."""
    model: Model = scorer.model
    found = model.assess(rows, scorer.band.ends, statistics=scorer.row_statistics, execution=execution())
    assert found.statistics is not None
    return found.estimates.log_likelihood, found.statistics


def partitions(count: int, number: int = REPARTITIONS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random halves."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        order = generator.permutation(count)
        yield order[: count // 2], order[count // 2 :]


def print_rates(name: str, found: Sequence[Sequence[tuple[str, float, float]]]) -> None:
    """What each rule accepts, beside what it says, and how many standard errors apart that is."""
    listing = Listing("rule", "accepts", "says", "difference, in standard errors", title=name, box=box.SIMPLE)
    for at, (rule, _, _) in enumerate(found[0]):
        realised = np.array([one[at][1] for one in found])
        said = np.array([one[at][2] for one in found])
        difference = realised - said
        error = difference.std(ddof=1) / np.sqrt(len(found))
        apart = difference.mean() / max(error, 1e-9)
        listing.add_row(rule, f"{realised.mean():.4f}", f"{said.mean():.4f}", f"{apart:+.1f}")
    CONSOLE.print(listing)


def rates(folder: Path) -> None:
    """Adult and wine, as they are, with unreadable cells, and with violations."""
    for name in ("wine", "adult"):
        table = table_of(folder, name)
        minutes = {"wine": 2.0, "adult": 5.0}[name]
        recipe = replace(Recipe(), fit=replace(Recipe().fit, minutes=minutes), estimator=Estimator.of("fast"))
        scorer, split = trained(name, table, recipe)
        rows = scorer.model.input.array(table)[split.calibration][:1600]
        generator = np.random.default_rng(1)
        unreadable = np.where(generator.random(rows.shape) < 0.01, IS_TEXT, rows)
        for what, variant in (
            ("as it is", rows),
            ("1 % of the cells unreadable", unreadable),
            ("3 % of the rows with violations", violated(rows, scorer, generator)),
        ):
            scored = Scored.of(scorer, variant)
            found = [list(scored.judged(a, b, scorer)) for a, b in partitions(len(variant))]
            print_rates(f"{name}, {what}: {len(variant):,} rows", found)


def violated(rows: np.ndarray, scorer: Scorer, generator: np.random.Generator) -> np.ndarray:
    """Rows of which 3 % have a cell that breaks its domain: missing, negative, a fraction, or beyond its range."""
    rows = rows.copy()
    columns = [at for at, one in enumerate(scorer.domains.columns) if one.never_missing or one.never_negative]
    for row in np.flatnonzero(generator.random(len(rows)) < 0.03).tolist():
        at = int(generator.choice(columns))
        one = scorer.domains.columns[at]
        ways = [np.nan] * one.never_missing + [-1.0] * one.never_negative + [rows[row, at] + 0.5] * one.integers
        rows[row, at] = ways[int(generator.integers(len(ways)))]
    return rows


def table_of(folder: Path, name: str) -> Table:
    return read_table(folder / "mixed" / {"wine": "wine_quality.csv", "adult": "adult.csv"}[name])


# Made tables


def made(number: int, generator: np.random.Generator, shift: np.ndarray | float = 0.0) -> dict[str, np.ndarray]:
    """Rows of continuous columns, a count and a category that hang together."""
    factor = generator.normal(size=number) + shift
    return {
        "load": np.exp(2 + 0.5 * factor + 0.2 * generator.normal(size=number)),
        "heat": 20 + 3 * factor + generator.normal(size=number),
        "speed": 2 * factor + 0.3 * generator.normal(size=number),
        "count": generator.poisson(np.exp(1 + 0.3 * factor)).astype(float),
        "colour": np.where(generator.random(number) < 0.3, "red", np.where(factor > 0.5, "green", "blue")).astype(
            object
        ),
    }


def discrete(number: int, generator: np.random.Generator, values: int) -> dict[str, np.ndarray]:
    """Independent draws of discrete rows, which repeat by themselves: the fewer values, the more."""
    factor = generator.normal(size=number)
    return {
        name: np.clip(np.rint(values / 2 + values / 5 * (factor + 0.7 * generator.normal(size=number))), 0, values)
        for name in ("a", "b", "c")
    }


def as_table(columns: dict[str, np.ndarray], rows: np.ndarray | None = None) -> Table:
    table = Table(tuple(columns), tuple(columns.values()))
    return table if rows is None else table.select(rows)


def shares(scorer: Scorer, rows: np.ndarray) -> list[tuple[str, float, float]]:
    """The share of rows that each rule accepts, and what it says."""
    scores = scorer.score(rows, ScoreOptions("combined", false_alarm=0.05))
    bands = {"band 25-75": (25.0, 75.0), "band, 0.1 on both sides": percentiles_of(0.1)}
    bands["band, 0.05 below"] = percentiles_of(0.05, "low")
    found = [
        (name, float((scores.sides_of(one) == 0).mean()), scorer.calibration.band(one).accepted.expected)
        for name, one in bands.items()
    ]
    assert scores.rule is not None
    return [*found, ("combined, 0.05", float(scores.valid.mean()), scores.rule.accepted.expected)]


def scorer_of(done: Trained) -> Scorer:
    """A scorer of a model that is not published."""
    draft = done.draft
    reference = Reference("made", "1")
    published = Published(reference, "", draft.card(reference), draft.model, draft.calibration, None)
    return Scorer(published, threads=cpu_quota())


def repeats(seeds: int) -> None:
    """Copies, groups, and rows that repeat by themselves."""
    for copies in (2, 4, 10):
        found = []
        for seed in range(seeds):
            generator = np.random.default_rng(seed)
            columns = made(1_200, generator)
            rows = generator.permutation(np.repeat(np.arange(1_200), copies))
            done = train_table(as_table(columns, rows), SMALL)
            assert done.draft.calibration_data["repeats"] == "copies"
            found.append(shares(scorer_of(done), scorer_of(done).model.input.array(as_table(made(1_000, generator)))))
        print_rates(f"each row {copies} times, {seeds} trainings", found)
    for values in (20, 5):
        found, repeated = [], []
        for seed in range(seeds):
            generator = np.random.default_rng(seed)
            columns = discrete(2_000, generator, values)
            done = train_table(as_table(columns), SMALL)
            assert done.draft.calibration_data["repeats"] == "natural"
            distinct = len(np.unique(np.stack(list(columns.values())), axis=1).T)
            repeated.append(1 - distinct / 2_000)
            scorer = scorer_of(done)
            found.append(shares(scorer, scorer.model.input.array(as_table(discrete(1_500, generator, values)))))
        print_rates(f"{100 * np.mean(repeated):.0f} % repeat by themselves, {seeds} trainings", found)
    found = []
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        sizes = generator.integers(1, 21, 400)
        group = np.repeat(np.arange(400), sizes).astype(str).astype(object)
        columns = made(len(group), generator, np.repeat(generator.normal(size=400), sizes))
        done = train_table(as_table(columns), SMALL, group=group)
        fresh = made(1_000, generator, generator.normal(size=1_000))  # one row of each of 1,000 new groups
        found.append(shares(scorer_of(done), scorer_of(done).model.input.array(as_table(fresh))))
    print_rates(f"groups of 1 to 20 rows, one row of each new group, {seeds} trainings", found)


# Kinds of bad cells, files, rows that were trained on


def with_constant() -> tuple[Scorer, dict[str, np.ndarray]]:
    """A model of a made table with a constant column and one with holes, and new rows."""
    generator = np.random.default_rng(0)
    columns = made(4_000, generator)
    columns["unit"] = np.full(4_000, 7.0)
    columns["extra"] = np.where(generator.random(4_000) < 0.1, np.nan, generator.normal(size=4_000))
    scorer, _ = trained("made", as_table(columns), SMALL)
    Store(STORE).set_default("made")
    fresh = made(10_000, generator)
    fresh["extra"] = np.where(generator.random(10_000) < 0.1, np.nan, generator.normal(size=10_000))
    return scorer, fresh


def json_rows(columns: dict[str, np.ndarray]) -> list[dict[str, object]]:
    listed = {
        name: [None if cell != cell else cell for cell in cells.tolist()]  # noqa: PLR0124  # NaN
        for name, cells in columns.items()
    }
    return [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]


BAD: dict[str, tuple[str, object]] = {
    "a constant that changed": ("unit", 9_999),
    "a column newly missing": ("heat", None),
    "a negative count": ("count", -3),
    "a half count": ("count", 7.5),
    "an unseen category": ("colour", "violet"),
    "text in a number's column": ("load", "oops"),
}


def kinds() -> None:
    """Six kinds of wrong cells, by the combined rule at 0.02."""
    scorer, fresh = with_constant()
    usual, rule = json_rows(fresh)[:200], ScoreOptions("combined", false_alarm=0.02)
    scorer.score(usual, rule)
    listing = Listing("200 rows each", "invalid", "right cell first", "rows/s, of clean ones", box=box.SIMPLE)
    listing.add_row("none", f"{np.mean(~scorer.score(usual, rule).valid):.3f}", "", "1")
    for what, (column, cell) in BAD.items():
        rows = [{**row, column: cell} for row in usual]
        scores = scorer.score(rows, rule)  # and learns the pattern of missing cells, once
        first = np.mean([bool(found) and found[0].column == column for found in scores.violations()])
        read, clean = scorer.read(rows), scorer.read(usual)
        ratio = np.median([timed(scorer, clean, rule) / timed(scorer, read, rule) for _ in range(5)])
        listing.add_row(what, f"{np.mean(~scores.valid):.3f}", f"{first:.3f}", f"{ratio:.2f}")
    CONSOLE.print(listing)
    whole = scorer.read(json_rows(fresh)[:2_000])
    without = replace_domains(scorer)
    ratios = [
        timed(without, whole[:, : scorer.model.input.features], rule) / timed(scorer, whole, rule) for _ in range(5)
    ]
    CONSOLE.print(f"2,000 clean rows, rows/s beside a version without domains: {np.median(ratios):.3f}")


def replace_domains(scorer: Scorer) -> Scorer:
    """The same model without domains, and so without violations to look for."""
    old = scorer.published
    calibration = replace(old.calibration, violations=None)
    card = old.card.model_copy(update={"domains": None})
    return Scorer(replace(old, card=card, calibration=calibration), threads=scorer.threads)


def timed(scorer: Scorer, rows: np.ndarray, options: ScoreOptions) -> float:
    started = time.perf_counter()
    scorer.score_read(rows, options)
    return time.perf_counter() - started


def as_csv(rows: Sequence[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def files(folder: Path) -> None:
    """10,000 rows with 37 unreadable cells by Python, JSON, NDJSON, CSV, `score` and `filter`."""
    import pyarrow.parquet as pq
    from starlette.testclient import TestClient
    from typer.testing import CliRunner

    from service.cli.app import app as cli
    from service.cli.main import COMMANDS
    from service.settings import Settings
    from service.web.app import create_app

    assert COMMANDS
    scorer, fresh = with_constant()
    rows = json_rows(fresh)
    generator = np.random.default_rng(2)
    spoilt = sorted(generator.choice(len(rows), 37, replace=False).tolist())
    columns = [str(generator.choice(["load", "heat", "speed", "count"])) for _ in spoilt]
    bad = [dict(row) for row in rows]
    for row, column in zip(spoilt, columns, strict=True):
        bad[row][column] = str(generator.choice(["oops", "inf", "#", "12..4"]))
    expected = scorer.score(rows, RULE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bad.csv").write_text(as_csv(bad))
    found: dict[str, list[dict[str, object]]] = {}
    flags = ["--model", "made", "--store", str(STORE), "--rule", "combined", "--false-alarm", "0.02"]
    CliRunner().invoke(cli, ["score", str(folder / "bad.csv"), *flags, "--out", str(folder / "scores.jsonl")])
    found["vouch score"] = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    command = ["filter", str(folder / "bad.csv"), *flags, "--out", str(folder / "filtered"), "--workers", "2"]
    CliRunner().invoke(cli, command)
    parts = sorted((folder / "filtered" / "scores").iterdir())
    found["vouch filter"] = [row for part in parts for row in pq.read_table(part).to_pylist()]
    settings = Settings(store=str(STORE), max_rows=20_000)
    with TestClient(create_app(settings)) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        place = "/score?model=made&rule=combined&false_alarm=0.02"
        found["HTTP JSON"] = client.post(place, json={"instances": bad}).json()["scores"]
        kind = {"content-type": "text/csv"}
        found["HTTP CSV"] = client.post(place, content=as_csv(bad).encode(), headers=kind).json()["scores"]
        lines = "\n".join(map(json.dumps, bad)).encode()
        kind = {"content-type": "application/x-ndjson"}
        answer = client.post(place, content=lines, headers=kind)
        found["HTTP NDJSON"] = [json.loads(line) for line in answer.text.splitlines()]
    heads = "door", "verdicts", "of 37 invalid", "cell named", "line named", "others equal to the bit"
    listing = Listing(*heads, box=box.SIMPLE)
    others = np.setdiff1d(np.arange(len(rows)), spoilt)
    for door, scores in found.items():
        invalid = sum(scores[row]["verdict"] == "invalid" for row in spoilt)
        named = sum(
            str(first_column(scores[row]["violations"])) == column for row, column in zip(spoilt, columns, strict=True)
        )
        lines_named = sum(scores[row].get("line") == row + 2 for row in spoilt)
        equal = all(
            scores[row]["log_likelihood"] == expected.log_likelihood[row]
            and scores[row]["p_value"] == expected.p_value[row]
            and (scores[row]["verdict"] == "valid") == expected.valid[row]
            for row in others.tolist()
        )
        listing.add_row(door, f"{len(scores):,}", str(invalid), str(named), str(lines_named), str(equal))
    CONSOLE.print(listing)


RULE = ScoreOptions("combined", false_alarm=0.02)


def first_column(violations: object) -> object:
    """The first column that is named, in JSON or in words."""
    return violations[0]["column"] if isinstance(violations, list) else str(violations).partition(":")[0]


def trained_on(trials: int) -> None:
    """Rows that were trained on are refused; discrete rows that repeat by themselves are not."""
    refused = honest = 0
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        columns = discrete(1_500, generator, 5 if seed % 2 else 20)
        quick = replace(SMALL, fit=replace(SMALL.fit, epochs=1))
        done = train_table(as_table(columns), quick)
        fingerprints, spec = done.draft.fingerprints, done.draft.model.input
        assert fingerprints is not None
        for rows in (discrete(1_000, generator, 5 if seed % 2 else 20),):
            try:
                fingerprints.check_unseen(spec.array(as_table(rows)), "made@1")
            except CalibrationError:
                honest += 1
        continuous = made(1_500, generator)
        done = train_table(as_table(continuous), quick)
        assert done.draft.fingerprints is not None
        try:
            done.draft.fingerprints.check_unseen(done.draft.model.input.array(as_table(continuous)), "made@1")
        except CalibrationError:
            refused += 1
    CONSOLE.print(f"of {trials}: the training file refused in {refused}, honest discrete rows refused in {honest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", action="append", choices=("rates", "repeats", "kinds", "files", "trained"))
    parser.add_argument("--seeds", type=int, default=10, help="trainings of each kind of repeats")
    parser.add_argument("--trials", type=int, default=50, help="trials of rows that were trained on")
    given = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "rates": lambda: rates(given.data),
        "repeats": lambda: repeats(given.seeds),
        "kinds": kinds,
        "files": lambda: files(Path("build/bad-cells-files")),
        "trained": lambda: trained_on(given.trials),
    }
    for name, part in parts.items():
        if given.part is None or name in given.part:
            part()


if __name__ == "__main__":
    main()
