"""A version's card and tensors, to files and back. Nothing is ever unpickled.

Tensor names are literals: published models keep them, however the fields here are renamed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from service.data.inputs import InputSpec
from service.density.estimate import MISSING_SAMPLES, MISSING_TOLERANCE
from service.errors import DamagedModelError
from service.scoring.calibration import Calibration
from service.scoring.fingerprints import Fingerprints
from service.scoring.golden import Golden
from service.scoring.groups import POOL, POOL_NAME, Group, Groups
from service.scoring.reference_rows import PATTERN_ROWS, PatternEstimates, ReferenceRows
from service.scoring.scores import ReferenceEstimates, arrays_of, concatenated, rows_of
from service.scoring.statistic_kinds import (
    APPEARANCES,
    GENERATION,
    LAST_UNTOLD,
    StatisticName,
    appearance_widths,
    generation_of,
    has_cells,
    names_of,
    weights_of,
)
from service.scoring.statistics import KnownRows, ReferenceStatistics
from service.scoring.version import Card, Draft, Reference
from service.store.plausible import check_calibration, check_weights
from service.vae.network import VAE
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import Combination
from service.validity.violations import ViolationReference

FINGERPRINTS = "fingerprints.safetensors"
# How rows with missing cells are estimated, and with how many they are compared. If that changes, what a version knows of
# its usual patterns is learnt anew.
PATTERN_RULE = np.array([PATTERN_ROWS, MISSING_TOLERANCE, MISSING_SAMPLES])
COMBINATION = ("parts", "combined", "weights", "scales")
OF_GROUP = COMBINATION[:2]  # weights and scales are those of all rows
COLUMNS, CELLS = "columns.", "evidence.cells."  # sketches of all validation rows' cells, and of the pilot's
SKETCH = ("suspect", "counts", "values", "median")


def contents_of(reference: Reference, draft: Draft) -> dict[str, bytes]:
    """The files of a version to publish, without its manifest."""
    model, calibration = draft.model, draft.calibration
    return {
        "card.json": (draft.card(reference).model_dump_json(indent=2) + "\n").encode(),
        "weights.safetensors": save_tensors(
            {
                prefix_of(number) + key: tensor.detach().cpu().contiguous()
                for number, one in enumerate(model.members)
                for key, tensor in one.vae.state_dict().items()
            }
        ),
        "calibration.safetensors": save_tensors(
            {
                "scores": torch.from_numpy(calibration.scores),
                **({} if calibration.folds is None else {"folds": torch.from_numpy(calibration.folds)}),
                **{
                    f"{prefix_of(number)}codebook": torch.from_numpy(one.starts)
                    for number, one in enumerate(model.members)
                },
                **golden_tensors(Golden.of(model, calibration)),
                **reference_tensors(calibration.reference),
                **sketch_tensors(calibration.columns),
                **statistics_tensors(calibration.statistics),
                **violation_tensors(calibration.violations),
                **({} if calibration.complete is None else {"complete": torch.from_numpy(calibration.complete)}),
                **pattern_tensors(calibration.patterns),
                **group_tensors(calibration.groups),
            },
            metadata={"fingerprint": calibration.fingerprint},
        ),
        **({} if draft.fingerprints is None else {FINGERPRINTS: fingerprint_bytes(draft.fingerprints)}),
    }


def prefix_of(member: int) -> str:
    """Prefix of the names of a network's tensors; empty for the first network."""
    return f"member.{member}." if member else ""


def load_networks(card: Card, content: bytes) -> list[VAE]:
    """The networks of a card with their weights, ready for inference."""
    try:
        tensors, vaes = load_tensors(content), []
        for member in reversed(range(card.members)):  # the first one, without a prefix, takes what is left
            prefix = prefix_of(member)
            own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            check_weights(f"{card.name}@{card.version}", card.architecture, card.input, own)
            vae = VAE(card.architecture)
            vae.load_state_dict(own)
            vaes.append(vae.eval().requires_grad_(False))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedModelError(
            f"{card.name}@{card.version}: weights.safetensors does not match the card: {first_line(error)}"
        ) from error
    return vaes[::-1]


