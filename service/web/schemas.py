"""Schemas of requests and answers for the OpenAPI document. A test checks real answers against them.

Requests are parsed by `parsing.py` and answers written by `answers.py`. pydantic sees neither, since it is slow on lists of
784 numbers.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.data.domains import ViolationKind
from service.web.schema_parts import ANSWERED_BY, WARNINGS, Answer, Instance, Latent, ModelId, Row


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
    log_likelihood: tuple[float | None, float | None] = Field(
        description="the band's ends in log p(x), nats; null for an open end"
    )
    accepts: AcceptsAnswer = Field(description="the share of valid rows that the band accepts")


class ExpectedNumber(Answer):
    """What the other columns predict for a number."""

    mean: float = Field(description="the expected number, in the column's units")
    interval: tuple[float, float] = Field(description="contains 90 % of the probability")


class ExpectedCategory(Answer):
    """What the other columns predict for a category."""

    most_likely: str | float = Field(description="the likeliest category")
    probability: float = Field(description="its probability, 0 to 1")


class BlamedAnswer(Answer):
    """One suspicious column of a row: its cell is unlikely given all other columns."""

    name: str | int = Field(description="the column's name, or its index where columns have no names")
    pixel: tuple[int, int] | None = Field(None, description="row and column, for images")
    channel: Literal["red", "green", "blue"] | None = Field(None, description="for images with colours")
    value: str | float = Field(description="the cell's value")
    log_likelihood: float = Field(description="log p(x_j given all other columns), nats")
    std_error: float = Field(description="standard error of that estimate, nats")
    reliable: bool = Field(description="whether nothing gives reason to doubt that estimate")
    p_value: float = Field(description="share of validation rows with a cell at least as unlikely in this column")
    expected: ExpectedNumber | ExpectedCategory = Field(description="what the other columns predict")


class ViolationAnswer(Answer):
    """What is wrong with a cell, by what the training rows never held, or that it cannot be read."""

    column: str | None = Field(description="null if it is the whole row: it has no value")
    kind: ViolationKind = Field(description="what kind of violation it is")
    message: str = Field(description="what is wrong, in words")


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

    median: list[list[float]] = Field(description="median log-likelihood of each pixel over valid images")
    spread: list[list[float]] = Field(description="median minus fifth percentile, at least 1 for each channel")


class ScoreAnswer(Answer):
    """The verdict on one row."""

    verdict: Literal["valid", "invalid"] = Field(
        description="by the band or, with ?rule=combined, by several test statistics"
    )
    side: Literal["below", "inside", "above"] = Field(
        description="where log p(x) lies: below the band (less likely), inside it, or above it (more likely)"
    )
    certain: bool = Field(
        description="the estimate's interval (3 standard errors; 9 if not reliable) contains neither end of the band"
    )
    reliable: bool = Field(
        description="true if khat, ess and the search for modes give no reason to doubt the estimate; if false, it exceeds "
        "log p(x) by more than b nats with probability at most exp(-b)"
    )
    log_likelihood: float = Field(description="estimate of log p(x), nats")
    std_error: float = Field(description="standard error of log_likelihood, nats")
    ess: float = Field(description="effective sample size of the importance weights, at most num_samples")
    khat: float | None = Field(
        description="shape of the tail of the importance weights (Pareto): above 0.7 the estimate is doubtful; null if "
        "there are too few samples to tell"
    )
    num_samples: int = Field(description="number of importance samples that were drawn for the row")
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
    record: str | None = Field(None, description="id of the verdict's record, where there is a journal")
    id: str | int | float | None = Field(None, description="the row's own id, or its file's name in a form")


class RuleAnswer(Answer):
    """The combined rule: rows with a combined p_value of at most `false_alarm` are invalid."""

    name: Literal["combined"] = Field(description="the rule's name")
    false_alarm: float = Field(description="share of valid rows that it may call invalid")
    accepts: AcceptsAnswer = Field(description="the share of valid rows that the rule accepts")


class GroupsAnswer(Answer):
    """The groups by which rows are compared: of each, the share of valid rows that the band or rule accepts."""

    column: str = Field(description="the column that says which group a row belongs to")
    accepts: dict[str, AcceptsAnswer] = Field(description="by group, the share of its valid rows that is accepted")


class FdrAnswer(Answer):
    """Discoveries among the rows of a request: the expected share of valid rows among them is at most `level`."""

    level: float = Field(description="the requested level")
    tail: Literal["low", "both"] = Field(description="low: unlikely rows are discoveries; both: also rows too likely")
    procedure: Literal["Benjamini-Hochberg", "Benjamini-Yekutieli"] = Field(description="how they were chosen")
    discoveries: int = Field(description="number of discoveries")
    needed: int = Field(
        description="rows that must be more unusual than every validation row before any can be a discovery; if this "
        "exceeds the number of rows, none can be"
    )


class ScoresAnswer(Answer):
    """Answer to POST /score."""

    model: ModelId = ANSWERED_BY
    band: BandAnswer = Field(description="the band by which `side`, and without a rule `verdict`, are judged")
    scores: list[ScoreAnswer] = Field(description="one score for each row, in order")
    rule: RuleAnswer | None = Field(None, description="the rule by which rows are judged, if it is not the band")
    groups: GroupsAnswer | None = Field(None, description="of a version that is calibrated by groups")
    fdr: FdrAnswer | None = Field(None, description="with ?fdr=, what the discoveries promise")
    map: UsualMapAnswer | None = Field(None, description="with ?explain=map, what valid images have at each pixel")
    warnings: list[str] = WARNINGS


class PredictionsAnswer(Answer):
    """Answer to POST /v1/models/{name}:predict."""

    predictions: list[ScoreAnswer] = Field(description="one score for each row, in order")


class ReconstructionAnswer(Answer):
    """Reconstruction of one row."""

    mean: Row = Field(description="E[x given z] over p(z given x), by the importance weights")
    draws: list[Row] = Field(description="with ?draws=N, N observations drawn from p(x given z) over p(z given x)")
    feature_log_likelihood: list[float] = Field(
        description="for each column or pixel, log of the weighted mean of p(x_j given z), nats"
    )


class ReconstructionsAnswer(Answer):
    """Answer to POST /reconstruct."""

    model: ModelId = ANSWERED_BY
    reconstructions: list[ReconstructionAnswer] = Field(description="one reconstruction for each row, in order")
    warnings: list[str] = WARNINGS


class SamplesAnswer(Answer):
    """Answer to GET /sample."""

    model: ModelId = ANSWERED_BY
    seed: int = Field(description="the seed that gives these samples again")
    latents: list[Latent] = Field(description="z of each sample")
    samples: list[Row] = Field(description="the rows that were drawn")


class EncodingAnswer(Answer):
    """q(z given x) of one row."""

    mean: Latent = Field(description="mean of q(z given x)")
    std: list[float] = Field(description="standard deviation of q(z given x), for each latent")
    draws: list[Latent] = Field(description="with ?draws=N, N draws from q(z given x)")


class EncodingsAnswer(Answer):
    """Answer to POST /encode."""

    model: ModelId = ANSWERED_BY
    encodings: list[EncodingAnswer] = Field(description="one encoding for each row, in order")
    warnings: list[str] = WARNINGS


class MeansAnswer(Answer):
    """Answer to POST /decode."""

    model: ModelId = ANSWERED_BY
    means: list[Row] = Field(description="E[x given z] of each vector z, in order")
    warnings: list[str] = WARNINGS


class ManifoldAnswer(Answer):
    """Answer to GET /manifold."""

    model: ModelId = ANSWERED_BY
    axes: tuple[int, int] = Field(description="the two latents that vary")
    latents: list[Latent] = Field(description="z of each point, row by row")
    means: list[Row] = Field(description="E[x given z] of each point, row by row")


class VersionAnswer(Answer):
    """One version of a model."""

    version: str = Field(description="the version, a number")
    aliases: list[str] = Field(description="the aliases that name it")
    loaded: bool = Field(description="whether it is in memory, and can answer at once")
    error: str | None = Field(None, description="why it cannot be served")


class ModelAnswer(Answer):
    """Answer to GET /models/{name}."""

    name: str = Field(description="the model's name")
    ready: bool = Field(description="whether the version that answers to the bare name is in memory")
    default: bool = Field(description="whether it answers where no model is named")
    serving: str | None = Field(description="the version that answers to the bare name")
    versions: list[VersionAnswer] = Field(description="all versions in the store")
    aliases: dict[str, str] = Field(description="the version that each alias names")
    card: dict[str, Any] | None = Field(
        None, description="the card of the serving version, or the one asked for, as in its card.json"
    )
    digest: str | None = Field(None, description="sha256 of that version's manifest")


class ModelsAnswer(Answer):
    """Answer to GET /models."""

    vouch: str = Field(description="version of Vouch")
    default: str | None = Field(description="the model that answers where none is named")
    models: list[ModelAnswer] = Field(description="the models that the caller may use")


class AliasBody(Answer):
    """Body of POST /models/{name}/aliases."""

    alias: str = Field(pattern="^[a-z][a-z0-9_-]{0,63}$", description="the alias; `production` names what is served")
    version: str = Field(pattern="^[1-9][0-9]{0,8}$", description="the version that it shall name")
    expected: str | None = Field(
        None, description="the version that the alias must point at now; otherwise the answer is 409"
    )


class RestartBody(Answer):
    """Body of POST /models/{name}/drift."""

    restart: Literal[True] = Field(description="true")


class AliasAnswer(Answer):
    """The model's aliases after the move."""

    name: str = Field(description="the model's name")
    aliases: dict[str, str] = Field(description="the version that each alias names")


