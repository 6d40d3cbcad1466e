"""The one door between numbers and everything else: the service, the command line and notebooks call the same Scorer.

Rows come and go in the units of the training data. Every answer is a frozen dataclass of arrays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from service.data.inputs import InputSpec
from service.density.conditionals import ColumnDraws, ColumnEstimates
from service.density.estimator import Tiling, WeightedDraws, go_on, padded, worker_pool
from service.density.quasirandom import row_generator
from service.errors import CalibrationError, DamagedModelError, InputError
from service.scoring.expected import MemberDraws, Part, expected_cells, expected_rows, numbers
from service.scoring.model import Look, Member, shares_of
from service.scoring.statistics import Evidence, Witnesses, names_of
from service.settings import cpu_quota
from service.store.store import Published, Store
from service.vae.likelihoods import Likelihood
from service.vae.network import VAE
from service.vae.prior import base_points
from service.validity.band import SIDES, Band, Side, Verdict, exact, margins, percentiles_of, rank
from service.validity.column_ranks import ColumnSketch
from service.validity.conformal import Acceptance, Discoveries, Places, Tail, check_share
from service.validity.cross_conformal import leads, places_by_folds

USUAL_FALSE_ALARM = 0.01  # of the combined rule
MAX_PATTERNS = 256  # of missing cells, of which it is kept in memory what validation rows are like
POSTERIOR_DRAWS = 256  # of z, weighted, that a reconstruction rests on


@dataclass(frozen=True, slots=True)
class CombinedRule:
    """The rule that looks at several statistics: a row is invalid whose combined p-value is at most `false_alarm`.

    `rows` is how many validation rows it is by, and `statistics` the names of what is combined.
    """

    false_alarm: float
    rows: int
    statistics: tuple[str, ...]

    @staticmethod
    def of(evidence: Evidence, spec: InputSpec, false_alarm: float | None = None) -> CombinedRule:
        """At a rate of false alarms; by default the usual one, or the smallest that so many rows allow.

        Raises:
            CalibrationError: the rate is none, or too small for them.
        """
        rate = max(USUAL_FALSE_ALARM, 1.0 / (evidence.rows + 1)) if false_alarm is None else false_alarm
        check_share("false alarm rate", rate)
        if false_alarm is not None and rank(evidence.rows, 100 * exact(rate)) < 1:
            needed = -(-1 // exact(rate)) - 1
            raise CalibrationError(
                f"a combined false alarm rate of {rate:g} needs at least {needed:,} validation rows for the combination, "
                f"there are {evidence.rows:,}"
            )
        return CombinedRule(rate, evidence.rows, tuple(names_of(spec)))

    def are_valid(self, p_values: np.ndarray) -> np.ndarray:
        """Which rows it accepts, by their combined p-values: shape (B,), bool. A hair's room is for rounding."""
        return p_values > self.false_alarm * (1.0 + 1e-12)

    @property
    def accepted(self) -> Acceptance:
        """The share of valid rows that it accepts."""
        return Acceptance.of(self.rows + 1 - max(1, rank(self.rows, 100 * exact(self.false_alarm))), self.rows)


