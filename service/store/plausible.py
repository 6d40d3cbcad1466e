"""Whether a version can have come out of a training: what is intact by its hashes may still be wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from service.data.inputs import InputSpec
from service.errors import DamagedModelError
from service.scoring.calibration import Calibration
from service.scoring.golden import Golden
from service.scoring.groups import Groups
from service.scoring.reference_rows import ReferenceRows
from service.scoring.statistics import KnownRows
from service.scoring.version import Card
from service.vae.network import VAE, Architecture
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import Combination
from service.validity.violations import CODES, ViolationReference

MAX_LAYERS = 64
WEIGHTS, CALIBRATION = "weights.safetensors", "calibration.safetensors"


def architecture_problem(architecture: Architecture, spec: InputSpec) -> str | None:
    """Why a network cannot be one of an input; looked at before anything of its size is built."""
    image, shape = architecture.image, (*spec.shape, 1)[:3] if spec.kind == "image" else ()
    if len(architecture.hidden) > MAX_LAYERS or min((*architecture.hidden, architecture.latents)) < 1:
        return "it has impossible layers"
    if image and (image != shape or math.prod(image) != architecture.features or image[2] not in (1, 3)):
        return "its images are not those of the input"
    if architecture.network == "conv" and not (image and architecture.hidden):
        return "convolutions need images, and channels"
    return None


def check_weights(label: str, architecture: Architecture, spec: InputSpec, tensors: Mapping[str, Tensor]) -> None:
    """Raise unless tensors are finite and those of the architecture: checked before anything of its size is allocated.

    Raises:
        DamagedModelError: names the first tensor that is not.
    """
    problem = architecture_problem(architecture, spec)
    if problem:
        raise DamagedModelError(f"{label}: the card's network cannot be built: {problem}")
    try:
        with torch.device("meta"):  # shapes alone
            expected = {name: tensor.shape for name, tensor in VAE(architecture).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise DamagedModelError(f"{label}: the card's network cannot be built: {type(error).__name__}") from None
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            where = "the card" if name in tensors else WEIGHTS
            raise DamagedModelError(f"{label}: {WEIGHTS} does not match the card: {where} has no {name}")
        if tensors[name].shape != expected[name]:
            shapes = f"{list(tensors[name].shape)}, the card means {list(expected[name])}"
            raise DamagedModelError(f"{label}: {WEIGHTS} does not match the card: {name} has shape {shapes}")
        if not tensors[name].isfinite().all():
            raise DamagedModelError(f"{label}: {WEIGHTS}: {name} has values that are not finite")


def check_calibration(label: str, card: Card, calibration: Calibration, golden: Golden | None) -> None:
    """Raise if no calibration could have given these numbers.

    Raises:
        DamagedModelError: says what is wrong.
    """
    problem = (
        scores_problem(calibration.scores)
        or band_problem(card, calibration)
        or (calibration.columns and sketch_problem(calibration.columns, card.input.features))
        or (calibration.reference and reference_problem(calibration.reference, card.input.features))
        or patterns_problem(calibration, card.input.features)
        or (calibration.statistics and combination_problem(calibration.statistics.combination))
        or domains_problem(card, calibration)
        or (calibration.violations and violations_problem(calibration.violations, len(calibration.scores)))
        or (calibration.groups and groups_problem(calibration.groups, calibration))
        or (calibration.statistics and known_problem(calibration.statistics.known))
        or (golden and golden_problem(golden, card.input.features))
    )
    if problem:
        raise DamagedModelError(f"{label}: {CALIBRATION}: {problem}")


def scores_problem(scores: np.ndarray) -> str | None:
    """Rows that rank below every number have -inf."""
    if np.isnan(scores).any() or np.isposinf(scores).any() or not np.isfinite(scores).any():
        return "some validation scores are not finite"
    finite = scores[np.isfinite(scores)]
    return "all validation scores are equal" if len(finite) > 1 and finite[0] == finite[-1] else None


def band_problem(card: Card, calibration: Calibration) -> str | None:
    band = calibration.band().ends_or_none
    if tuple(card.calibration.band) != tuple(band):
        return f"the card's band is {list(card.calibration.band)}, that of the validation scores is {list(band)}"
    return None


def sketch_problem(sketch: ColumnSketch, features: int) -> str | None:
    shapes = sketch.suspect.shape, sketch.counts.shape, sketch.median.shape, sketch.values.shape[1:]
    if set(shapes) != {(features,)}:
        return "the columns' distributions have the wrong shapes"
    if np.isnan(sketch.suspect).any() or not (np.isfinite(sketch.values).all() and np.isfinite(sketch.median).all()):
        return "the columns' distributions are not finite"
    observed = sketch.values[:, sketch.counts > 0]
    if (sketch.counts < 0).any() or (np.diff(observed, axis=0) < 0).any():
        return "the columns' distributions are not ascending"
    return None


def reference_problem(reference: ReferenceRows, features: int) -> str | None:
    rows, missing = reference.rows, reference.missing
    if rows.shape != missing.shape or rows.shape[1:] != (features,) or missing.dtype != bool:
        return "the reference rows have the wrong shape"
    return None if np.isfinite(rows).all() else "some reference rows are not finite"


def patterns_problem(calibration: Calibration, features: int) -> str | None:
    reference = calibration.reference
    for one in calibration.patterns:
        if reference is None or one.mask.shape != (features,) or one.mask.dtype != bool or not one.mask.any():
            return "a pattern of missing cells does not match the input"
        if len(one.estimates.log_likelihood) != len(reference.usable(one.mask)):
            return "a pattern of missing cells has estimates of other rows"
        numbers = (one.estimates.log_likelihood, one.estimates.by_member, one.estimates.statistics)
        if not all(np.isfinite(array).all() for array in numbers):
            return "the estimates for a pattern of missing cells are not finite"
    return None


def combination_problem(combination: Combination) -> str | None:
    readable = combination.combined[combination.combined < np.inf]  # others rank below every number
    arrays = (combination.parts, readable, combination.weights, combination.scales)
    if not all(np.isfinite(array).all() for array in arrays):
        return "the statistics of the combined rule are not finite"
    if (combination.weights < 0).any() or not combination.weights.any() or (combination.scales <= 0).any():
        return "the statistics of the combined rule have weights that are not positive"
    if not combination.parts.size or not readable.size:
        return "the statistics of the combined rule have no rows"
    if (np.diff(combination.parts, axis=0) < 0).any() or (combination.combined[1:] < combination.combined[:-1]).any():
        return "the statistics of the combined rule are not ascending"
    if len(readable) > 1 and readable[0] == readable[-1]:
        return "all combined statistics of validation rows are equal"
    return None


def domains_problem(card: Card, calibration: Calibration) -> str | None:
    """Why the card's domains are not those of its columns, or are not what calibrates the violations."""
    if card.domains is None:
        return None if calibration.violations is None else "violations are calibrated, and the card has no domains"
    if not card.input.reads_missing or len(card.domains.columns) != card.input.features:
        return "the card's domains are not those of its columns"
    names = [one.name for one in card.domains.beside]
    if len(set(names)) < len(names) or set(names) & set(card.input.columns or ()):
        return "the columns beside the card's input are not columns of their own"
    width = len(card.domains.columns) + len(names)
    violations = calibration.violations
    return (
        None if violations is None or violations.codes.shape[1:] == (width,) else "the violations have the wrong shape"
    )


