"""A published version of a model: its card, and its form in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from service._version import __version__
from service.data.cells import USUAL, CellReader, Reading
from service.data.domains import Domains
from service.data.image_reading import ImageReading
from service.data.inputs import InputSpec
from service.data.kinds import ColumnKind
from service.density.estimator import Estimator
from service.scoring.calibration import Calibration
from service.scoring.fingerprints import Fingerprints
from service.scoring.golden import Golden
from service.scoring.groups import GroupPlan
from service.scoring.model import Model
from service.scoring.options import RuleName
from service.scoring.selftest import SelfTest
from service.scoring.weighing import Weighting
from service.system.frozen import Frozen
from service.vae.network import Architecture

MAX_MEMBERS = 100
LATER_FIELDS = ("domains", "selftest", "images")  # of the card


def without_nothing(document: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A document without those of the named fields that are None."""
    return {key: one for key, one in document.items() if key not in names or one is not None}


class CalibrationCard(Frozen):
    """Summary of the calibration in the card; the scores themselves are in calibration.safetensors."""

    rows: int
    percentiles: tuple[float, float]
    band: tuple[float | None, float | None]  # None for no end
    data: dict[str, Any] = {}
    rule: RuleName = "band"  # by which rows are judged that are asked about without one
    false_alarm: float | None = None  # of the rule combined
    groups: GroupPlan | None = None  # by which rows are compared with others of their group
    weighting: Weighting | None = None  # how the weights of the rule combined were chosen; None for the usual ones

    @model_serializer(mode="wrap")
    def without_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; those that were added later only where they say something."""
        return without_nothing(serialize(self), ("groups", "weighting"))


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
    images: ImageReading | None = (
        None  # how encoded images are read; None for those of before, and where there were none
    )
    domains: Domains | None = None  # what the training rows never held; None where that was not learnt
    selftest: SelfTest | None = None  # what the rules catch of valid rows that were spoilt; None if that was not tried

    @model_serializer(mode="wrap")
    def without_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; those that were added later only where they say something."""
        return without_nothing(serialize(self), LATER_FIELDS)

    @property
    def input_digest(self) -> str:
        """Short sha256 of what the version reads: versions with the same one read a row as the same numbers."""
        beside = () if self.domains is None else self.domains.beside
        read = (self.input, self.reading, *beside, *filter(None, [self.images]))
        text = "\n".join(one.model_dump_json() for one in read)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def row_width(self) -> int:
        """Cells of a row as the version's reader reads it, D + C: of the input's columns, and of those beside it."""
        return self.input.features + (0 if self.domains is None else len(self.domains.beside))

    def reader(self) -> CellReader:
        """A reader of cells for the version's rows."""
        beside = () if self.domains is None else self.domains.beside
        return self.input.reader(self.reading, beside, self.images)


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
        images: how encoded images are read.
        domains: what its rows never held.
        fingerprints: of the rows that the networks were fitted to; None if they are not kept.
        selftest: what the rules catch of spoilt rows; None if that was not tried.
        rule, false_alarm: by which rows are judged that are asked about without a rule.
    """

    model: Model
    calibration: Calibration
    training: dict[str, Any]
    calibration_data: dict[str, Any]
    description: str = ""
    reading: Reading = USUAL
    kinds: tuple[ColumnKind, ...] = ()
    images: ImageReading | None = None
    domains: Domains | None = None
    fingerprints: Fingerprints | None = None
    selftest: SelfTest | None = None
    rule: RuleName = "band"
    false_alarm: float | None = None

    def judging(self, rule: RuleName, false_alarm: float | None = None) -> Draft:
        """This model, judging by a rule where it is asked without one.

        `false_alarm` is the rate of the rule combined; None: the usual one.

        Raises:
            CalibrationError: it cannot judge by the rule at that rate.
        """
        if rule == "combined":
            self.calibration.combined_rule(self.model.input, false_alarm)
        return replace(self, rule=rule, false_alarm=false_alarm)

    def card(self, reference: Reference) -> Card:
        """The card of this model, published as a version."""
        model, calibration = self.model, self.calibration
        return Card(
            name=reference.name,
            version=reference.version,
            created=datetime.now(UTC).replace(microsecond=0),
            description=self.description,
            architecture=model.vae.architecture,
            members=len(model.members),
            input=model.input,
            estimator=model.estimator,
            calibration=CalibrationCard(
                rows=len(calibration.scores),
                percentiles=calibration.percentiles,
                band=calibration.band().ends_or_none,
                data=self.calibration_data,
                rule=self.rule,
                false_alarm=self.false_alarm,
                groups=None if calibration.groups is None else calibration.groups.plan,
                weighting=calibration.weighting,
            ),
            training=self.training,
            reading=self.reading,
            kinds=self.kinds,
            images=self.images,
            domains=self.domains,
            selftest=self.selftest,
        )

    def unpublished(self) -> Published:
        """This model as if it were published, to score with it before it is."""
        reference = Reference("draft", "0")
        return Published(reference, "", self.card(reference), self.model, self.calibration, None)


@dataclass(frozen=True)
class Published:
    """A verified model version, in memory."""

    reference: Reference
    digest: str
    card: Card
    model: Model
    calibration: Calibration
    golden: Golden | None

    def judging(self, rule: RuleName, false_alarm: float | None) -> Published:
        """This version, but judging by another rule where it is asked without one."""
        calibration = self.card.calibration.model_copy(update={"rule": rule, "false_alarm": false_alarm})
        return replace(self, card=self.card.model_copy(update={"calibration": calibration}))

    def again(self, model: Model, calibration: Calibration, calibration_data: dict[str, Any]) -> Draft:
        """The same model, calibrated anew, to publish as another version: it judges by the same rule."""
        return Draft(
            model,
            calibration,
            training=self.card.training,
            calibration_data=calibration_data,
            description=self.card.description,
            reading=self.card.reading,
            kinds=self.card.kinds,
            images=self.card.images,
            domains=self.card.domains,
            rule=self.card.calibration.rule,
            false_alarm=self.card.calibration.false_alarm,
        )