@dataclass(frozen=True, slots=True)
class Scores:
    """Verdicts on B rows and what they rest on; arrays of shape (B,).

    `khat` is NaN where there is no tail to fit. `p_value` is two-sided, `low_p_value` is small only for unlikely rows.
    `valid` is the verdict: that the row is inside the band or, where a `rule` was asked for, that its `combined_p_value` is
    above the rate. Then `evidence` (B, E) has the p-value of each of the rule's statistics; else NaN, and (B, 0).
    `missing` counts a row's missing cells. Such a row is judged beside validation rows with the same cells hidden: `low`
    and `high` are the ends of its own band. By folds every row has one.
    """

    band: Band
    rule: CombinedRule | None
    sides: np.ndarray
    valid: np.ndarray
    certain: np.ndarray
    reliable: np.ndarray
    log_likelihood: np.ndarray
    std_error: np.ndarray
    ess: np.ndarray
    khat: np.ndarray
    num_samples: np.ndarray
    percentile: np.ndarray
    p_value: np.ndarray
    low_p_value: np.ndarray
    missing: np.ndarray
    low: np.ndarray
    high: np.ndarray
    combined_p_value: np.ndarray
    evidence: np.ndarray

    def __len__(self) -> int:
        return len(self.log_likelihood)

    def discoveries(self, level: float, tail: Tail = "low") -> Discoveries:
        """The rows to reject together so that at most a share `level` of them are valid, in expectation.

        Nothing of this is proved for p-values by folds (`Calibration.check_has_no_folds`).

        Raises:
            CalibrationError: the level is none.
        """
        if self.rule is not None:
            return Discoveries.of(self.combined_p_value, level, "low", self.rule.rows)
        p_values = self.low_p_value if tail == "low" else self.p_value
        return Discoveries.of(p_values, level, tail, self.band.rows)

    def sides_of(self, percentiles: tuple[float, float]) -> np.ndarray:
        """The sides of another band: -1 below, 0 inside, 1 above, shape (B,), int. A hair's room is for rounding."""
        low, high = percentiles[0] / 100.0, 1.0 - percentiles[1] / 100.0
        is_low = self.low_p_value <= low * (1.0 + 1e-12)
        is_high = (self.p_value <= 2.0 * high * (1.0 + 1e-12)) & (self.p_value < 2.0 * self.low_p_value)
        return is_high.astype(int) - is_low.astype(int)

    @property
    def side(self) -> list[Side]:
        """`below`, `inside` or `above` the band."""
        return [SIDES[side + 1] for side in self.sides.tolist()]

    @property
    def verdict(self) -> list[Verdict]:
        """`valid` inside the band, ends included, or by the combined evidence; else `invalid`."""
        return ["valid" if one else "invalid" for one in self.valid.tolist()]


@dataclass(frozen=True, slots=True)
class ExplainedScores(Scores):
    """Scores with the N columns most to blame for each row, of the smallest p-value first; arrays of shape (B, N).

    `columns` holds their numbers, -1 where a row has no more; `cells` what the row has there. `column_log_likelihood` is
    log p(x_j | all other columns), with its standard error and whether it is `column_reliable`, `column_p_value` the share
    of validation cells that are as unlikely. The others let expect `expected`, a mean inside `expected_low` to
    `expected_high`, which hold nine tenths, or a category of `expected_probability`; what does not apply is NaN.
    """

    columns: np.ndarray
    cells: np.ndarray
    column_log_likelihood: np.ndarray
    column_std_error: np.ndarray
    column_reliable: np.ndarray
    column_p_value: np.ndarray
    expected: np.ndarray
    expected_low: np.ndarray
    expected_high: np.ndarray
    expected_probability: np.ndarray


@dataclass(frozen=True, slots=True)
class Reconstructions:
    """What the model makes of B rows: `mean` (B, D), `draws` (B, N, D), `feature_log_likelihood` (B, D)."""

    mean: np.ndarray
    draws: np.ndarray
    feature_log_likelihood: np.ndarray


@dataclass(frozen=True, slots=True)
class Samples:
    """Ancestral samples: `latents` (N, L) from the prior and `samples` (N, D) given them."""

    seed: int
    latents: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True, slots=True)
class Encodings:
    """q(z | x) of B rows: `mean` and `std` (B, L), and `draws` from it (B, N, L)."""

    mean: np.ndarray
    std: np.ndarray
    draws: np.ndarray


@dataclass(frozen=True, slots=True)
class Manifold:
    """E[x | z] over a grid of two latents: `latents` (size * size, L) and `means` (size * size, D), row-major."""

    axes: tuple[int, int]
    latents: np.ndarray
    means: np.ndarray


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """log p(x) of B rows, shape (B,), by each network, (B, V), and of their columns given the others, (B, D), nats.

    `statistics` are of shape (B, K). What was not wanted is of shape (B, 0).
    """

    log_likelihood: np.ndarray
    by_member: np.ndarray
    columns: np.ndarray
    statistics: np.ndarray


@dataclass(frozen=True, slots=True)
class Detail:
    """What is to be known of rows beside log p(x)."""

    columns: bool = False
    evidence: bool = False


