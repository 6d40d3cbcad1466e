"""A published version of a model: its card, and its form in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from service._version import __version__
from service.data.cells import USUAL, CellReader, Reading
from service.data.domains import Domains
from service.data.inputs import InputSpec
from service.data.kinds import ColumnKind
from service.density.estimator import Estimator
from service.scoring.calibration import Calibration
from service.scoring.fingerprints import Fingerprints
from service.scoring.golden import Golden
from service.scoring.model import Model
from service.system.frozen import Frozen
from service.vae.network import Architecture

MAX_MEMBERS = 100


class CalibrationCard(Frozen):
    """Summary of the calibration in the card; the scores themselves are in calibration.safetensors."""

    rows: int
    percentiles: tuple[float, float]
    band: tuple[float | None, float | None]  # None for no end
    data: dict[str, Any] = {}


class Card(Frozen):
    """A model's description: what it is, how it was made, and how to load it."""

    format: Literal[2] = 2
    name: str
    version: str
    created: datetime
    vouch: str = __version__
    description: str = ""
    architecture: Architecture
    members: int = Field(1, ge=1, le=MAX_MEMBERS)  # networks of it, whose densities are averaged
    input: InputSpec
    estimator: Estimator
    calibration: CalibrationCard
    training: dict[str, Any] = {}
    reading: Reading = USUAL  # absent in older cards, whose data was read with the default
    kinds: tuple[ColumnKind, ...] = ()  # what each column of the training file was taken for, and why
    domains: Domains | None = None  # what the training rows never held; None where that was not learnt

    @model_serializer(mode="wrap")
    def without_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; one that was added later only where it says something."""
        document: dict[str, Any] = serialize(self)
        return document if self.domains is not None else {key: one for key, one in document.items() if key != "domains"}

    def reader(self) -> CellReader:
        """A reader of cells for the version's rows."""
        return self.input.reader(self.reading, () if self.domains is None else self.domains.beside)


@dataclass(frozen=True, slots=True)
class Reference:
    """Name and version of a model in the store."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Draft:
    """A model that is not published yet: `store.Store.publish` makes a version of it.

    Attributes:
        training: the card's entry on training.
        calibration_data: the card's entry on the calibration rows.
        reading: how the cells of the training file were read.
        kinds: what each column of the training file was taken for.
        domains: what its rows never held.
        fingerprints: of the rows that the networks were fitted to; None if they are not kept.
    """

    model: Model
    calibration: Calibration
    training: dict[str, Any]
    calibration_data: dict[str, Any]
    description: str = ""
    reading: Reading = USUAL
    kinds: tuple[ColumnKind, ...] = ()
    domains: Domains | None = None
    fingerprints: Fingerprints | None = None


@dataclass(frozen=True)
class Published:
    """A verified model version, in memory."""

    reference: Reference
    digest: str
    card: Card
    model: Model
    calibration: Calibration
    golden: Golden | None
