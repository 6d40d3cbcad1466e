"""Verdicts: the service, the command line and notebooks all call the same Scorer.

Rows and results are in the units of the training data. Every result is a frozen dataclass of arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property, partial

import numpy as np
import torch

from service.data.cells import CellReader
from service.data.domains import MISSING, Domains, is_lowest, num_unreadable
from service.data.frames import Rows, array_of
from service.density.estimate import DIRECT, Execution
from service.density.tiling import Workers, worker_pool
from service.errors import CalibrationError, DamagedModelError, InputError
from service.scoring.expected import MemberDraws, strangest_of_each
from service.scoring.generator import Generator
from service.scoring.groups import HIDDEN, Groups
from service.scoring.judgement import Compared, Violations, judge_by_band, judge_combined
from service.scoring.missing_patterns import Comparison, MissingPatterns, distinct_patterns
from service.scoring.model import Assessment
from service.scoring.options import DEFAULT, EXPLAINING_EVALUATIONS, PLAIN, Detail, RuleName, ScoreOptions
from service.scoring.pixel_maps import PixelMaps
from service.scoring.scores import CombinedRule, ExplainedScores, Scores
from service.scoring.statistic_kinds import has_cells
from service.scoring.statistics import ReferenceStatistics, RowStatistics
from service.scoring.version import Published
from service.system.cancellation import CheckCancelled, never_cancelled
from service.validity.column_ranks import ColumnSketch


class Scorer(Generator):
    """A published model, ready to score. Create one with `service.load`.

    Methods take rows of shape (B, D) or (B, *input shape), in any numeric type, or rows by column name: a data frame
    (pandas, polars, Arrow), a dict, or a list of dicts, with their columns in any order. They raise `InputError` for rows
    that cannot be read; missing and unknown columns are named.
    """

    def __init__(self, published: Published, device: torch.device | None = None, threads: int = 1) -> None:
        super().__init__(published.model)
        self.published = published
        self.calibration = published.calibration
        self.domains = published.card.domains or Domains.unknown(published.card.input)
        self.reader = published.card.reader()
        self.calibration.check_belongs_to(self.model)
        self.band = self.calibration.band()
        for one in self.model.members:
            one.vae.to(device or torch.device("cpu"))
        self.threads = threads
        self.patterns = MissingPatterns(self.model, self.calibration, self.assess)

    @property
    def pool(self) -> Workers | None:
        """Threads that share the blocks of rows; a forked process has new ones."""
        return worker_pool(self.threads) if self.threads > 1 else None

    def rows(self, rows: Rows) -> np.ndarray:
        """Check rows without unreadable cells and cast them to the input's precision, shape (B, D)."""
        return self.read_by(replace(self.reader, is_strict=True), rows)[:, : self.model.input.features]

    def read(self, rows: Rows, is_strict: bool = False) -> np.ndarray:
        """Check rows for `score_read`, shape (B, D + C): C further cells say whether columns that were constant still are.

        Unless `is_strict`, a cell that cannot be read makes its row invalid, if the model's rows may have missing cells.
        """
        return self.read_by(self.judging_reader(is_strict), rows)

    def read_by(self, reader: CellReader, rows: Rows) -> np.ndarray:
        """Check rows by a reader of cells, shape (B, D + C)."""
        is_numbers = isinstance(rows, np.ndarray) and rows.dtype != object
        return self.model.input.read(reader.padded(rows) if is_numbers else array_of(rows, reader), reader)

    def warm_up(self) -> None:
        """Score some rows, so that the first request does not pay for torch's one-time setup.

        If the version has golden rows, these are scored and checked.

        Raises:
            DamagedModelError: the golden rows score differently than at publication.
        """
        golden = self.published.golden
        if golden is None:
            self.score(self.sample(1, seed=0).samples)
            return
        try:
            golden.check(self.model, self.calibration)
        except DamagedModelError as error:
            raise DamagedModelError(f"{self.published.reference}: {error}") from None

    def resolved(self, options: ScoreOptions) -> ScoreOptions:
        """The options with this version's rule where they name none."""
        of_version = self.published.card.calibration
        return options.or_default(of_version.rule, of_version.false_alarm)

    def check(self, options: ScoreOptions) -> None:
        """Check that this version supports the options, before any row is read.

        Raises:
            CalibrationError: too few validation rows for the band or the rate, or the calibration lacks what is requested.
            InputError: the model's input has no maps.
        """
        options = self.resolved(options)
        if options.band_percentiles is not None:
            band = self.calibration.band(options.band_percentiles)
            self.calibration.grouping(self.model.input, band, None)
        if options.explain:
            self.column_sketch()
        if options.maps:
            PixelMaps.check(self.model.input)
            self.reference_statistics()
        if options.rule == "combined":
            self.combined_rule(options.false_alarm)
        if options.fdr is not None:
            self.calibration.check_has_no_folds()

    def score(
        self, rows: Rows, options: ScoreOptions = DEFAULT, check_cancelled: CheckCancelled = never_cancelled
    ) -> Scores:
        """Estimate log p(x) of each row and rank it among the validation rows.

        Args:
            options: how to judge; with `explain`, the result is `ExplainedScores`.
            check_cancelled: called every few milliseconds of work; an exception that it raises ends the call.

        Raises:
            InputError: rows that cannot be read.
            CalibrationError: as for `check`.
        """
        return self.score_read(self.read(rows, options.strict), options, check_cancelled)

    def score_read(
        self, rows: np.ndarray, options: ScoreOptions = DEFAULT, check_cancelled: CheckCancelled = never_cancelled
    ) -> Scores:
        """The scores of rows that have been checked (`read`), shape (B, D + C)."""
        options = self.resolved(options)
        execution, detail = Execution(self.pool, check_cancelled), options.detail
        band = self.calibration.band(options.band_percentiles) if options.band_percentiles else self.band
        rule = self.combined_rule(options.false_alarm) if options.rule == "combined" else None
        spec = self.model.input
        codes = self.domains.codes(spec, rows)
        lowest, rows = is_lowest(codes, spec.features), rows[:, : spec.features]
        missing = np.isnan(rows)
        # Rows stop once clear of the pilot band's ends; this band's ends differ a little and must be cleared as well.
        ends = band.ends if self.groups is None else self.groups.ends(band)
        assessment = self.assess(rows, detail, execution, ends)
        group = self.group_numbers(rows, lowest)
        compared = self.compared(missing, lowest, group, detail, execution)
        everything = Comparison(
            self.calibration.scores, self.calibration.folds, self.calibration.columns, self.calibration.statistics
        )
        judged, estimates = judge_by_band(band, assessment, everything, compared, lowest), assessment.estimates
        valid, certain = judged.sides == 0, judged.certain
        combined_p_value, evidence = np.full(len(rows), np.nan), np.zeros((len(rows), 0))
        if rule is not None:
            violations = Violations(codes, lowest, self.calibration.violations)
            combined = judge_combined(rule, spec, assessment, everything, compared, violations)
            combined_p_value, certain, evidence = combined.p_value, combined.certain, combined.p_values
            valid = rule.are_valid(combined_p_value) & ~lowest
        scores = Scores(
            band=band,
            rule=rule,
            sides=judged.sides,
            valid=valid,
            certain=certain,
            reliable=estimates.reliable,
            log_likelihood=estimates.log_likelihood,
            std_error=estimates.std_error,
            ess=estimates.ess,
            khat=estimates.khat,
            num_samples=estimates.num_samples,
            evaluations=estimates.evaluations,
            percentile=judged.percentile,
            p_value=judged.p_value,
            low_p_value=judged.low_p_value,
            missing=missing.sum(axis=1) - num_unreadable(codes),
            low=judged.low,
            high=judged.high,
            combined_p_value=combined_p_value,
            evidence=evidence,
            unreadable=lowest,
            codes=codes,
            group=group,
            by_column=assessment.by_column if options.maps else None,
            grouping=self.calibration.grouping(spec, band, rule),
            domains=self.domains,
            spec=spec,
        )
        if assessment.columns is None or not options.explain:
            return scores
        return self.explained(scores, rows, assessment, options.explain, compared, check_cancelled)

    def compared(
        self, missing: np.ndarray, lowest: np.ndarray, group: np.ndarray, detail: Detail, execution: Execution
    ) -> list[Compared]:
        """What those rows are compared with that are not compared with all validation rows.

        These are rows with missing cells, given by a mask of shape (B, D), and rows of groups.
        """
        found = [
            Compared((missing == pattern).all(axis=1) & ~lowest, self.patterns.comparison(pattern, detail, execution))
            for pattern in distinct_patterns(missing[~lowest])
        ]
        if self.groups is not None:
            present = np.unique(group[group != HIDDEN]).tolist()
            found += [Compared(group == number, self.of_group(number)) for number in present]
        return found

    def assess(
        self, rows: np.ndarray, detail: Detail = PLAIN, execution: Execution = DIRECT, ends: tuple[float, ...] = ()
    ) -> Assessment:
        """Assess checked rows, shape (B, D), in the requested detail."""
        suspect = self.column_sketch().suspect if detail.columns else None
        statistics = self.row_statistics if detail.statistics else None
        return self.model.assess(rows, ends, suspect, statistics, execution)

    def extra_cost(self, options: ScoreOptions) -> int:
        """Cost per row in addition to its score, in decoder evaluations of a usual size, of options that name a rule."""
        statistics, extra = self.calibration.statistics, options.extra_evaluations
        judges_cells = options.rule == "combined" and not options.explain and statistics is not None
        if judges_cells and statistics is not None and has_cells(self.model.input, statistics.known.generation):
            extra += EXPLAINING_EVALUATIONS
        return extra * self.model.evaluation_cost

    # Groups

    @property
    def groups(self) -> Groups | None:
        """The groups that the version is calibrated by."""
        return self.calibration.groups

    def group_numbers(self, rows: np.ndarray, lowest: np.ndarray) -> np.ndarray:
        """The group that each of checked rows, (B, D), is compared with, which rank below every number or not: (B,).

        Raises:
            InputError: a row lacks a cell, and not that of its group.
        """
        if self.groups is None:
            return np.zeros(len(rows), dtype=int)
        self.model.input.check_whole(rows, self.groups.plan.column)
        return self.groups.plan.numbers(self.model.input, rows, lowest)

    def of_group(self, number: int) -> Comparison:
        """What rows of a group are compared with."""
        assert self.groups is not None
        one = self.groups.members[number]
        return Comparison(one.scores, None, self.calibration.columns, one.statistics, one.violations)

    def finest(self, rule: RuleName) -> int:
        """The number of validation rows behind the finest p-values of a rule, at its usual rate."""
        combined = self.combined_rule() if rule == "combined" else None
        grouping = self.calibration.grouping(self.model.input, self.band, combined)
        if grouping is not None:
            return grouping.finest
        return self.band.rows if combined is None else combined.finest

    def judging_reader(self, is_strict: bool = False) -> CellReader:
        """A reader of cells for rows to judge; those of a version with groups must be whole, but for their group."""
        whole_but = None if self.groups is None else self.groups.plan.column
        return replace(self.reader, is_strict=is_strict, whole_but=whole_but)

    # Parts of a calibration that some versions lack

    def reference_statistics(self) -> ReferenceStatistics:
        """Reference distributions of the further test statistics.

        Raises:
            CalibrationError: this version has none.
        """
        if self.calibration.statistics is None:
            raise CalibrationError(
                f"{self.published.reference} was calibrated without the combined rule, or on too few rows for it: run "
                "`vouch calibrate`"
            )
        return self.calibration.statistics

    def combined_rule(self, false_alarm: float | None = None) -> CombinedRule:
        """The combined rule at a false-alarm rate.

        Raises:
            CalibrationError: this version has no statistics to combine, or too few rows for that rate.
        """
        self.reference_statistics()
        return self.calibration.combined_rule(self.model.input, false_alarm)

    @cached_property
    def row_statistics(self) -> RowStatistics:
        """Computes the test statistics that the combined rule needs."""
        return self.model.row_statistics(self.reference_statistics().known)

    def column_sketch(self) -> ColumnSketch:
        """Distribution of log p(x_j | x_-j) in each column of validation rows.

        Raises:
            CalibrationError: this version was calibrated before explanations existed.
        """
        if self.calibration.columns is None:
            raise CalibrationError(
                f"{self.published.reference} was calibrated before explanations existed: run `vouch calibrate`"
            )
        return self.calibration.columns

    # Suspicious columns

    def pixel_maps(self, scores: Scores, rows: np.ndarray) -> PixelMaps:
        """Where images do not belong, from their scores with `maps` and the images as rows, shape (B, D)."""
        assert scores.by_column is not None
        usual = self.reference_statistics().known.usual
        return PixelMaps.of(self.model.input, rows[:, : self.model.input.features], scores.by_column, usual)

    def explained(
        self,
        scores: Scores,
        rows: np.ndarray,
        assessment: Assessment,
        count: int,
        compared: Sequence[Compared],
        check_cancelled: CheckCancelled = never_cancelled,
    ) -> ExplainedScores:
        """Scores with the most suspicious columns of rows, (B, D), at most `count` for each, and what was expected there.

        `compared` lists the rows that are not compared with all validation rows.
        """
        columns, draws = assessment.columns, assessment.draws
        assert columns is not None
        p_values = self.column_sketch().p_values(columns.log_likelihood)
        wrong = scores.codes[:, : rows.shape[1]] > MISSING if scores.codes.size else np.zeros(rows.shape, dtype=bool)
        chosen = self.column_sketch().most_suspicious(columns.log_likelihood, p_values, count, wrong)  # (B, N)
        for one in compared:
            sketch, given = one.comparison.columns, columns.log_likelihood[one.rows]
            assert sketch is not None
            p_values[one.rows] = sketch.p_values(given)
            chosen[one.rows] = sketch.most_suspicious(given, p_values[one.rows], count, wrong[one.rows])
        members = [
            MemberDraws(one.vae.likelihood, partial(self.decoded, one.vae), drawn)
            for one, drawn in zip(self.model.members, draws, strict=True)
        ]
        columns_told, expected = strangest_of_each(self.model.input, members, rows, chosen, check_cancelled)

        def there(values: np.ndarray, at: np.ndarray = chosen) -> np.ndarray:
            return np.where(at < 0, np.nan, np.take_along_axis(values, np.maximum(at, 0), axis=1))

        shared = {entry.name: getattr(scores, entry.name) for entry in fields(scores)}
        return ExplainedScores(
            **shared,
            columns=columns_told,
            cells=there(rows.astype(np.float64), columns_told),
            column_log_likelihood=there(columns.log_likelihood),
            column_std_error=there(columns.std_error),
            column_reliable=there(columns.reliable) > 0,
            column_p_value=there(p_values),
            expected=expected[..., 0],
            expected_low=expected[..., 1],
            expected_high=expected[..., 2],
            expected_probability=expected[..., 3],
        )


def torch_device(name: str) -> torch.device:
    """The device for `auto` (a GPU if torch sees one, else the CPU), `cpu` or `cuda`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' requested, but torch sees no GPU")
    return torch.device(name)
