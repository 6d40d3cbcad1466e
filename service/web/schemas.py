"""The shapes of requests and answers for the OpenAPI document. A test holds real answers against them.

Requests are parsed by `parsing.py` and answers written by `answers.py`; pydantic sees neither, since a list of 784
numbers is dear to walk.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A part of an answer: no field that is not documented."""

    model_config = ConfigDict(extra="forbid")


class ModelId(Answer):
    """Which model answered."""

    name: str
    version: str
    digest: str = Field(description="sha256 of the version's manifest, which holds those of its files")


class AcceptsAnswer(Answer):
    """The share of valid rows, like the validation rows, that the band accepts; with ties it is more."""

    expected: float = Field(description="over all sets of so many validation rows; by folds usual, not proved")
    proven: float | None = Field(None, description="by folds: what it is at least, over all such sets")
    rows: int = Field(description="validation rows")
    interval: tuple[float, float] | None = Field(
        None,
        description="where it is, with this set, with probability `confidence`; not by folds, of which nobody can say",
    )
    confidence: float | None = Field(None, description="of the interval")
    folds: int | None = Field(
        None, description="how many networks serve together, each calibrated on rows it did not see"
    )


class BandAnswer(Answer):
    """The interval of log_likelihood inside which a row is valid, ends included."""

    percentiles: tuple[float, float] = Field(description="100, with null for an end: no row is too likely")
    log_likelihood: tuple[float, float | None]
    accepts: AcceptsAnswer


class ExpectedNumber(Answer):
    """What the other columns let expect of a number."""

    mean: float
    interval: tuple[float, float] = Field(description="holds nine tenths")


class ExpectedCategory(Answer):
    """What the other columns let expect of a category."""

    most_likely: str | float
    probability: float


class BlamedAnswer(Answer):
    """A column of a row, by how unlikely its cell is given all others."""

    name: str | int
    pixel: tuple[int, int] | None = Field(None, description="row and column, of an image")
    value: str | float
    log_likelihood: float = Field(description="log p(x_j given all other columns), nats")
    std_error: float
    reliable: bool
    p_value: float = Field(description="share of validation rows whose cell in this column is as unlikely, or more")
    expected: ExpectedNumber | ExpectedCategory


class ScoreAnswer(Answer):
    """The verdict on one row."""

    verdict: Literal["valid", "invalid"] = Field(description="by the band or, with ?rule=combined, by all evidence")
    side: Literal["below", "inside", "above"]
    certain: bool = Field(
        description="the estimate's interval (3 standard errors; 9 where it is not reliable) holds neither end"
    )
    reliable: bool = Field(
        description="khat, ess and the search for modes give no reason to distrust the estimate; where they do, it is a "
        "bound in probability: above log p(x) by more than b nats with a probability of at most exp(-b)"
    )
    log_likelihood: float = Field(description="estimate of log p(x), nats")
    std_error: float
    ess: float
    khat: float | None
    num_samples: int
    percentile: float = Field(description="share of validation rows that are less likely, 0 to 100")
    p_value: float = Field(description="two-sided conformal p-value; not the probability that the row is valid")
    missing: int | None = Field(None, description="missing cells of the row, where it has some")
    band: tuple[float, float] | None = Field(
        None, description="ends of its own band: that of validation rows with the same cells missing"
    )
    columns: list[BlamedAnswer] | None = Field(
        None, description="with ?explain=N, the columns most to blame, of the smallest p_value first"
    )
    evidence: dict[str, float] | None = Field(
        None, description="with ?rule=combined, the conformal p_value of all evidence and of each statistic"
    )
    discovery: bool | None = Field(None, description="with ?fdr=, whether the row is one")
    id: str | int | float | None = None


class RuleAnswer(Answer):
    """The combined rule: a row is invalid whose combined p_value is at most `false_alarm`."""

    name: Literal["combined"]
    false_alarm: float
    accepts: AcceptsAnswer


class FdrAnswer(Answer):
    """Which rows of a request are discoveries: the expected share of valid rows among them is at most `level`."""

    level: float
    tail: Literal["low", "both"]
    procedure: Literal["Benjamini-Hochberg", "Benjamini-Yekutieli"]
    discoveries: int
    needed: int = Field(
        description="rows that must be more unusual than every validation row before any can be a discovery; above the "
        "number of rows, none can be"
    )


class ScoresAnswer(Answer):
    """POST /score."""

    model: ModelId
    band: BandAnswer
    scores: list[ScoreAnswer]
    rule: RuleAnswer | None = None
    fdr: FdrAnswer | None = None
    warnings: list[str] = []


class ReconstructionAnswer(Answer):
    """One row as the model sees it."""

    mean: list[Any]
    draws: list[list[Any]]
    feature_log_likelihood: list[float]


class ReconstructionsAnswer(Answer):
    """POST /reconstruct."""

    model: ModelId
    reconstructions: list[ReconstructionAnswer]
    warnings: list[str] = []


