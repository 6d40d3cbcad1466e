"""VAEDetector: the model as a scikit-learn outlier detector, for pipelines, grid searches and benchmarks.

Needs the extra `sklearn`. The service never imports it.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np

try:
    from sklearn.base import BaseEstimator, OutlierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("VAEDetector needs the extra: pip install '.[sklearn]'") from error

from service.data.columns import CategoryColumn, NumberColumn
from service.data.detect import Detection, detect
from service.data.frames import is_frame, raw_frame
from service.data.inputs import InputSpec, Mixed
from service.data.kinds import ColumnKind, Schema, infer
from service.data.learn import learn, plain_number
from service.data.table import FLOAT32_MAX, Kind, Table, is_missing
from service.density import starts
from service.density.estimate import Execution, Member
from service.density.estimator import SETTINGS, Estimator, SettingName
from service.density.tiling import worker_pool
from service.errors import DataError, VouchError
from service.scoring.calibration import known_rows, typical_cells, whole_rows
from service.scoring.model import Model
from service.scoring.statistic_kinds import has_cells, weights_of
from service.scoring.statistics import KnownRows
from service.system.cpus import cpu_quota
from service.training.fit import FitOptions
from service.training.inputs import table_architecture
from service.training.networks import fitted
from service.training.recipe import TABLE_FIT, PriorName, Recipe, Split
from service.vae.mixed import Real
from service.vae.network import Architecture
from service.validity.band import rank
from service.validity.combination import Combination

USUAL_FALSE_ALARM = 5  # percent of held-out rows that are refused if contamination is "auto"
MIN_ROWS = 2
MAX_LATENTS = 16


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Detect outliers as rows with a low log p(x) under a variational autoencoder fitted to the training rows.

    NaN and None are missing cells. Scores are importance-sampled estimates of log p(x) of the present cells, in nats;
    with the rule `combined` they combine several test statistics (`service.scoring.statistics`). Lower scores are more
    outlying.

    Parameters:
        columns: `plain`: numbers are standardised and have normal likelihoods, text is categorical; `inferred`:
            columns are read as `vouch train` reads a table, with counts, ordinal columns, curved scales and atoms,
            which suits tables of many rows.
        latents: number of latents; default: the number of columns, at most 16.
        hidden: widths of the hidden layers.
        prior: `normal`, `mixture` (of normals), or `auto`: the one that makes held-out rows more likely.
        ensemble: number of networks whose densities are averaged; each holds out different rows.
        steps: minimum number of optimizer steps.
        batch_size: rows per step.
        importance_samples: importance samples of the IWAE bound that is fitted.
        estimator: how log p(x) is estimated: `fast`, `standard` or `thorough`.
        validation_fraction: share of the rows held out for early stopping.
        rule: what `score_samples` returns: `log_likelihood` or `combined`.
        contamination: share of outliers among the training rows, above 0 and at most 0.5; the threshold is that
            quantile of their scores. `auto` takes all of them for valid and refuses at most a twentieth of held-out
            rows.
        random_state: makes a fit repeatable.

    Attributes:
        model_: the fitted model.
        offset_: the threshold: `decision_function` is `score_samples` minus this.
        validation_bound_: mean bound on log p(x) of the held-out rows, nats.
        n_features_in_, feature_names_in_: as in every scikit-learn estimator.
    """

    def __init__(
        self,
        *,
        columns: Literal["plain", "inferred"] = "plain",
        latents: int | None = None,
        hidden: tuple[int, ...] = (128, 128),
        prior: PriorName = "auto",
        ensemble: int = 3,
        steps: int = 1_000,
        batch_size: int = 256,
        importance_samples: int = TABLE_FIT.importance_samples,
        estimator: SettingName = "fast",
        validation_fraction: float = 0.1,
        rule: Literal["log_likelihood", "combined"] = "log_likelihood",
        contamination: float | str = "auto",
        random_state: Any = None,
    ) -> None:
        self.columns = columns
        self.latents = latents
        self.hidden = hidden
        self.prior = prior
        self.ensemble = ensemble
        self.steps = steps
        self.batch_size = batch_size
        self.importance_samples = importance_samples
        self.estimator = estimator
        self.validation_fraction = validation_fraction
        self.rule = rule
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803  # scikit-learn's name
        """Fit to rows, shape (n, d): an array of numbers, or a data frame that may hold text.

        Raises:
            ValueError: rows cannot be read, or a parameter is out of range.
        """
        self._check_parameters()
        table = self._table(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        try:
            held_out = self._fit_table(table, seed)
        except VouchError as error:
            raise ValueError(str(error)) from error
        if isinstance(self.contamination, str):
            scores = np.sort(held_out)
            self.offset_ = float(scores[max(1, rank(len(scores), Fraction(USUAL_FALSE_ALARM))) - 1])
        else:
            self.offset_ = float(np.percentile(self._score_table(table), 100.0 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:  # noqa: N803
        """log p(x) of each row, nats, or minus the combined statistic; shape (n,). Lower is more outlying."""
        check_is_fitted(self)
        return self._score_table(self._table(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """`score_samples` minus the threshold: negative for outliers."""
        scores = self.score_samples(X)
        return scores - self.offset_

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """1 for inliers, -1 for outliers, shape (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # Internals

    def _fit_table(self, table: Table, seed: int) -> np.ndarray:
        """Fit the model; return scores of held-out rows, each by the member that did not see it."""
        transform = Mixed(columns=self._learnt(table))
        names = tuple(column.name for column in transform.columns)
        spec = InputSpec(kind="table", shape=(len(names),), columns=names, transform=transform, precision="float64")
        rows = spec.rows(np.clip(spec.array(table), -FLOAT32_MAX, FLOAT32_MAX))
        architecture: Architecture | None = None
        members, bounds, held_out, typical = [], [], [], list[KnownRows]()
        execution = Execution(worker_pool(cpu_quota()))
        for number in range(self.ensemble):
            recipe = self._recipe(seed + number, len(names), bool(np.isnan(rows).any()))
            if architecture is None:
                architecture = self._architecture(transform, recipe, len(rows))
            else:
                recipe = replace(recipe, prior="mixture" if architecture.prior_components else "normal")
            order = np.random.default_rng(recipe.fit.seed).permutation(len(rows))
            held = min(max(1, round(self.validation_fraction * len(rows))), len(rows) - 1)
            split = Split(train=rows[order[held:]], validation=rows[order[:held]], calibration=rows[:0])
            (vae,), report, _ = fitted(spec, [split], architecture, recipe)
            architecture = vae.architecture
            members.append(Member(vae, starts.build(vae, spec.encode(split.validation))))
            bounds.append(report.validation.bound)
            alone = Model(spec, Estimator.of(self.estimator), (members[-1],))
            if self.rule == "log_likelihood":
                held_out.append(alone.estimates(split.validation, execution=execution).log_likelihood)
                continue
            known = known_rows(alone, split.train, split.validation, execution)
            assert known is not None
            if has_cells(spec):
                known = replace(known, cells=typical_cells(alone, split.validation, execution))
            typical.append(known)
            statistics = alone.assess(
                split.validation, statistics=alone.row_statistics(known), execution=execution
            ).statistics
            assert statistics is not None
            held_out.append(statistics)
        self.model_ = Model(spec, Estimator.of(self.estimator), tuple(members))
        self.validation_bound_ = float(np.mean(bounds))
        if self.rule == "log_likelihood":
            return np.concatenate(held_out)
        known = KnownRows.of(whole_rows(self.model_, rows), spec)
        self.row_statistics_ = self.model_.row_statistics(known.with_averages(typical))
        statistics = np.concatenate(held_out)
        self.combination_ = Combination(np.sort(statistics, axis=0), np.zeros(0), *weights_of(spec))
        return -self.combination_.combine(statistics)

    def _recipe(self, seed: int, columns: int, has_missing: bool) -> Recipe:
        """The options of one member's fit."""
        return Recipe(
            latents=self.latents or max(1, min(MAX_LATENTS, columns)),
            hidden=tuple(self.hidden),
            prior=self.prior,
            hide=Recipe().hide if has_missing else 0.0,
            fit=FitOptions(
                steps=self.steps,
                batch_size=self.batch_size,
                importance_samples=self.importance_samples,
                learning_rate=TABLE_FIT.learning_rate,
                averaging=TABLE_FIT.averaging,
                seed=seed,
            ),
        )

    def _architecture(self, transform: Mixed, recipe: Recipe, rows: int) -> Architecture:
        """The network that all members share."""
        architecture = table_architecture(transform, recipe, rows)
        if self.columns == "inferred":
            return architecture
        # Only the default floor limits how sharp a density may be, whatever a column's steps.
        kinds = (Real() if isinstance(column, Real) else column for column in architecture.columns)
        return replace(architecture, columns=tuple(kinds))

    def _learnt(self, table: Table) -> tuple[NumberColumn | CategoryColumn, ...]:
        """The table's columns, with what is learnt from its rows: scales, categories, atoms."""
        if self.columns == "inferred":
            return learn(detected(infer(table)), table)
        if all(is_missing(cell) for cells in table.columns for cell in cells.tolist()):
            raise DataError("the rows have no value in any column")
        return tuple(
            learn(Schema(columns=(ColumnKind(name=name, kind="category"),)), table)[0]
            if cells.dtype == object
            else plain_number(name, cells)
            for name, cells in zip(table.names, table.columns, strict=True)
            if not all(map(is_missing, cells.tolist()))
        )

    def _score_table(self, table: Table) -> np.ndarray:
        """Scores of a table's rows under the rule, shape (n,); lower is more outlying."""
        model, execution = self.model_, Execution(worker_pool(cpu_quota()))
        rows = model.input.rows(np.clip(model.input.array(table), -FLOAT32_MAX, FLOAT32_MAX))
        if self.rule == "log_likelihood":
            return model.estimates(rows, execution=execution).log_likelihood
        statistics = model.assess(rows, statistics=self.row_statistics_, execution=execution).statistics
        assert statistics is not None
        return -self.combination_.combine(statistics)

    def _table(self, X: Any, reset: bool) -> Table:  # noqa: N803
        """Rows as a table; only data frames may have text columns."""
        if is_frame(X) and not is_plain_numbers(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if len(X) < MIN_ROWS and reset:
                raise ValueError(f"Found array with {len(X)} sample(s), expected at least {MIN_ROWS}")
            raw = raw_frame(X)
            if raw.left_out:
                raise ValueError(f"column {next(iter(raw.left_out))!r} holds lists or objects, expected single values")
            found = detect(raw, Detection(bad_cells="category")).columns
            return Table(tuple(f"x{at}" for at in range(len(found))), tuple(column.cells for column in found))
        array = validate_data(
            self,
            X,
            reset=reset,
            dtype=np.float64,
            ensure_all_finite="allow-nan",
            ensure_min_samples=MIN_ROWS if reset else 1,
        )
        # Columns are named by position: scikit-learn checks their real names.
        return Table(tuple(f"x{at}" for at in range(array.shape[1])), tuple(array.T))

    def _check_parameters(self) -> None:
        """Raise if a parameter is out of range.

        Raises:
            ValueError: names the parameter.
        """
        contamination = self.contamination
        if contamination != "auto" and not (isinstance(contamination, int | float) and 0 < contamination <= 0.5):
            raise ValueError("contamination: expected 'auto' or a number above 0 and at most 0.5")
        if self.columns not in ("plain", "inferred"):
            raise ValueError("columns: expected plain or inferred")
        if self.estimator not in SETTINGS:
            raise ValueError(f"estimator: expected one of {', '.join(SETTINGS)}")
        if self.rule not in ("log_likelihood", "combined"):
            raise ValueError("rule: expected log_likelihood or combined")
        if self.prior not in ("normal", "mixture", "auto"):
            raise ValueError("prior: expected normal, mixture or auto")
        if not 0 < self.validation_fraction < 1:
            raise ValueError("validation_fraction: expected a number between 0 and 1")
        if self.ensemble < 1 or self.steps < 1 or self.batch_size < 1:
            raise ValueError("ensemble, steps and batch_size: expected numbers of at least 1")
        if any(width < 1 for width in self.hidden) or (self.latents is not None and self.latents < 1):
            raise ValueError("latents and hidden: expected numbers of at least 1")


def detected(schema: Schema) -> Schema:
    """Column kinds for a detector. Constant and identifier columns are kept: a change in them is suspicious."""
    kinds: dict[str, Kind] = {"constant": "category", "an identifier: numbers in a row": "real"}
    columns = (
        column if column.kind != "ignored" else ColumnKind(name=column.name, kind=kinds.get(column.why, "ignored"))
        for column in schema.columns
    )
    return Schema(columns=tuple(columns))


def is_plain_numbers(frame: Any) -> bool:
    """Whether all columns of a data frame are numpy's numbers, which scikit-learn checks itself."""
    return hasattr(frame, "dtypes") and all(isinstance(kind, np.dtype) and kind.kind in "uif" for kind in frame.dtypes)