class VersionInfo(Answer):
    """Answer to GET /version."""

    vouch: str = Field(description="version of Vouch")
    api: Literal["v1"] = Field(description="version of the HTTP contract, whose paths are also below /v1")
    journal: bool = Field(description="whether verdicts are recorded, so that feedback can be given on them")


class StatusAnswer(Answer):
    """Answer to the probes."""

    status: Literal["ok", "loading", "draining", "unavailable"] = Field(
        description="ok: alive, or ready; loading: models are not in memory yet; draining: about to stop"
    )
    models: dict[str, str] = Field({}, description="state of each model: `ready`, or why it is not")
    held_back: dict[str, str] = Field(
        {}, description="new versions in the store that cannot be served, and why; the old ones keep serving"
    )


class DriftMonitorAnswer(Answer):
    """A drift monitor since the start of the process, or of the restored state.

    A test martingale compares served rows with the validation rows. If rows stay valid, the chance that `drifts` ever
    becomes true is at most `level`.
    """

    rows: int = Field(description="number of rows that were scored")
    sides: dict[str, int] = Field(description="how many of them lay below, inside and above the band")
    expected_shares: dict[str, float] = Field(description="expected shares of valid rows, from the band's percentiles")
    p_value_deciles: list[int] = Field(description="rows by p_value in ten equal bins from 0; flat if nothing drifts")
    drifts: bool = Field(description="whether served rows no longer look like the validation rows")
    direction: Literal["low", "high"] | None = Field(description="whether low or high likelihoods are too frequent")
    alarm_row: int | None = Field(description="monitored row at which the alarm was raised")
    watched_rows: int = Field(description="rows that were monitored: those without missing cells")
    log_capital: float = Field(
        description="log of the martingale's capital, nats: starts at 0, and rarely exceeds it while nothing drifts"
    )
    peak_log_capital: float = Field(description="the largest log_capital so far")
    limit: float = Field(description="log capital above which drift is reported")
    level: float = Field(description="chance that `drifts` ever becomes true while rows stay valid")
    restarts: int = Field(
        description="number of restarts by POST /models/NAME/drift; each may spend a smaller part of `level`"
    )


