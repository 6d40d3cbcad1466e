"""What the schemas of requests and answers are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypeAliasType

Row = TypeAliasType(
    "Row",
    Annotated[
        list[float | str | None] | list[list[float]] | list[list[list[float]]],
        Field(
            description="one row in the units of the training data: its cells in the model's order, null for a missing "
            "one; an image as its lines of pixels, 0 to 255, each with red, green and blue if it has colours"
        ),
    ],
)
Instance = TypeAliasType(
    "Instance",
    Annotated[
        list[float | str | None]
        | list[list[float]]
        | list[list[list[float]]]
        | dict[str, float | str | bool | None]
        | str,
        Field(
            description="one row in the units of the training data: its cells in the model's order, or by column name "
            "(perhaps with an `id`), null for a missing one; an image as its lines of pixels, 0 to 255, or as a file in "
            "base64, perhaps as a data URI"
        ),
    ],
)
Latent = Annotated[list[float], Field(description="one vector z, a number for each latent")]


class Answer(BaseModel):
    """Part of an answer; undocumented fields are forbidden."""

    model_config = ConfigDict(extra="forbid")


WARNINGS: Any = Field([], description="what looks like a mistake, or was changed on the way")


class ModelId(Answer):
    """The model version that answered."""

    name: str = Field(description="the model's name")
    version: str = Field(description="the version, a number; a model's answers change only with it")
    digest: str = Field(description="sha256 of the version's manifest, which lists the sha256 of each file")


ANSWERED_BY: Any = Field(description="the model version that answered")
