"""The same networks, calibrated on other rows: for another estimator, band or rule, or by groups.

Never imported by the running service.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from service.data.domains import Domains
from service.density.estimate import Execution
from service.density.estimator import Estimator
from service.density.tiling import worker_pool
from service.errors import DataError
from service.files.readers import Rows
from service.scoring.calibration import calibrated, readable
from service.scoring.groups import Terms
from service.scoring.missing_patterns import with_usual_patterns
from service.scoring.model import suited
from service.scoring.options import RuleName
from service.scoring.pace import PREPARING
from service.scoring.statistics import KnownRows
from service.scoring.version import Draft, Published
from service.system.cpus import cpu_quota
from service.training.aside import with_rows_aside
from service.training.course import Course, TrainingProgress, seconds_a_row
from service.training.recipe import (
    MOST_CALIBRATION,
    MOST_VALIDATION,
    TO_PUBLISH,
    Recipe,
    Split,
    calibration_needed,
    least_calibration,
)
from service.training.repeats import one_of_each
from service.training.selftest import with_selftest
from service.training.train import planned, rows_for_groups

PILOT_SHARE = 0.1


def recalibrate(
    published: Published,
    data: Rows,
    estimator: Estimator | None = None,
    percentiles: tuple[float, float] | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    groups: np.ndarray | None = None,
    rule: tuple[RuleName, float | None] | None = None,
    by: str | None = None,
) -> Draft:
    """The same network, calibrated on other rows, or for another estimator, band or rule.

    A random tenth of the rows are the pilot rows, some are for the self-test, and the rest calibrate, up to the most that
    count (`service.training.recipe`).

    Args:
        data: rows as the version's reader reads them, shape (N, D + C).
        groups: which rows belong together, shape (N,): one of each is used.
        rule: by which rows are judged that are asked about without one, and its rate; default: the version's.
        by: the column by whose groups rows are compared, '' for none; default: the version's.

    Raises:
        DataError: the column has no groups, or too small ones.
        CalibrationError: the rows are too few for the band, the rule or a group.
    """
    generator = np.random.default_rng(0)
    order = generator.permutation(len(data.array)) if groups is None else one_of_each(groups, generator)
    pilot, rest = np.split(order, [min(MOST_VALIDATION, round(PILOT_SHARE * len(order)))])
    card = published.card.calibration
    name, rate = rule or (card.rule, card.false_alarm)
    recipe = Recipe(percentiles=percentiles or card.percentiles, rule=name, false_alarm=rate, by=by or None)
    terms, least = Terms(recipe.percentiles, None if by == "" else card.groups), least_calibration(recipe)
    if by:
        known = published.calibration.statistics
        if known is None:
            raise DataError("--by: the version keeps no training rows, whose groups would count: train it anew")
        calibrating = data.array[rest[:MOST_CALIBRATION]]
        terms, least = planned(published.model.input, recipe, Split(known.known.rows, pilot, calibrating), least)
    elif terms.groups is not None and published.calibration.statistics is not None:
        training, needed = (
            published.calibration.statistics.known.rows,
            calibration_needed(replace(recipe, least=TO_PUBLISH)),
        )
        least = max(least, rows_for_groups(published.model.input, terms.groups, training, data.array[rest], needed))
    (split,), aside = with_rows_aside([Split(order[:0], pilot, rest, pilot)], least)
    spec = published.model.input
    rows = data.array[split.calibration[:MOST_CALIBRATION]]
    return recalibrate_on(
        published.judging(name, rate),
        data.array[pilot],
        rows,
        data.digest(),
        estimator,
        aside.map(lambda chosen: data.array[chosen]).terms(terms, spec),
        on_progress=on_progress,
        testing=data.array[aside.testing],
    )


def recalibrate_on(
    published: Published,
    pilot: np.ndarray,
    rows: np.ndarray,
    data_digest: str,
    estimator: Estimator | None = None,
    terms: Terms | None = None,
    known: np.ndarray | KnownRows | None = None,
    on_progress: Callable[[TrainingProgress], None] | None = None,
    domains: Domains | None = None,
    testing: np.ndarray | None = None,
) -> Draft:
    """Recalibrate on pilot rows and calibration rows that are already split.

    `known` are rows that the network was fitted to, among which neighbours are searched; default: those of the old
    calibration. `domains` are those of the rows that it was fitted to; default: the version's. `testing` are rows for the
    self-test; without any there is none. By default the percentiles and groups are those of the version.

    Raises:
        CalibrationError: the rows are too few for the band, the rule or a group.
    """
    old, statistics, card = published.model, published.calibration.statistics, published.card.calibration
    if known is None and statistics is not None:
        known = statistics.known
    domains, reader = domains or published.card.domains, published.card.reader()
    pilot, rows = (old.input.read(one, reader) for one in (pilot, rows))
    course = Course(on_progress)
    chosen = old.estimator if estimator is None else suited(estimator, old.input, old.vae.architecture)
    course.enter(PREPARING)
    if course.is_followed and len(pilot):
        course.seconds_a_row = seconds_a_row(old.vae, old.input, chosen, readable(old.input, pilot))
    model, calibration = calibrated(
        [one.vae for one in old.members],
        old.input,
        chosen,
        pilot,
        rows,
        terms or Terms(card.percentiles, card.groups),
        Execution(worker_pool(cpu_quota())),
        old.input.rows(known) if isinstance(known, np.ndarray) else known,
        course.pace(old.vae, len(rows)),
        domains,
    )
    calibration = with_usual_patterns(model, calibration, Execution(worker_pool(cpu_quota())), course.until)
    data: dict[str, Any] = {
        "digest": data_digest,
        "rows": len(rows),
        "pilot_rows": len(pilot),
        "from": str(published.reference),
    }
    if testing is not None and len(testing):
        data["test_rows"] = len(testing)
    if terms is not None and terms.weighing is not None:
        data["weighing_rows"] = len(terms.weighing)
    draft = published.again(model, calibration, data).judging(card.rule, card.false_alarm)
    draft = replace(draft, domains=domains)
    if testing is not None and len(testing):
        draft = with_selftest(draft, testing, course)
    course.end()
    return draft
