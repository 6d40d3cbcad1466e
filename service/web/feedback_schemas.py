"""Schemas of what people say of verdicts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from service.journal.contents import Label
from service.web.schema_parts import Answer, Instance

LABEL = "what the row is: `valid`, `invalid`, or `unsure`"
MAX_NOTE = 2_000  # characters


class FeedbackBody(Answer):
    """Body of POST /feedback. A row is named by `record`, or by `request_id` and perhaps its place in the request."""

    label: Label = Field(description=LABEL)
    record: str | None = Field(None, max_length=32, description="id of the verdict, as `record` of its score")
    request_id: str | None = Field(None, max_length=128, description="instead: the X-Request-Id of the request")
    row: int | None = Field(None, ge=0, le=999_999_999, description="with `request_id`: the row's place, from 0")
    model: str | None = Field(
        None, max_length=128, description="if given, the model that must have judged the row: NAME"
    )
    note: str | None = Field(None, max_length=MAX_NOTE, description="a note, which can be erased later")
    instance: Instance | None = Field(
        None, description="the row itself, to be kept with the journal; it must be the one that was scored"
    )


class FeedbackAnswer(Answer):
    """Answer to POST /feedback: what was recorded."""

    record: str = Field(description="id of the verdict")
    model: str = Field(description="the version that judged the row, NAME@VERSION")
    verdict: Literal["valid", "invalid"] = Field(description="the verdict on the row")
    label: Label = Field(description=LABEL)
    has_row: bool = Field(description="whether the row is kept with the journal")


class ReviewAnswer(Answer):
    """One row that people were asked about, or have spoken of."""

    record: str = Field(description="id of the verdict")
    model: str = Field(description="the version that judged the row, NAME@VERSION")
    time: str = Field(description="when it was judged, in UTC")
    verdict: Literal["valid", "invalid"] = Field(description="the verdict on the row")
    reason: str | None = Field(None, description="the name of the reason, for invalid rows")
    p_value: float = Field(description="the p-value of the rule")
    drawn: bool = Field(description="whether it was drawn at random, whatever its verdict; only such rows tell a rate")
    label: Label | None = Field(None, description="what people say of it: `unsure` if they do not agree")
    own: Label | None = Field(None, description="what the caller said of it")
    row: Any = Field(None, description="the row, if it is kept, as the model reads it")


class RealisedAnswer(Answer):
    """How often valid rows were refused, by what people said of rows that were drawn at random."""

    valid: int = Field(description="rows drawn at random that people call valid")
    refused: int = Field(description="how many of them were refused")
    interval: tuple[float, float] = Field(
        description="contains the true rate with probability `confidence`, whatever the unsure ones are"
    )
    confidence: float = Field(description="confidence level of `interval`")


class ReviewsAnswer(Answer):
    """Answer to GET /feedback: rows of a model, in the order in which they were asked about, or latest first."""

    reviews: list[ReviewAnswer] = Field(description="the rows")
    more: bool = Field(description="whether there are more than `limit`")
    realised: RealisedAnswer | None = Field(
        None, description="with ?rate=1: of all rows that were drawn at random and answered"
    )