PLAIN = Detail()


@dataclass(frozen=True, slots=True)
class RowPart:
    """A network's outputs, shape (S, P), for draws of z for one row, and their log weights, (S,), among all networks'."""

    likelihood: Likelihood
    output: Tensor
    log_weights: np.ndarray

    def of_one_row(self) -> Part:
        """The same as a batch of one."""
        return Part(self.likelihood, self.output[None], np.exp(self.log_weights)[None])


@dataclass(frozen=True, slots=True)
class Beside:
    """What validation rows are like, perhaps with some cells hidden: their scores, ascending, and what else is known.

    `folds` says which fold each score is of, where there are some.
    """

    scores: np.ndarray
    folds: np.ndarray | None = None
    columns: ColumnSketch | None = None
    evidence: Evidence | None = None

    def is_enough(self, detail: Detail) -> bool:
        """Whether what is asked is known."""
        if detail.evidence and self.evidence is None:
            return False
        return len(self.scores) > 0 and (self.columns is not None or not detail.columns)


NOTHING = Beside(np.zeros(0))
Answer = Scores | Reconstructions | Encodings | Likelihoods
A = TypeVar("A", bound=Answer)


def part(answer: A, rows: slice) -> A:
    """Some rows of an answer about B rows, such as `Scores`."""
    return with_arrays(answer, {name: value[rows] for name, value in arrays_of(answer).items()})


def joined(answers: Sequence[A]) -> A:
    """Answers about rows that follow each other as one answer."""
    if len(answers) == 1:
        return answers[0]
    columns = [arrays_of(answer) for answer in answers]
    together = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    return with_arrays(answers[0], together)


def with_arrays(answer: A, arrays: dict[str, np.ndarray]) -> A:
    """An answer with other arrays."""
    changed: A = replace(cast("Any", answer), **arrays)
    return changed


def arrays_of(answer: A) -> dict[str, np.ndarray]:
    """An answer's arrays, each with a row's part at that row's place."""
    values = ((entry.name, getattr(answer, entry.name)) for entry in fields(answer))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