def violations_problem(violations: ViolationReference, rows: int) -> str | None:
    codes, counts = violations.codes, violations.counts
    if codes.dtype != np.uint8 or codes.ndim != 2 or counts.shape != codes.shape[:1] or (codes >= CODES).any():
        return "the violations have the wrong shape"
    if (counts < 1).any() or violations.lowest < 0 or violations.rows != rows:
        return "the violations are not those of the validation rows"
    return None


def groups_problem(groups: Groups, calibration: Calibration) -> str | None:
    """Why some group is not one of a calibration's rows."""
    members = groups.members if groups.plan.has_pool else groups.members[1:]
    if calibration.folds is not None or sum(len(one.scores) for one in members) > len(calibration.scores):
        return "the groups are not those of the validation rows"
    for one in members:
        combined = None if one.statistics is None else one.statistics.combination
        problem = (
            # Rows of a group may all be equal, and many of them may rank below every number.
            (np.isnan(one.scores).any() and "some validation scores are not finite")
            or ((one.scores[1:] < one.scores[:-1]).any() and "the validation scores are not ascending")
            or (combined and not_of_statistics(combined))
            or ((one.violations is None) != (calibration.violations is None) and "it lacks violations")
            or (one.violations and violations_problem(one.violations, len(one.scores)))
        )
        if problem:
            return f"group {one.name}: {problem}"
    return None


def not_of_statistics(combination: Combination) -> str | None:
    """Why numbers cannot be the statistics of a group's rows."""
    if np.isnan(combination.combined).any() or not np.isfinite(combination.parts).all() or not combination.parts.size:
        return "the statistics of the combined rule are not finite"
    if (np.diff(combination.parts, axis=0) < 0).any() or (combination.combined[1:] < combination.combined[:-1]).any():
        return "the statistics of the combined rule are not ascending"
    return None


def known_problem(known: KnownRows) -> str | None:
    if not len(known.rows) or np.isinf(known.rows).any():
        return "the known rows are not finite"
    if not np.isfinite(known.usual).all() or not (known.usual[1] > 0).all():
        return "what is usual in columns is not finite"
    if not all(np.isfinite(array).all() for array in known.appearances.values()):
        return "the known images' appearances are not finite"
    return None if known.cells is None else sketch_problem(known.cells, known.rows.shape[1])


def golden_problem(golden: Golden, features: int) -> str | None:
    count = len(golden.rows)
    shapes = {array.shape for name, array in golden.arrays().items() if name != "rows"}
    if not count or golden.rows.shape != (count, features) or not shapes <= {(count,), (count, 2)}:
        return "the golden rows have the wrong shape"
    finite = all(np.isfinite(array).all() for name, array in golden.arrays().items() if name != "rows")
    return None if finite and not np.isinf(golden.rows).any() else "the golden rows are not finite"
