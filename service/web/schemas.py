"""Schemas of requests and answers for the OpenAPI document. A test checks real answers against them.

Requests are parsed by `parsing.py` and answers written by `answers.py`. pydantic sees neither, since it is slow on lists of
784 numbers.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.data.domains import ViolationKind


class Answer(BaseModel):
    """Part of an answer; undocumented fields are forbidden."""

    model_config = ConfigDict(extra="forbid")


class ModelId(Answer):
    """The model version that answered."""

    name: str
    version: str
    digest: str = Field(description="sha256 of the version's manifest, which lists the sha256 of each file")


class AcceptsAnswer(Answer):
    """The share of valid rows that the band or rule accepts, with equal scores counted as they are judged."""

    expected: float = Field(
        description="expected share, over all sets of this many validation rows; with folds it is typical, not proved"
    )
    proven: float | None = Field(None, description="with folds: proved lower bound on the expected share")
    rows: int = Field(description="number of validation rows")
    interval: tuple[float, float] | None = Field(
        None,
        description="interval that contains the share for this validation set with probability `confidence`; absent with "
        "folds",
    )
    confidence: float | None = Field(None, description="probability that `interval` contains the share")
    bound: bool | None = Field(None, description="true if the share is at least this, and may be larger")
    folds: int | None = Field(
        None, description="number of networks that serve together, each calibrated on rows it did not see"
    )


class BandAnswer(Answer):
    """The interval of log_likelihood in which a row is valid, ends included."""

    percentiles: tuple[float, float] = Field(
        description="percentiles of the band; 100 with a null end means no upper limit"
    )
    log_likelihood: tuple[float | None, float | None]
    accepts: AcceptsAnswer


class ExpectedNumber(Answer):
    """What the other columns predict for a number."""

    mean: float
    interval: tuple[float, float] = Field(description="contains 90 % of the probability")


class ExpectedCategory(Answer):
    """What the other columns predict for a category."""

    most_likely: str | float
    probability: float


class BlamedAnswer(Answer):
    """One suspicious column of a row: its cell is unlikely given all other columns."""

    name: str | int
    pixel: tuple[int, int] | None = Field(None, description="row and column, for images")
    channel: Literal["red", "green", "blue"] | None = Field(None, description="for images with colours")
    value: str | float
    log_likelihood: float = Field(description="log p(x_j given all other columns), nats")
    std_error: float
    reliable: bool
    p_value: float = Field(description="share of validation rows with a cell at least as unlikely in this column")
    expected: ExpectedNumber | ExpectedCategory


class ViolationAnswer(Answer):
    """What is wrong with a cell, by what the training rows never held, or that it cannot be read."""

    column: str | None = Field(description="null if it is the whole row: it has no value")
    kind: ViolationKind
    message: str


class MapAnswer(Answer):
    """What each pixel of an image says, row by row; null for missing pixels. It promises nothing for a single pixel."""

    log_likelihood: list[list[float | None]] = Field(
        description="E[log p(pixel | z)] over the image's own posterior, all channels together, nats"
    )
    strangeness: list[list[float | None]] = Field(
        description="how far that is below the median of valid images, in spreads; 0 above it"
    )


class UsualMapAnswer(Answer):
    """What valid images have at each pixel, row by row, nats: sums over its channels."""

    median: list[list[float]]
    spread: list[list[float]] = Field(description="median minus fifth percentile, at least 1 for each channel")


class ScoreAnswer(Answer):
    """The verdict on one row."""

    verdict: Literal["valid", "invalid"] = Field(
        description="by the band or, with ?rule=combined, by several test statistics"
    )
    side: Literal["below", "inside", "above"]
    certain: bool = Field(
        description="the estimate's interval (3 standard errors; 9 if not reliable) contains neither end of the band"
    )
    reliable: bool = Field(
        description="true if khat, ess and the search for modes give no reason to doubt the estimate; if false, it exceeds "
        "log p(x) by more than b nats with probability at most exp(-b)"
    )
    log_likelihood: float = Field(description="estimate of log p(x), nats")
    std_error: float
    ess: float
    khat: float | None
    num_samples: int
    percentile: float = Field(description="share of validation rows that are less likely, 0 to 100")
    p_value: float = Field(description="two-sided conformal p-value; not the probability that the row is valid")
    missing: int | None = Field(None, description="number of missing cells, if any")
    violations: list[ViolationAnswer] | None = Field(
        None,
        description="what is wrong with the row's cells, if anything; a row with a cell that cannot be read, or without "
        "any value, ranks below every number and is always invalid",
    )
    line: int | None = Field(None, description="for a row of a CSV body with violations, the line in which it begins")
    band: tuple[float, float] | None = Field(
        None,
        description="the row's own band, if it has one: that of rows of its group, or with the same missing cells",
    )
    columns: list[BlamedAnswer] | None = Field(
        None, description="with ?explain=N, the N most suspicious columns, smallest p_value first"
    )
    map: MapAnswer | None = Field(None, description="with ?explain=map, where the image does not belong")
    evidence: dict[str, float] | None = Field(
        None, description="with ?rule=combined, the conformal p_value of the combined rule and of each statistic"
    )
    reason: str | None = Field(None, description="why the row is invalid, in a sentence; absent for valid rows")
    group: str | None = Field(
        None,
        description="of a version that is calibrated by groups: the group that the row is compared with; null if its group "
        "is missing, so that it is compared with rows of all groups",
    )
    discovery: bool | None = Field(None, description="with ?fdr=, whether the row is a discovery")
    id: str | int | float | None = None


class RuleAnswer(Answer):
    """The combined rule: rows with a combined p_value of at most `false_alarm` are invalid."""

    name: Literal["combined"]
    false_alarm: float
    accepts: AcceptsAnswer


class GroupsAnswer(Answer):
    """The groups by which rows are compared: of each, the share of valid rows that the band or rule accepts."""

    column: str
    accepts: dict[str, AcceptsAnswer]


class FdrAnswer(Answer):
    """Discoveries among the rows of a request: the expected share of valid rows among them is at most `level`."""

    level: float
    tail: Literal["low", "both"]
    procedure: Literal["Benjamini-Hochberg", "Benjamini-Yekutieli"]
    discoveries: int
    needed: int = Field(
        description="rows that must be more unusual than every validation row before any can be a discovery; if this "
        "exceeds the number of rows, none can be"
    )


class ScoresAnswer(Answer):
    """Answer to POST /score."""

    model: ModelId
    band: BandAnswer
    scores: list[ScoreAnswer]
    rule: RuleAnswer | None = None
    groups: GroupsAnswer | None = Field(None, description="of a version that is calibrated by groups")
    fdr: FdrAnswer | None = None
    map: UsualMapAnswer | None = Field(None, description="with ?explain=map")
    warnings: list[str] = []


class ReconstructionAnswer(Answer):
    """Reconstruction of one row."""

    mean: list[Any]
    draws: list[list[Any]]
    feature_log_likelihood: list[float]


class ReconstructionsAnswer(Answer):
    """Answer to POST /reconstruct."""

    model: ModelId
    reconstructions: list[ReconstructionAnswer]
    warnings: list[str] = []


class SamplesAnswer(Answer):
    """Answer to GET /sample."""

    model: ModelId
    seed: int
    latents: list[list[float]]
    samples: list[Any]


class EncodingAnswer(Answer):
    """q(z given x) of one row."""

    mean: list[float]
    std: list[float]
    draws: list[list[float]]


class EncodingsAnswer(Answer):
    """Answer to POST /encode."""

    model: ModelId
    encodings: list[EncodingAnswer]
    warnings: list[str] = []


class MeansAnswer(Answer):
    """Answer to POST /decode."""

    model: ModelId
    means: list[Any]


class ManifoldAnswer(Answer):
    """Answer to GET /manifold."""

    model: ModelId
    axes: tuple[int, int]
    latents: list[list[float]]
    means: list[Any]


class VersionAnswer(Answer):
    """One version of a model."""

    version: str
    aliases: list[str]
    loaded: bool
    error: str | None = Field(None, description="why it cannot be served")


class ModelAnswer(Answer):
    """Answer to GET /models/{name}."""

    name: str
    default: bool
    serving: str | None = Field(description="the version that answers to the bare name")
    versions: list[VersionAnswer]
    aliases: dict[str, str]
    card: dict[str, Any] | None = Field(None, description="the serving version's card, as in its card.json")
    digest: str | None = None


class ModelsAnswer(Answer):
    """Answer to GET /models."""

    vouch: str = Field(description="version of Vouch")
    default: str | None
    models: list[ModelAnswer]


class AliasBody(Answer):
    """Body of POST /models/{name}/aliases."""

    alias: str = Field(pattern="^[a-z][a-z0-9_-]{0,63}$")
    version: str = Field(pattern="^[1-9][0-9]{0,8}$")
    expected: str | None = Field(
        None, description="the version that the alias must point at now; otherwise the answer is 409"
    )


class RestartBody(Answer):
    """Body of POST /models/{name}/drift."""

    restart: Literal[True]


class AliasAnswer(Answer):
    """The model's aliases after the move."""

    name: str
    aliases: dict[str, str]


