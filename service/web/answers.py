"""Encode answers: arrays to response bytes, in a type that the client accepts."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from starlette.responses import Response

from service.data.inputs import InputSpec
from service.files.images import grid, png
from service.scoring.pixel_maps import PixelMaps, sheet
from service.scoring.scores import (
    CombinedRule,
    Encodings,
    ExplainedScores,
    Grouping,
    Manifold,
    Reconstructions,
    Samples,
    Scores,
)
from service.scoring.tables import blamed_columns, rows_csv, scores_csv
from service.validity.band import Band
from service.validity.conformal import CONFIDENCE, Acceptance, Discoveries
from service.web.batch import Batch
from service.web.media_types import CSV, JSON, NPY, PNG

WARNINGS_IN_HEADER, LONGEST_WARNING = 10, 200  # characters


class ModelId(msgspec.Struct):
    """The model version that answered."""

    name: str
    version: str
    digest: str


class Score(msgspec.Struct, omit_defaults=True):
    """The score of one row, with the fields of the JSON answer."""

    verdict: str
    side: str
    certain: bool
    reliable: bool
    log_likelihood: float
    std_error: float
    ess: float
    khat: float | None
    num_samples: int
    percentile: float
    p_value: float
    missing: int | msgspec.UnsetType = msgspec.UNSET
    violations: Any = msgspec.UNSET
    line: int | msgspec.UnsetType = msgspec.UNSET
    band: tuple[float, float] | msgspec.UnsetType = msgspec.UNSET
    columns: Any = msgspec.UNSET
    map: Any = msgspec.UNSET
    id: Any = msgspec.UNSET
    discovery: bool | msgspec.UnsetType = msgspec.UNSET
    evidence: Any = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET
    group: str | msgspec.UnsetType | None = msgspec.UNSET
    record: str | msgspec.UnsetType = msgspec.UNSET


def json_response(document: Any, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Answer with JSON; arrays become lists without a Python loop over their numbers."""
    return Response(msgspec.json.encode(document, enc_hook=to_list), status, headers, JSON)


def json_rows_response(
    document: dict[str, Any], name: str, rows: Iterable[Any], headers: dict[str, str] | None = None, **after: Any
) -> Response:
    """Answer with JSON that has a field with a list of rows, encoded row by row.

    An encoder keeps the interpreter until it is done: for a large answer, all other requests would wait that long.
    """
    encoder = msgspec.json.Encoder(enc_hook=to_list)
    head, tail = encoder.encode(document)[:-1], encoder.encode(after)[1:-1]
    parts = [head, b"," if document else b"", encoder.encode(name), b":["]
    for at, row in enumerate(rows):
        parts += [b"," if at else b"", encoder.encode(row)]
    parts += [b"]", b"," if tail else b"", tail, b"}"]
    return Response(b"".join(parts), 200, headers, JSON)


def noted(warnings: Sequence[str]) -> dict[str, Any]:
    """The field of an answer's warnings, if there are any."""
    return {"warnings": warnings} if warnings else {}


def answer_headers(model: ModelId, warnings: Sequence[str] = (), record: str | None = None) -> dict[str, str]:
    """Headers for bodies that have no fields for the model and for warnings, which are a list in JSON.

    `record` is the first part of the record ids: a dot and a row's place, from 0, are the rest.
    """
    headers = {"X-Model": f"{model.name}@{model.version}", "X-Model-Digest": model.digest}
    headers |= {} if record is None else {"X-Record": record}
    shown = [warning[:LONGEST_WARNING] for warning in warnings[:WARNINGS_IN_HEADER]]
    return headers | ({"X-Warnings": json.dumps(shown)} if shown else {})


def to_list(value: Any) -> Any:
    """Convert arrays and numpy scalars for the JSON encoder; all of ours are finite."""
    return value.tolist()


def npy_response(array: np.ndarray, headers: dict[str, str] | None = None) -> Response:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return Response(buffer.getvalue(), 200, headers, NPY)


def png_response(images: np.ndarray, columns: int | None = None, headers: dict[str, str] | None = None) -> Response:
    """Images, shape (N, H, W), as one PNG."""
    return Response(png(grid(images, columns)), 200, headers, PNG)


