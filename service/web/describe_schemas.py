"""Schemas of a model's calibration and examples, and of the rows of a file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.web.schema_parts import ANSWERED_BY, WARNINGS, Answer, ModelId
from service.web.schemas import AcceptsAnswer

RATE = "share of valid rows that may be called invalid"


class CurveAnswer(Answer):
    """Quantiles of log p(x) of the validation rows, those that cannot be read left out."""

    levels: list[float] = Field(description="0 to 1, evenly")
    log_likelihood: list[float] = Field(description="the quantile at each level, nats")


class StatisticAnswer(Answer):
    """One of the statistics behind the rule combined."""

    name: str = Field(description="its name in a score's `evidence`")
    meaning: str = Field(
        description="what a row with a small p-value is or has; `one in so many valid rows` precedes it"
    )


class PromiseAnswer(Answer):
    """What a rule promises at a rate."""

    false_alarm: float = Field(description=RATE)
    accepts: AcceptsAnswer = Field(description="the share of valid rows that it accepts")
    log_likelihood: tuple[float | None, float | None] | None = Field(
        None, description="of the band, its ends in nats; null for an open end"
    )


class PromisesAnswer(Answer):
    """What each rule promises at each rate that the validation rows allow, smallest first."""

    combined: list[PromiseAnswer] | None = Field(None, description="?rule=combined&false_alarm=")
    low: list[PromiseAnswer] = Field(description="?false_alarm=&tail=low: only unlikely rows are invalid")
    both: list[PromiseAnswer] = Field(description="?false_alarm=&tail=both: also rows that are too likely")


class JudgingAnswer(Answer):
    """How rows are judged where a request asks for nothing."""

    rule: Literal["band", "combined"] = Field(description="the rule")
    false_alarm: float | None = Field(None, description=RATE)
    percentiles: tuple[float, float] | None = Field(None, description="of the band")
    tail: Literal["low", "both"] | None = Field(None, description="of the band at a rate")
    fixed: bool = Field(description="whether the deployment lets no request ask for another (VOUCH_POLICY)")


class CalibrationAnswer(Answer):
    """Answer to GET /calibration."""

    model: ModelId = ANSWERED_BY
    rows: int = Field(description="number of validation rows")
    judging: JudgingAnswer = Field(description="how rows are judged where a request asks for nothing")
    curve: CurveAnswer = Field(description="where the validation rows lie")
    statistics: list[StatisticAnswer] = Field(description="the statistics of the rule combined; none without it")
    promises: PromisesAnswer = Field(description="what each rule promises")


class ExampleAnswer(Answer):
    """A row to try the model with."""

    title: str = Field(description="what it is")
    spoil: str | None = Field(None, description="in which way it was spoilt, if it was")
    instance: Any = Field(description="the row, as POST /score reads it")


class ExamplesAnswer(Answer):
    """Answer to GET /examples."""

    model: ModelId = ANSWERED_BY
    examples: list[ExampleAnswer] = Field(description="rows that the model drew itself, the last of them spoilt")


class RowsAnswer(Answer):
    """Answer to POST /rows."""

    model: ModelId = ANSWERED_BY
    columns: list[str] | None = Field(None, description="the columns of the file, in its order, if they have names")
    instances: list[Any] = Field(description="the rows, each as POST /score reads it")
    warnings: list[str] = WARNINGS