class Scorer:
    """A published model, ready to answer. Build one with `service.load`.

    Methods take rows of shape (B, D) or (B, *input shape), in any numeric type, and raise `InputError` for rows that
    cannot be read.
    """

    def __init__(self, published: Published, device: torch.device | None = None, threads: int = 1) -> None:
        self.published = published
        self.model = published.model
        self.calibration = published.calibration
        self.calibration.check_belongs_to(self.model)
        self.band = self.calibration.band()
        for one in self.model.members:
            one.vae.to(device or torch.device("cpu"))
        self.pool = worker_pool(threads) if threads > 1 else None
        self.by_pattern: OrderedDict[bytes, Beside] = OrderedDict()
        self.patterns = threading.Lock()

    @property
    def latents(self) -> int:
        """L, the number of latents."""
        return self.model.vae.architecture.latents

    def warm_up(self) -> None:
        """Score some rows, so that the first request does not pay for what torch sets up once.

        They are the golden rows that the version carries, where it does.

        Raises:
            DamagedModelError: they score otherwise than when the version was published.
        """
        golden = self.published.golden
        if golden is None:
            self.score(self.sample(1, seed=0).samples)
            return
        try:
            golden.check(self.model, self.calibration)
        except DamagedModelError as error:
            raise DamagedModelError(f"{self.published.reference}: {error}") from None

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Check rows and cast them to float32, shape (B, D)."""
        return self.model.input.rows(np.asarray(rows))

    def score(
        self,
        rows: np.ndarray,
        percentiles: tuple[float, float] | None = None,
        checkpoint: Callable[[], None] = go_on,
        explain: int = 0,
        combined: bool = False,
        false_alarm: float | None = None,
        tail: Tail = "both",
    ) -> Scores:
        """Estimate log p(x) of each row and place it among the validation rows.

        Args:
            percentiles: another band for this call, from the same validation scores.
            checkpoint: called every few milliseconds of work; what it raises ends the call.
            explain: how many columns to blame; then the answer is `ExplainedScores`.
            combined: judge by all evidence instead of the band.
            false_alarm: the share of valid rows that may be called invalid; by default the calibration's, or the usual one
                of the combined rule.
            tail: of a false alarm rate of the band: `low` for unlikely rows alone.

        Raises:
            InputError: rows that cannot be read.
            CalibrationError: percentiles that the number of validation rows cannot give, or columns or evidence that no
                calibration knows.
        """
        if false_alarm is not None and not combined:
            percentiles = percentiles_of(false_alarm, tail)
        band = self.band if percentiles is None else self.calibration.band(percentiles)
        rule = self.rule(false_alarm) if combined else None
        rows = self.rows(rows)
        holes = np.isnan(rows)
        # Rows stop once clear of the pilot band's ends; this band's are not quite those, and may need a closer look.
        detail = Detail(explain > 0, combined)
        look = self.look(rows, detail, band.ends, checkpoint)
        estimates = look.estimates
        everything = Beside(self.calibration.scores, self.calibration.folds)
        judged = judgements(everything, band, look, np.full(len(rows), True))
        patterns = []
        for pattern in distinct_patterns(holes):
            chosen = (holes == pattern).all(axis=1)
            beside = self.beside(pattern, detail, checkpoint)
            patterns.append((chosen, beside))
            own_band = Band.fit(beside.scores, band.percentiles, band.folds)
            for whole, theirs in zip(judged, judgements(beside, own_band, look, chosen), strict=True):
                whole[chosen] = theirs
        sides, certain, percentiles_, p_values, low_p_values, low, high = judged
        valid, combined_p_value, evidence = sides == 0, np.full(len(rows), np.nan), np.zeros((len(rows), 0))
        if rule is not None:
            combined_p_value, certain, evidence = self.weighed(look, rule, patterns)
            valid = rule.are_valid(combined_p_value)
        scores = Scores(
            band=band,
            rule=rule,
            sides=sides,
            valid=valid,
            certain=certain,
            reliable=estimates.reliable,
            log_likelihood=estimates.log_likelihood,
            std_error=estimates.std_error,
            ess=estimates.ess,
            khat=estimates.khat,
            num_samples=estimates.num_samples,
            percentile=percentiles_,
            p_value=p_values,
            low_p_value=low_p_values,
            missing=holes.sum(axis=1),
            low=low,
            high=high,
            combined_p_value=combined_p_value,
            evidence=evidence,
        )
        if look.columns is None:
            return scores
        return self.explained(scores, rows, look.columns, look.draws, explain, patterns)

    def look(
        self, rows: np.ndarray, detail: Detail, ends: tuple[float, ...], checkpoint: Callable[[], None] = go_on
    ) -> Look:
        """What the model finds of checked rows, shape (B, D)."""
        suspect = self.sketch().suspect if detail.columns else None
        witnesses = self.witnesses if detail.evidence else None
        return self.model.look(rows, suspect, witnesses, self.pool, ends, checkpoint)

    # All evidence together

    def evidence(self) -> Evidence:
        """What further statistics of validation rows are like.

        Raises:
            CalibrationError: this version has none.
        """
        if self.calibration.evidence is None:
            raise CalibrationError(
                f"{self.published.reference} was calibrated without evidence to combine, or on too few rows: calibrate it "
                "again"
            )
        return self.calibration.evidence

    def rule(self, false_alarm: float | None = None) -> CombinedRule:
        """The combined rule at a rate of false alarms.

        Raises:
            CalibrationError: this version has no evidence, or too little for that rate.
        """
        return CombinedRule.of(self.evidence(), self.model.input, false_alarm)

    @cached_property
    def witnesses(self) -> Witnesses:
        """The networks, beside the known rows of the evidence."""
        return self.model.witnesses(self.evidence().known)

    def weighed(
        self, look: Look, rule: CombinedRule, patterns: Sequence[tuple[np.ndarray, Beside]]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Combined p-values of B rows, whether no error of log p(x) could turn the verdict, and all p-values, (B, E).

        `patterns` says which rows, by a mask (B,), are to be compared with other validation rows than complete ones.
        """
        assert look.statistics is not None
        spec, estimates = self.model.input, look.estimates
        width = margins(estimates.std_error, estimates.reliable)
        complete = np.ones(len(width), dtype=bool)
        for alike, _ in patterns:
            complete &= ~alike
        compared = [(complete, self.evidence()), *((alike, beside.evidence) for alike, beside in patterns)]
        p_value, certain = np.ones(len(width)), np.ones(len(width), dtype=bool)
        evidence = np.ones((len(width), len(rule.statistics)))
        for chosen, with_those in compared:
            assert with_those is not None
            statistics = look.statistics[chosen]
            p_value[chosen] = with_those.combination.p_value(statistics)
            evidence[chosen] = with_those.p_values(statistics, spec)
            less, more = (
                rule.are_valid(with_those.combination.p_value(shifted(statistics, sign * width[chosen])))
                for sign in (-1, 1)
            )
            certain[chosen] = less == more
        return p_value, certain, evidence

    # Columns to blame

    def sketch(self) -> ColumnSketch:
        """What columns of validation rows are like.

        Raises:
            CalibrationError: this version is older than that.
        """
        if self.calibration.columns is None:
            raise CalibrationError(
                f"{self.published.reference} was calibrated before columns were explained: calibrate it again"
            )
        return self.calibration.columns

    def explained(
        self,
        scores: Scores,
        rows: np.ndarray,
        columns: ColumnEstimates,
        draws: Sequence[ColumnDraws],
        count: int,
        patterns: Sequence[tuple[np.ndarray, Beside]],
    ) -> ExplainedScores:
        """The columns most to blame, at most `count` of each of the rows, (B, D), and what was expected there.

        `patterns` says which rows, by a mask (B,), are to be compared with other validation rows than complete ones.
        """
        p_values = self.sketch().p_values(columns.log_likelihood)
        chosen = self.sketch().most_to_blame(columns.log_likelihood, p_values, count)  # (B, N)
        for alike, beside in patterns:
            assert beside.columns is not None
            given = columns.log_likelihood[alike]
            p_values[alike] = beside.columns.p_values(given)
            chosen[alike] = beside.columns.most_to_blame(given, p_values[alike], count)
        members = [
            MemberDraws(one.vae.likelihood, partial(self.decoded, one.vae), drawn)
            for one, drawn in zip(self.model.members, draws, strict=True)
        ]
        expected = expected_cells(self.model.input, members, rows, chosen)

        def there(values: np.ndarray) -> np.ndarray:
            return np.where(chosen < 0, np.nan, np.take_along_axis(values, np.maximum(chosen, 0), axis=1))

        shared = {entry.name: getattr(scores, entry.name) for entry in fields(scores)}
        return ExplainedScores(
            **shared,
            columns=chosen,
            cells=there(rows.astype(np.float64)),
            column_log_likelihood=there(columns.log_likelihood),
            column_std_error=there(columns.std_error),
            column_reliable=there(columns.reliable) > 0,
            column_p_value=there(p_values),
            expected=expected[..., 0],
            expected_low=expected[..., 1],
            expected_high=expected[..., 2],
            expected_probability=expected[..., 3],
        )

    # Rows with holes

    def unknown_patterns(self, rows: np.ndarray, detail: Detail = PLAIN) -> list[np.ndarray]:
        """The masks of missing cells, shape (D,), among checked rows (B, D) of which too little is remembered."""
        return [
            pattern
            for pattern in distinct_patterns(np.isnan(rows))
            if not self.by_pattern.get(pattern.tobytes(), NOTHING).is_enough(detail)
        ]

    def reference_rows(self, pattern: np.ndarray) -> np.ndarray:
        """The validation rows beside which rows with such holes are judged, shape (k, D)."""
        assert self.calibration.reference is not None
        return self.calibration.reference.with_holes(pattern)

    def likelihoods(self, rows: np.ndarray, detail: Detail, checkpoint: Callable[[], None] = go_on) -> Likelihoods:
        """log p(x) of checked rows, shape (B, D), and what else is wanted of them."""
        look, nothing = self.look(rows, detail, (), checkpoint), np.zeros((len(rows), 0))
        return Likelihoods(
            look.estimates.log_likelihood,
            np.stack([one.log_likelihood for one in look.by_member], axis=1),
            nothing if look.columns is None else look.columns.log_likelihood,
            nothing if look.statistics is None else look.statistics,
        )

    def remember(self, pattern: np.ndarray, found: Likelihoods) -> Beside:
        """Keep what a pattern's reference rows are like; the least used are forgotten."""
        assert self.calibration.reference is not None
        scores, folds = found.log_likelihood, self.calibration.reference.folds_with_holes(pattern)
        if folds is not None:
            scores = np.take_along_axis(found.by_member, folds[:, None], axis=1)[:, 0]
        order = np.argsort(scores, kind="stable")
        columns = ColumnSketch.fit(found.columns, self.sketch().suspect) if found.columns.size else None
        evidence = None
        if found.statistics.size:
            evidence = Evidence.fit(self.evidence().known, found.statistics, self.model.input)
        with self.patterns:
            before = self.by_pattern.get(pattern.tobytes(), NOTHING)
            beside = Beside(
                scores[order],
                None if folds is None else folds[order],
                columns or before.columns,
                evidence or before.evidence,
            )
            self.by_pattern[pattern.tobytes()] = beside
            while len(self.by_pattern) > MAX_PATTERNS:
                self.by_pattern.popitem(last=False)
        return beside

    def beside(self, pattern: np.ndarray, detail: Detail, checkpoint: Callable[[], None]) -> Beside:
        """What validation rows with the same cells hidden are like: remembered, or estimated now."""
        with self.patterns:
            known = self.by_pattern.get(pattern.tobytes(), NOTHING)
            if known.is_enough(detail):
                self.by_pattern.move_to_end(pattern.tobytes())
                return known
        return self.remember(pattern, self.likelihoods(self.reference_rows(pattern), detail, checkpoint))

    def reconstruct(self, rows: np.ndarray, draws: int = 0) -> Reconstructions:
        """E[x | z] over p(z | x), by the importance weights, with draws and each column's log p(x_j | z).

        Draws resample z by the weights and then x given z, from the row's own seed. The last is the log of the weighted
        mean of p(x_j | z); it includes x_j itself.
        """
        spec, rows = self.model.input, self.rows(rows)
        x = spec.encode(rows)
        estimator, members = self.model.estimator, self.model.members
        means, observed, features = [], [], []
        with torch.inference_mode():
            drawing = [estimator.draws(one.vae, one.codebook, x, POSTERIOR_DRAWS) for one in members]
            done = 0
            for tiles in zip(*drawing, strict=True):
                for index in range(tiles[0].rows):
                    parts = self.posterior(tiles, index)
                    means.append(expected_rows(spec, [one.of_one_row() for one in parts])[0])
                    features.append(self.feature_log_likelihood(parts, x[done]))
                    observed.append(spec.decode(self.posterior_draws(parts, x[done], draws)))
                    done += 1
        width = spec.features
        measures = spec.transform.log_measures(rows)
        feature = np.reshape(features, (len(x), width)) + measures
        return Reconstructions(
            mean=np.reshape(means, (len(x), width)),
            draws=np.reshape(observed, (len(x), draws, width)),
            # Masses are at most 1, whatever rounding says; densities may be more.
            feature_log_likelihood=np.where(measures == 0.0, np.minimum(feature, 0.0), feature),
        )

    def posterior(self, tiles: Sequence[WeightedDraws], index: int) -> list[RowPart]:
        """What each network's draws for a row, number `index` of the tiles, say of it."""
        log_masses = [numbers(tile.log_weights[:, index]) - np.log(len(tile.log_weights)) for tile in tiles]
        total = np.logaddexp.reduce(np.concatenate(log_masses))
        return [
            RowPart(one.vae.likelihood, self.decoded(one.vae, tile.z[:, index]), masses - total)
            for one, tile, masses in zip(self.model.members, tiles, log_masses, strict=True)
        ]

    def feature_log_likelihood(self, parts: Sequence[RowPart], row: np.ndarray) -> np.ndarray:
        """log of the weighted mean of p(x_j | z) for each column of one of the network's rows, shape (D,)."""
        given = [
            self.model.input.by_column(
                numbers(one.likelihood.log_prob(one.output, torch.from_numpy(row).to(one.output)))
            )
            + one.log_weights[:, None]
            for one in parts
        ]
        return np.logaddexp.reduce(np.concatenate(given), axis=0)

    def posterior_draws(self, parts: Sequence[RowPart], row: np.ndarray, draws: int) -> np.ndarray:
        """x given z for so many of the draws of z, picked by their weights: shape (draws, D'), in the network's units."""
        seed = int(row_generator(row, self.model.estimator.seed + 1).integers(2**62))
        generator = torch.Generator().manual_seed(seed)
        drawn = np.zeros((draws, len(row)))
        if not draws:
            return drawn
        weights = torch.from_numpy(np.exp(np.concatenate([one.log_weights for one in parts])))
        picks = torch.multinomial(weights, draws, replacement=True, generator=generator)
        start = 0
        for one in parts:
            mine = (picks >= start) & (picks < start + len(one.output))
            chosen = (picks[mine] - start).to(one.output.device)
            drawn[mine.numpy()] = numbers(one.likelihood.sample(one.output[chosen], generator))
            start += len(one.output)
        return drawn

    def sample(self, num: int, seed: int, of: str = "observation") -> Samples:
        """Ancestral samples: z from the prior, then x given z (`observation`) or E[x | z] (`mean`).

        Of an ensemble, equal parts from each network, one after the other.
        """
        generator = torch.Generator().manual_seed(seed)
        latents, samples = [], []
        with torch.inference_mode():
            for one, part in zip(self.model.members, shares_of(num, len(self.model.members)), strict=True):
                z = one.vae.prior.draw(part, generator)
                output = self.decoded(one.vae, z.to(one.vae.device, one.vae.dtype))
                latents.append(numbers(z))
                samples.append(
                    self.means(one.vae, output)
                    if of == "mean"
                    else self.model.input.decode(numbers(one.vae.likelihood.sample(output, generator)))
                )
        return Samples(seed, np.concatenate(latents), np.concatenate(samples))

    def means(self, vae: VAE, output: Tensor) -> np.ndarray:
        """E[x | z] for a decoder's outputs, shape (N, P), in the units of the training data: shape (N, D)."""
        return expected_rows(self.model.input, [Part(vae.likelihood, output[:, None], np.ones((len(output), 1)))])

    def member(self, number: int) -> Member:
        """One of the model's networks.

        Raises:
            InputError: there are not so many.
        """
        members = self.model.members
        if not 0 <= number < len(members):
            raise InputError(f"member {number} is not there: the model has {len(members)}, counted from 0")
        return members[number]

    def encode(self, rows: np.ndarray, draws: int = 0, member: int = 0) -> Encodings:
        """q(z | x) of each row, and draws from it by the row's own seed; of an ensemble, by one of its networks."""
        x = self.model.input.encode(self.rows(rows))
        vae = self.member(member).vae
        length = Tiling.of(vae).rows
        means, stds = [np.zeros((0, self.latents))], [np.zeros((0, self.latents))]
        with torch.inference_mode():
            for start in range(0, len(x), length):
                block = x[start : start + length]
                posterior = vae.posterior(torch.from_numpy(padded(block, length)).to(vae.device, vae.dtype))
                means.append(numbers(posterior.mean)[: len(block)])
                stds.append(numbers(posterior.std)[: len(block)])
        mean, std = np.concatenate(means), np.concatenate(stds)
        seed = self.model.estimator.seed + 2  # not the noise of the score
        noise = [row_generator(row, seed).standard_normal((draws, self.latents)) for row in x]
        drawn = mean[:, None] + std[:, None] * np.reshape(noise, (len(x), draws, self.latents))
        return Encodings(mean, std, drawn)

    def decode(self, latents: np.ndarray, member: int = 0) -> np.ndarray:
        """E[x | z] for latents of shape (B, L): shape (B, D); of an ensemble, by one of its networks."""
        vae = self.member(member).vae
        z = np.asarray(latents)
        if z.ndim != 2 or z.shape[1] != self.latents:
            raise InputError(f"the latents have shape {z.shape}, the model reads (rows, {self.latents})")
        with np.errstate(over="ignore", invalid="ignore"):
            z = z.astype(np.float32)
        if not np.isfinite(z).all():
            raise InputError("some latents are not finite float32 numbers")
        with torch.inference_mode():
            output = self.decoded(vae, torch.from_numpy(z).to(vae.device, vae.dtype))
            means = self.means(vae, output)
        if not np.isfinite(means).all():
            raise InputError("some latents are so far out that the decoder overflows")
        return means

    def manifold(self, size: int, axes: tuple[int, int] = (0, 1), member: int = 0) -> Manifold:
        """E[x | z] over a grid of prior quantiles u = (i + 0.5) / size of two latents, the others at their means.

        The first axis runs along a row, the second from row to row, given the first where they depend on each other.
        """
        if self.latents < 2:
            raise InputError("the model has one latent, a manifold needs two")
        if axes[0] == axes[1] or not all(0 <= axis < self.latents for axis in axes):
            raise InputError(f"axes are two different latents from 0 to {self.latents - 1}")
        latents = self.member(member).vae.prior.plane(axes, base_points(size)).numpy()
        return Manifold(axes, latents, self.decode(latents, member))

    def decoded(self, vae: VAE, z: Tensor) -> Tensor:
        """A decoder's output for z, shape (N, L), through tiles of a fixed shape: shape (N, P)."""
        length = Tiling.of(vae).evaluations
        outputs = [z.new_zeros((0, vae.likelihood.sizes(vae.architecture.features)[1]))]
        for tile in z.split(length):
            full = torch.cat([tile, tile.new_zeros((length - len(tile), tile.shape[1]))])
            outputs.append(vae.decoder(full)[: len(tile)])
        return torch.cat(outputs)