def rows_response(kind: str, rows: np.ndarray, spec: InputSpec, headers: dict[str, str]) -> Response:
    """Rows, shape (N, D), as npy, as CSV or as one PNG."""
    if kind == NPY:
        return npy_response(shaped(rows, spec), headers)
    if kind == CSV:
        return csv_response(rows_csv(rows, spec), headers)
    return png_response(shaped(rows, spec), None, headers)


def shaped(rows: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Reshape rows, shape (..., D), to the model's input shape."""
    return rows.reshape(*rows.shape[:-1], *spec.shape)


def presented(rows: np.ndarray, spec: InputSpec) -> Any:
    """Rows, shape (..., D), for JSON: in the model's input shape, categories by name."""
    if not spec.reads_missing:
        return shaped(rows, spec)
    if rows.ndim == 2:
        return spec.cells(rows)
    return [presented(part, spec) for part in rows]


def csv_response(text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(text, 200, headers, f"{CSV}; charset=utf-8; header=present")


def score_list(
    scores: Scores,
    ids: list[Any] | None,
    discoveries: Discoveries | None = None,
    lines: np.ndarray | None = None,
    maps: PixelMaps | None = None,
) -> list[Score]:
    """The scores for JSON, with the lines of rows with violations, if lines are numbered, and with maps, if asked for."""
    unset, violations = [msgspec.UNSET] * len(scores), scores.violations()
    numbers = unset if lines is None else lines.tolist()
    missing, ends = missing_fields(scores)
    columns = zip(
        scores.verdict,
        scores.side,
        scores.certain.tolist(),
        scores.reliable.tolist(),
        scores.log_likelihood.tolist(),
        scores.std_error.tolist(),
        scores.ess.tolist(),
        [None if math.isnan(khat) else khat for khat in scores.khat.tolist()],
        scores.num_samples.tolist(),
        scores.percentile.tolist(),
        scores.p_value.tolist(),
        missing,
        [found or msgspec.UNSET for found in violations],
        [line if found else msgspec.UNSET for line, found in zip(numbers, violations, strict=True)],
        ends,
        blamed_columns(scores, scores.spec) if isinstance(scores, ExplainedScores) else unset,
        unset if maps is None else map_documents(maps),
        unset if ids is None else [msgspec.UNSET if one is None else one for one in ids],
        unset if discoveries is None else discoveries.chosen.tolist(),
        unset if scores.rule is None else evidence_of(scores, scores.rule),
        [reason or msgspec.UNSET for reason in scores.reasons()],
        unset if scores.grouping is None else scores.group_names,
        scores.records or unset,
        strict=True,
    )
    return [Score(*row) for row in columns]


def map_documents(maps: PixelMaps) -> list[dict[str, Any]]:
    """Each image's maps for JSON; null for missing pixels."""

    def lists(values: np.ndarray) -> list[Any]:
        rounded = np.round(values, 3)
        if not np.isnan(values).any():
            return cast("list[Any]", rounded.tolist())
        return cast("list[Any]", np.where(np.isnan(values), np.array(None, dtype=object), rounded).tolist())

    both = zip(lists(maps.log_likelihood), lists(maps.strangeness), strict=True)
    return [{"log_likelihood": log_likelihood, "strangeness": strangeness} for log_likelihood, strangeness in both]


def maps_response(kind: str, headers: dict[str, str], maps: PixelMaps, images: np.ndarray) -> Response:
    """Answer POST /score?explain=map with both maps of each image as npy, (B, 2, H, W), or drawn on it as one PNG.

    Args:
        images: shape (B, H, W) or (B, H, W, 3).
    """
    if kind == NPY:
        both = np.stack([maps.log_likelihood, maps.strangeness], axis=1)
        return npy_response(both, headers)
    return Response(png(sheet(images, maps)), 200, headers, PNG)


def missing_fields(scores: Scores) -> tuple[list[Any], list[Any]]:
    """Each row's number of missing cells and its own band.

    Both are unset for complete rows, except that with folds or groups every row has its own band.
    """
    missing = [number or msgspec.UNSET for number in scores.missing.tolist()]
    has_all_own = scores.band.folds > 1 or scores.grouping is not None
    has_own = (((scores.missing > 0) & ~scores.unreadable) | has_all_own).tolist()
    ends = zip(has_own, scores.low.tolist(), scores.high.tolist(), strict=True)
    return missing, [(low, high) if own else msgspec.UNSET for own, low, high in ends]


def scores_answer(
    kind: str,
    model: ModelId,
    scores: Scores,
    batch: Batch,
    discoveries: Discoveries | None,
    draw_maps: Callable[[], PixelMaps] | None = None,
) -> Response:
    """Answer POST /score with JSON, npy records or CSV; or with maps as JSON, npy or PNG."""
    maps = None if draw_maps is None else draw_maps()
    warnings = [*batch.warnings, *scores.warnings()]
    if maps is not None and kind != JSON:
        headers = answer_headers(model, warnings, scores.record)
        return maps_response(kind, headers, maps, shaped(batch.rows, scores.spec))
    if kind != JSON and discoveries is not None:
        warnings = [*warnings, *filter(None, [discoveries.warning()])]
    if kind == NPY:
        return npy_response(score_records(scores, discoveries), answer_headers(model, warnings, scores.record))
    if kind == CSV:
        content = scores_csv(scores, batch.ids, discoveries)
        return csv_response(content, answer_headers(model, warnings, scores.record))
    document = {
        "model": model,
        "band": band_document(scores.band, scores.band.accepted if scores.rule is not None else scores.accepted),
    }
    rows = score_list(scores, batch.ids, discoveries, batch.lines, maps)
    if maps is None:
        document["scores"] = rows
    else:
        document["map"] = {"median": maps.median, "spread": maps.spread}
    if scores.rule is not None:
        rule = scores.rule
        document["rule"] = {
            "name": "combined",
            "false_alarm": rule.false_alarm,
            "accepts": accepts(scores.accepted, rule.rows),
        }
    if scores.grouping is not None:
        document["groups"] = grouping_document(scores.grouping)
    if discoveries is not None:
        document["fdr"] = {
            "level": discoveries.level,
            "tail": discoveries.tail,
            "procedure": discoveries.procedure,
            "discoveries": int(discoveries.chosen.sum()),
            "needed": discoveries.needed,
        }
        warnings = [*warnings, *filter(None, [discoveries.warning()])]
    if maps is not None:
        return json_rows_response(document, "scores", rows, **noted(warnings))
    return json_response(document | noted(warnings))


def predictions_answer(model: ModelId, scores: Scores, batch: Batch) -> Response:
    """Answer POST /v1/models/{name}:predict."""
    warnings = [*batch.warnings, *scores.warnings()]
    document = {"predictions": score_list(scores, batch.ids)}
    return json_response(document, answer_headers(model, warnings))


def band_document(band: Band, accepted: Acceptance) -> dict[str, Any]:
    """A band, and the share of valid rows that it accepts, for JSON; an open end is null."""
    return {
        "percentiles": band.percentiles,
        "log_likelihood": band.ends_or_none,
        "accepts": accepts(accepted, band.rows) | ({"folds": band.folds} if band.folds > 1 else {}),
    }


def grouping_document(grouping: Grouping) -> dict[str, Any]:
    """What is accepted of each group, for JSON."""
    of_each = zip(grouping.names, grouping.accepted, grouping.rows, strict=True)
    return {
        "column": grouping.column,
        "accepts": {name: accepts(accepted, rows) for name, accepted, rows in of_each if rows},
    }


def accepts(accepted: Acceptance, rows: int) -> dict[str, Any]:
    """The share of valid rows that a rule accepts, estimated from `rows` validation rows, for JSON."""
    if accepted.interval is None:
        return {"expected": accepted.expected, "proven": accepted.proven, "rows": rows}
    return {
        "expected": accepted.expected,
        "interval": accepted.interval,
        "confidence": CONFIDENCE,
        "rows": rows,
        **({"bound": True} if accepted.is_bound else {}),
    }


def evidence_of(scores: Scores, rule: CombinedRule) -> list[dict[str, float]]:
    """For each row, the combined p-value and that of each statistic."""
    names = ("combined", *rule.statistics)
    rows = zip(scores.combined_p_value.tolist(), scores.evidence.tolist(), strict=True)
    return [dict(zip(names, (combined, *parts), strict=True)) for combined, parts in rows]


# A score as an npy record; names as in the JSON.
SCORE_DTYPE = np.dtype(
    [
        ("valid", "?"),
        ("side", "i1"),
        ("certain", "?"),
        ("reliable", "?"),
        *((name, "f8") for name in ("log_likelihood", "std_error", "ess", "khat")),
        ("num_samples", "i8"),
        ("percentile", "f8"),
        ("p_value", "f8"),
    ]
)


EXPLAINED = ("column_log_likelihood", "column_p_value", "expected", "expected_low", "expected_high")


def score_records(scores: Scores, discoveries: Discoveries | None) -> np.ndarray:
    """Scores as npy records: `valid` for the verdict, `side` -1, 0 or 1, NaN if there is no khat, columns by index."""
    dtype = SCORE_DTYPE
    columns = {"valid": scores.valid, "side": scores.sides}
    if isinstance(scores, ExplainedScores):
        number = scores.columns.shape[1]
        more = [("columns", "i4", (number,)), *((name, "f8", (number,)) for name in EXPLAINED)]
        dtype = np.dtype([*SCORE_DTYPE.descr, *more])
    if scores.rule is not None:
        names = scores.rule.statistics
        dtype = np.dtype([*dtype.descr, ("combined_p_value", "f8"), *((f"p_value_{name}", "f8") for name in names)])
        columns |= {f"p_value_{name}": values for name, values in zip(names, scores.evidence.T, strict=True)}
    if discoveries is not None:
        dtype = np.dtype([*dtype.descr, ("discovery", "?")])
        columns["discovery"] = discoveries.chosen
    if scores.codes.size:
        dtype = np.dtype([*dtype.descr, ("violations", "i4")])
        columns["violations"] = scores.num_violations
    if scores.records is not None:
        columns["record"] = np.array(scores.records, "S")
        dtype = np.dtype([*dtype.descr, ("record", columns["record"].dtype)])
    records = np.zeros(len(scores), dtype)
    for name in dtype.names or ():
        records[name] = columns[name] if name in columns else getattr(scores, name)
    return records


def reconstructions_response(
    kind: str, model: ModelId, answer: Reconstructions, spec: InputSpec, warnings: Sequence[str]
) -> Response:
    """Answer POST /reconstruct: everything as JSON, the means as npy or CSV, or means and draws as one PNG."""
    means, draws = shaped(answer.mean, spec), shaped(answer.draws, spec)
    if kind == PNG:
        images = np.concatenate([means[:, None], draws], axis=1)
        return png_response(images.reshape(-1, *spec.shape), images.shape[1], answer_headers(model, warnings))
    if kind != JSON:
        return rows_response(kind, answer.mean, spec, answer_headers(model, warnings))
    rows = (
        {"mean": mean, "draws": drawn, "feature_log_likelihood": feature}
        for mean, drawn, feature in zip(
            presented(answer.mean, spec), presented(answer.draws, spec), answer.feature_log_likelihood, strict=True
        )
    )
    return json_rows_response({"model": model}, "reconstructions", rows, **noted(warnings))


def samples_response(kind: str, model: ModelId, samples: Samples, spec: InputSpec, headers: dict[str, str]) -> Response:
    """Answer GET /sample."""
    if kind != JSON:
        return rows_response(kind, samples.samples, spec, headers | answer_headers(model))
    document = {"model": model, "seed": samples.seed, "latents": samples.latents}
    return json_rows_response(document, "samples", presented(samples.samples, spec), headers)


def encodings_response(kind: str, model: ModelId, answer: Encodings, warnings: Sequence[str]) -> Response:
    """Answer POST /encode with JSON, or with means and stds as npy of shape (B, 2, L)."""
    if kind == NPY:
        return npy_response(np.stack([answer.mean, answer.std], axis=1), answer_headers(model, warnings))
    rows = (
        {"mean": mean, "std": std, "draws": drawn}
        for mean, std, drawn in zip(answer.mean, answer.std, answer.draws, strict=True)
    )
    return json_rows_response({"model": model}, "encodings", rows, **noted(warnings))


def means_response(kind: str, model: ModelId, means: np.ndarray, spec: InputSpec, warnings: Sequence[str]) -> Response:
    """Answer POST /decode."""
    if kind != JSON:
        return rows_response(kind, means, spec, answer_headers(model, warnings))
    return json_rows_response({"model": model}, "means", presented(means, spec), **noted(warnings))


def manifold_response(kind: str, model: ModelId, manifold: Manifold, spec: InputSpec) -> Response:
    """Answer GET /manifold."""
    if kind != JSON:
        return rows_response(kind, manifold.means, spec, answer_headers(model))
    document = {"model": model, "axes": manifold.axes, "latents": manifold.latents}
    return json_rows_response(document, "means", presented(manifold.means, spec))