class KeyDriftAnswer(DriftMonitorAnswer):
    """Drift monitor of the rows of one API key."""

    key: str = Field(description="the key's id")
    level: float = Field(description="the k-th key's part of the level that all keys share: level / (k (k + 1))")


class DriftAnswer(DriftMonitorAnswer):
    """Drift monitors of one model."""

    model: ModelId = Field(description="the model version whose rows are watched")
    keys: list[KeyDriftAnswer] = Field(description="with API keys: the caller's own, or all for a key of scope admin")


class DriftsAnswer(Answer):
    """Answer to GET /drift."""

    drift: list[DriftAnswer] = Field(description="a monitor for each model, or for the one that was named")


class FaultAnswer(Answer):
    """One problem in the input."""

    message: str = Field(description="what is wrong")
    row: int | None = Field(None, description="the row, from 0")
    column: str | int | None = Field(None, description="the column, parameter or field")
    expected: str | None = Field(None, description="what was expected instead")


class Problem(Answer):
    """RFC 9457 problem document."""

    type: str = Field(description="stable name of the problem: urn:vouch:problem: and a word")
    title: str = Field(description="the problem in a few words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong, and what to send instead; never repeats the input")
    errors: list[FaultAnswer] = Field([], description="at most 20 faults of the input")
    request_id: str | None = Field(description="the request's id, which the service's log has, too")


class Instances(BaseModel):
    """Rows, in the units of the training data."""

    model_config = ConfigDict(extra="forbid")

    instances: list[Instance] = Field(min_length=1, description="the rows")


class Latents(BaseModel):
    """Latents to decode."""

    model_config = ConfigDict(extra="forbid")

    latents: list[Latent] = Field(min_length=1, description="vectors z, each a number for each latent")