def distinct_patterns(holes: np.ndarray) -> list[np.ndarray]:
    """The different masks of missing cells among those of B rows, shape (B, D), but for that of complete rows."""
    if not holes.any():
        return []
    return [pattern for pattern in np.unique(holes, axis=0) if pattern.any()]


def shifted(statistics: np.ndarray, nats: np.ndarray) -> np.ndarray:
    """Statistics of rows whose log p(x) is so much more: both sides of it come first."""
    moved = statistics.copy()
    moved[:, 0] -= nats
    moved[:, 1] += nats
    return moved


def judgements(beside: Beside, band: Band, look: Look, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sides, certain, percentiles, p-values and the band's ends for some rows, by a mask, (B,): an array each."""
    log_likelihood = look.estimates.log_likelihood[rows]
    if beside.folds is None:
        places = Places.of(beside.scores, log_likelihood)
        certain = band.certain(log_likelihood, look.estimates.std_error[rows], look.estimates.reliable[rows])
        low, high = np.full(len(log_likelihood), band.low), np.full(len(log_likelihood), band.high)
    else:
        by_each = np.stack([one.log_likelihood[rows] for one in look.by_member])  # (V, B)
        margin = np.stack([margins(one.std_error[rows], one.reliable[rows]) for one in look.by_member])
        places, less, more = (
            places_by_folds(beside.scores, beside.folds, by_each + shift) for shift in (0.0, -margin, margin)
        )
        certain = band.sides_of(less) == band.sides_of(more)
        lower, higher = leads(beside.scores, beside.folds, by_each, band.outside)
        low, high = log_likelihood - lower, log_likelihood + higher
    return (
        band.sides_of(places),
        certain,
        places.percentile,
        places.two_sided_p_value,
        places.low_p_value,
        low,
        high,
    )


def load_scorer(store: Store, name: str | None = None, device: str = "auto", threads: int | None = None) -> Scorer:
    """Load and verify a model of the store: NAME, NAME@VERSION, NAME@ALIAS, or None for the default.

    Args:
        threads: how many cores score rows side by side; None: all that this process may use.
    """
    return Scorer(store.load(store.resolve(name)), torch_device(device), threads or cpu_quota())


def torch_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one that works; `cpu` or `cuda` as said."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no GPU")
    return torch.device(name)