def load_calibration(card: Card, content: bytes) -> tuple[Calibration, list[np.ndarray], Golden | None]:
    """The validation scores, search starts and golden rows of a card; older versions have no golden rows."""
    try:
        tensors = load_tensors(content)
        scores = tensors["scores"].numpy().astype(np.float64)
        all_starts = [tensors[f"{prefix_of(member)}codebook"].numpy() for member in range(card.members)]
        golden = golden_of({key: tensor.numpy() for key, tensor in tensors.items()})
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        fingerprint = header["__metadata__"]["fingerprint"]
        reference, sketch, statistics = reference_of(tensors), sketch_of(tensors), statistics_of(tensors, card.input)
        violations = violations_of(tensors)
        complete = tensors["complete"].numpy() if "complete" in tensors else None
        patterns = patterns_of(tensors)
        whole = Group(POOL_NAME, scores, statistics, violations)
        groups = None if card.calibration.groups is None else groups_of(tensors, card, whole)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedModelError(f"{card.name}@{card.version}: calibration.safetensors cannot be read") from error
    if scores.shape != (card.calibration.rows,) or not len(scores) or (scores[1:] < scores[:-1]).any():
        raise DamagedModelError(
            f"{card.name}@{card.version}: expected {card.calibration.rows} validation scores, ascending"
        )
    for starts in all_starts:
        shape = (max(1, len(starts)), card.architecture.latents)
        if starts.shape != shape or not np.isfinite(starts).all():
            raise DamagedModelError(f"{card.name}@{card.version}: the search starts do not match the card")
    folds = tensors["folds"].numpy() if "folds" in tensors else None
    if folds is not None and (folds.shape != scores.shape or set(folds.tolist()) != set(range(card.members))):
        raise DamagedModelError(
            f"{card.name}@{card.version}: the folds do not match the card's {card.members} networks"
        )
    calibration = Calibration(
        scores,
        card.calibration.percentiles,
        fingerprint,
        reference,
        sketch,
        statistics,
        folds,
        violations,
        complete,
        patterns,
        groups,
    )
    check_calibration(f"{card.name}@{card.version}", card, calibration, golden)
    return calibration, all_starts, golden


def pattern_tensors(patterns: Sequence[PatternEstimates]) -> dict[str, torch.Tensor]:
    """Tensors of the usual patterns of missing cells: their masks, how many rows each has, and all rows' estimates."""
    if not patterns:
        return {}
    together = arrays_of(concatenated([one.estimates for one in patterns]))
    counts = [len(one.estimates.log_likelihood) for one in patterns]
    masks = np.stack([one.mask for one in patterns])
    arrays = {"masks": masks, "counts": np.array(counts), "rule": PATTERN_RULE, **together}
    return {f"patterns.{name}": torch.tensor(array) for name, array in arrays.items()}