class StatusAnswer(Answer):
    """Answer to GET /livez and GET /readyz."""

    status: Literal["ok", "loading", "draining", "unavailable"]
    models: dict[str, str] = Field({}, description="state of each model: `ready`, or why it is not")
    held_back: dict[str, str] = Field(
        {}, description="new versions in the store that cannot be served, and why; the old ones keep serving"
    )


class DriftMonitorAnswer(Answer):
    """A drift monitor since the start of the process, or of the restored state.

    A test martingale compares served rows with the validation rows. If rows stay valid, the chance that `drifts` ever
    becomes true is at most `level`.
    """

    rows: int
    sides: dict[str, int]
    expected_shares: dict[str, float] = Field(description="expected shares of valid rows, from the band's percentiles")
    p_value_deciles: list[int] = Field(description="rows by p_value in ten equal bins from 0; flat if nothing drifts")
    drifts: bool
    direction: Literal["low", "high"] | None = Field(description="whether low or high likelihoods are too frequent")
    alarm_row: int | None = Field(description="monitored row at which the alarm was raised")
    watched_rows: int = Field(description="rows that were monitored: those without missing cells")
    log_capital: float = Field(
        description="log of the martingale's capital, nats: starts at 0, and rarely exceeds it while nothing drifts"
    )
    peak_log_capital: float
    limit: float = Field(description="log capital above which drift is reported")
    level: float
    restarts: int = Field(
        description="number of restarts by POST /models/NAME/drift; each may spend a smaller part of `level`"
    )


class KeyDriftAnswer(DriftMonitorAnswer):
    """Drift monitor of the rows of one API key."""

    key: str = Field(description="the key's id")
    level: float = Field(description="the k-th key's part of the level that all keys share: level / (k (k + 1))")


class DriftAnswer(DriftMonitorAnswer):
    """Drift monitors of one model."""

    model: ModelId
    keys: list[KeyDriftAnswer] = Field(description="with API keys: the caller's own, or all for a key of scope admin")


class DriftsAnswer(Answer):
    """Answer to GET /drift."""

    drift: list[DriftAnswer]


class FaultAnswer(Answer):
    """One problem in the input."""

    message: str
    row: int | None = None
    column: str | int | None = None
    expected: str | None = None


class Problem(Answer):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FaultAnswer] = []
    request_id: str | None


class Instances(BaseModel):
    """Rows, in the units of the training data."""

    model_config = ConfigDict(extra="forbid")

    instances: list[list[float | str | None] | list[list[float]] | list[list[list[float]]] | dict[str, Any] | str] = (
        Field(min_length=1)
    )


class Latents(BaseModel):
    """Latents to decode."""

    model_config = ConfigDict(extra="forbid")

    latents: list[list[float]] = Field(min_length=1)