class SamplesAnswer(Answer):
    """GET /sample."""

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
    """POST /encode."""

    model: ModelId
    encodings: list[EncodingAnswer]
    warnings: list[str] = []


class MeansAnswer(Answer):
    """POST /decode."""

    model: ModelId
    means: list[Any]


class ManifoldAnswer(Answer):
    """GET /manifold."""

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
    """GET /models/{name}."""

    name: str
    default: bool
    serving: str | None = Field(description="the version that the bare name means")
    versions: list[VersionAnswer]
    aliases: dict[str, str]
    card: dict[str, Any] | None = Field(None, description="the serving version's card, as in its card.json")
    digest: str | None = None


class ModelsAnswer(Answer):
    """GET /models."""

    vouch: str = Field(description="the version of the program")
    default: str | None
    models: list[ModelAnswer]


class AliasBody(Answer):
    """POST /models/{name}/aliases."""

    alias: str = Field(pattern="^[a-z][a-z0-9_-]{0,63}$")
    version: str = Field(pattern="^[1-9][0-9]{0,8}$")
    expected: str | None = Field(None, description="the version that the alias must name now; otherwise 409")


class RestartBody(Answer):
    """POST /models/{name}/drift."""

    restart: Literal[True]


class AliasAnswer(Answer):
    """The model's aliases after the move."""

    name: str
    aliases: dict[str, str]


class StatusAnswer(Answer):
    """GET /livez and /readyz."""

    status: Literal["ok", "loading", "draining", "unavailable"]
    models: dict[str, str] = Field({}, description="each model and `ready`, or why it is not")
    held_back: dict[str, str] = Field(
        {}, description="what is new in the store and cannot be served, and why; what was served before goes on"
    )


class DriftAnswer(Answer):
    """Served rows of one model against its calibration rows since the start of this process, or of the state it was given.

    `drifts` comes of a test martingale: while served rows are like the validation rows, the probability that it ever says
    so is at most `level`.
    """

    model: ModelId
    rows: int
    sides: dict[str, int]
    expected_shares: dict[str, float] = Field(description="of valid rows, by the calibration's percentiles")
    p_value_deciles: list[int] = Field(description="rows by p_value, ten equal bins from 0; level where nothing drifts")
    drifts: bool
    direction: Literal["low", "high"] | None = Field(description="which likelihoods pile up")
    alarm_row: int | None = Field(description="of the watched rows, the one at which it was noticed")
    watched_rows: int = Field(description="complete rows; others cannot be ranked among them")
    log_capital: float = Field(
        description="of the martingale, nats: 0 at its start, and seldom more while nothing drifts"
    )
    peak_log_capital: float
    limit: float = Field(description="of the log capital, above which it is drift")
    level: float
    restarts: int = Field(
        description="how often POST /models/NAME/drift made it begin anew; each start may spend less of the level"
    )


class DriftsAnswer(Answer):
    """GET /drift."""

    drift: list[DriftAnswer]


class FaultAnswer(Answer):
    """One thing that is wrong."""

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


class ProtocolError(Answer):
    """An error of the Open Inference Protocol."""

    error: str


class ProtocolServer(Answer):
    """GET /v2."""

    name: str
    version: str
    extensions: list[str]


class ProtocolLive(Answer):
    """GET /v2/health/live."""

    live: bool


class ProtocolReady(Answer):
    """GET /v2/health/ready."""

    ready: bool


class ProtocolModelReady(Answer):
    """GET /v2/models/{name}/ready."""

    name: str
    ready: bool


class ProtocolTensorInfo(Answer):
    """What a tensor looks like; -1 is any number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ProtocolModel(Answer):
    """GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[ProtocolTensorInfo]
    outputs: list[ProtocolTensorInfo]


class ProtocolOutput(Answer):
    """A tensor for one part of the score; without data, its bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[str] | None = None
    parameters: dict[str, Any] | None = None


class ProtocolAnswer(Answer):
    """POST /v2/models/{name}/infer."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ProtocolOutput]


class ProtocolInput(BaseModel):
    """The tensor of rows."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]]
    datatype: Literal["FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class ProtocolWanted(BaseModel):
    """An output that the client wants."""

    name: Literal["log_likelihood", "percentile", "p_value", "verdict"]
    parameters: dict[str, Any] = {}


class ProtocolRequest(BaseModel):
    """POST /v2/models/{name}/infer."""

    id: str | None = None
    inputs: list[ProtocolInput] = Field(min_length=1, max_length=1)
    outputs: list[ProtocolWanted] = []
    parameters: dict[str, Any] = {}


class Instances(BaseModel):
    """Rows, in the units of the training data."""

    model_config = ConfigDict(extra="forbid")

    instances: list[list[float | str | None] | list[list[float]] | dict[str, Any]] = Field(min_length=1)


class Latents(BaseModel):
    """Latents to decode."""

    model_config = ConfigDict(extra="forbid")

    latents: list[list[float]] = Field(min_length=1)