def patterns_of(tensors: dict[str, torch.Tensor]) -> tuple[PatternEstimates, ...]:
    """The usual patterns of missing cells; older versions know none, or estimated them by another rule."""
    if "patterns.rule" not in tensors or not np.array_equal(tensors["patterns.rule"].numpy(), PATTERN_RULE):
        return ()
    masks, counts = tensors["patterns.masks"].numpy(), tensors["patterns.counts"].numpy()
    together = ReferenceEstimates(*(tensors[f"patterns.{one.name}"].numpy() for one in fields(ReferenceEstimates)))
    ends = np.cumsum(counts).tolist()
    parts = [rows_of(together, slice(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return tuple(PatternEstimates(mask, part) for mask, part in zip(masks, parts, strict=True))


def reference_tensors(reference: ReferenceRows | None) -> dict[str, torch.Tensor]:
    """Tensors of the reference rows; empty if the calibration has none."""
    if reference is None:
        return {}
    arrays = {"rows": reference.rows, "holes": reference.missing, "folds": reference.folds}
    arrays["unreadable"] = np.array([reference.unreadable]) if reference.unreadable else None
    return {f"reference.{name}": torch.tensor(array) for name, array in arrays.items() if array is not None}


def reference_of(tensors: dict[str, torch.Tensor]) -> ReferenceRows | None:
    if "reference.rows" not in tensors:
        return None
    folds = tensors["reference.folds"].numpy() if "reference.folds" in tensors else None
    unreadable = int(tensors["reference.unreadable"]) if "reference.unreadable" in tensors else 0
    return ReferenceRows(tensors["reference.rows"].numpy(), tensors["reference.holes"].numpy(), folds, unreadable)


def sketch_tensors(sketch: ColumnSketch | None, prefix: str = COLUMNS) -> dict[str, torch.Tensor]:
    """Tensors of a column sketch, with the order statistics of observed columns alone; empty if there is none."""
    if sketch is None:
        return {}
    tensors = {prefix + name: torch.tensor(getattr(sketch, name)) for name in SKETCH}
    observed = torch.from_numpy(sketch.counts > 0)
    if not observed.all():
        tensors[f"{prefix}values"] = tensors[f"{prefix}values"][:, observed].contiguous()
    return tensors


def sketch_of(tensors: dict[str, torch.Tensor], prefix: str = COLUMNS) -> ColumnSketch | None:
    if prefix + SKETCH[0] not in tensors:
        return None
    arrays = {name: tensors[prefix + name].numpy() for name in SKETCH}
    counts, kept = arrays["counts"], arrays["values"]
    if kept.shape[1:] != counts.shape and kept.shape[1:] == ((counts > 0).sum(),):
        arrays["values"] = np.zeros((len(kept), len(counts)), kept.dtype)
        arrays["values"][:, counts > 0] = kept
    return ColumnSketch(**arrays)


def statistics_tensors(reference: ReferenceStatistics | None) -> dict[str, torch.Tensor]:
    """Tensors of the reference statistics; rows of small whole numbers, such as pixels, are stored as bytes."""
    if reference is None:
        return {}
    rows = reference.known.rows
    small = np.where((rows >= 0) & (rows <= 255), rows, 0.0).astype(np.uint8)
    arrays = {
        "rows": small if np.array_equal(small.astype(rows.dtype), rows) else rows,
        "usual": reference.known.usual,
        "generation": np.array(reference.known.generation),
        **{name: getattr(reference.combination, name) for name in COMBINATION},
    }
    arrays |= {f"appearance.{name}": array for name, array in reference.known.appearances.items()}
    cells = sketch_tensors(reference.known.cells, CELLS)
    return {f"evidence.{name}": torch.tensor(array) for name, array in arrays.items()} | cells


def statistics_of(tensors: dict[str, torch.Tensor], spec: InputSpec) -> ReferenceStatistics | None:
    """The reference statistics in a version's tensors.

    Raises:
        ValueError: they do not fit the input.
    """
    if "evidence.rows" not in tensors:
        return None
    arrays = {name: tensors[f"evidence.{name}"].numpy() for name in ("rows", "usual", *COMBINATION)}
    sides = len(arrays["weights"])
    told = tensors.get("evidence.generation")
    generation = generation_of(spec, sides) if told is None else int(told)
    if not 1 <= generation <= GENERATION or len(weights_of(spec, generation)[0]) != sides:
        raise ValueError("reference statistics of another generation")
    cells = sketch_of(tensors, CELLS)
    if (cells is not None) != has_cells(spec, generation):
        raise ValueError("reference statistics without typical cells")
    rows, usual = arrays["rows"].astype(spec.dtype), arrays["usual"].astype(np.float64)
    known = KnownRows(rows, usual, cells, generation, appearances_of(tensors, spec, generation))
    of_combination = {name: arrays[name].astype(np.float64) for name in COMBINATION}
    combination = Combination(**of_combination, by_ranks=generation > LAST_UNTOLD)
    shapes = known.rows.shape[1:], known.usual.shape, combination.parts.shape[1:], combination.weights.shape
    if shapes != ((spec.features,), (2, spec.features), (sides,), (sides,)):
        raise ValueError("reference statistics have the wrong shapes")
    return ReferenceStatistics(known, combination)


def appearances_of(
    tensors: dict[str, torch.Tensor], spec: InputSpec, generation: int
) -> dict[StatisticName, np.ndarray]:
    """The known images' appearances in a version's tensors, for the statistics that need them.

    Raises:
        ValueError: they do not fit the input.
    """
    found, widths = dict[StatisticName, np.ndarray](), appearance_widths(spec)
    for name in names_of(spec, generation):
        if name in APPEARANCES:
            array = tensors.get(f"evidence.appearance.{name}", torch.zeros(0)).numpy()
            if array.ndim != 2 or not len(array) or array.shape[1] != widths[name]:
                raise ValueError("known images' appearances have the wrong shapes")
            found[name] = array
    return found


def violation_tensors(reference: ViolationReference | None, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of the calibration rows' violations; empty if the columns' domains are not known."""
    if reference is None:
        return {}
    arrays = {"codes": reference.codes, "counts": reference.counts, "lowest": np.array([reference.lowest])}
    return {f"{prefix}violations.{name}": torch.tensor(array) for name, array in arrays.items()}


def violations_of(tensors: dict[str, torch.Tensor], prefix: str = "") -> ViolationReference | None:
    if f"{prefix}violations.codes" not in tensors:
        return None
    codes, counts, lowest = (tensors[f"{prefix}violations.{name}"] for name in ("codes", "counts", "lowest"))
    return ViolationReference(codes.numpy(), counts.numpy(), int(lowest))


def group_tensors(groups: Groups | None) -> dict[str, torch.Tensor]:
    """Tensors of the groups by their numbers; of what stands in for a pool, none."""
    if groups is None:
        return {}
    found: dict[str, torch.Tensor] = {}
    for number, one in enumerate(groups.members):
        if number == POOL and not groups.plan.has_pool:
            continue
        prefix = group_prefix(number)
        found[f"{prefix}scores"] = torch.tensor(one.scores)
        if one.statistics is not None:
            for name in OF_GROUP:
                found[prefix + name] = torch.tensor(getattr(one.statistics.combination, name))
        found |= violation_tensors(one.violations, prefix)
    return found


def groups_of(tensors: dict[str, torch.Tensor], card: Card, whole: Group) -> Groups:
    """The groups of a card; `whole` are all validation rows, which stand in for a pool where there is none.

    Raises:
        KeyError, ValueError: the tensors do not match the card.
    """
    plan = card.calibration.groups
    assert plan is not None
    plan.check(card.input)
    members = []
    for number, name in enumerate(plan.names):
        prefix, statistics = group_prefix(number), None
        if number == POOL and not plan.has_pool:
            members.append(whole)
            continue
        if prefix + OF_GROUP[0] in tensors and whole.statistics is not None:
            own = {key: tensors[prefix + key].numpy().astype(np.float64) for key in OF_GROUP}
            combination = replace(whole.statistics.combination, parts=own["parts"], combined=own["combined"])
            if combination.parts.shape[1:] != combination.weights.shape:
                raise ValueError("a group's statistics have the wrong shape")
            statistics = replace(whole.statistics, combination=combination)
        scores = tensors[f"{prefix}scores"].numpy().astype(np.float64)
        members.append(Group(name, scores, statistics, violations_of(tensors, prefix)))
    return Groups(plan, tuple(members))


def group_prefix(number: int) -> str:
    """Prefix of the names of a group's tensors."""
    return f"groups.{number}."


def fingerprint_bytes(fingerprints: Fingerprints) -> bytes:
    """The file of a version's fingerprints."""
    own = np.array([fingerprints.calibration_rows, fingerprints.calibration_seen])
    tensors = {
        "key": torch.tensor(list(fingerprints.key), dtype=torch.uint8),
        "values": torch.from_numpy(fingerprints.values.view(np.int64)),
        "own": torch.tensor(own),
    }
    return save_tensors(tensors)


def fingerprints_in(content: bytes) -> Fingerprints:
    """The fingerprints in a file.

    Raises:
        ValueError: these are none.
    """
    try:
        tensors = {name: tensor.numpy() for name, tensor in load_tensors(content).items()}
        rows, seen = tensors["own"].tolist()
        return Fingerprints(bytes(tensors["key"]), np.ascontiguousarray(tensors["values"]).view(np.uint64), rows, seen)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError("no fingerprints") from error


def golden_tensors(golden: Golden) -> dict[str, torch.Tensor]:
    return {f"golden.{name}": torch.tensor(array) for name, array in golden.arrays().items()}


def golden_of(tensors: dict[str, np.ndarray]) -> Golden | None:
    """The golden rows among a version's tensors."""
    arrays = {key.removeprefix("golden."): array for key, array in tensors.items() if key.startswith("golden.")}
    return Golden(**arrays) if arrays else None


def first_line(error: Exception) -> str:
    """An exception in one line; pydantic's without the input, which it would quote."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
