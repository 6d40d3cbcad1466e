"""The model store: immutable, verified model versions, in a folder or at an fsspec URL.

    STORE/NAME/VERSION/card.json                 what the model is
                       weights.safetensors       the network
                       calibration.safetensors   the validation rows' scores, the codebook, and the golden rows
                       manifest.json             sha256 and size of each, written last
    STORE/aliases.json                           the default model, and names for versions

A version is there whole or not at all (`shelf.py`). Loading checks every hash before a byte is used. Nothing is ever
unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from service import __version__
from service.data.columns import Frozen
from service.data.inputs import InputSpec
from service.density.estimator import Estimator
from service.errors import CalibrationError, DamagedModelError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.scoring.model import Calibration, Golden, Member, Model, ReferenceRows
from service.scoring.statistics import Evidence, Known, weights_of
from service.store.storage import MANIFEST, NAME, VERSION, LocalShelf, Shelf, shelf_of
from service.vae.network import VAE, Architecture
from service.validity.column_ranks import ColumnSketch
from service.validity.combination import Combination

COMBINATION = tuple(field.name for field in dataclasses.fields(Combination))
SKETCH = tuple(field.name for field in dataclasses.fields(ColumnSketch))
FILES = ("card.json", "weights.safetensors", "calibration.safetensors")
ALIASES = "aliases.json"
PRODUCTION = "production"  # the alias that a bare name means
MAX_FILE_BYTES = 2**30
MAX_MEMBERS = 100
MAX_MANIFEST = MAX_ALIASES = 2**20
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class CalibrationCard(Frozen):
    """What the card says of the calibration; the scores themselves are in calibration.safetensors."""

    rows: int
    percentiles: tuple[float, float]
    band: tuple[float, float | None]  # None for no high end
    data: dict[str, Any] = {}


class Card(Frozen):
    """What a model is, how it was made, and how it is to be read."""

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


class FileEntry(Frozen):
    """A file's place in the manifest."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Manifest(Frozen):
    """The files of a version."""

    files: dict[str, FileEntry]


class Aliases(BaseModel):
    """aliases.json: the default model, and for each model names of versions."""

    model_config = ConfigDict(extra="forbid")

    default: str | None = None
    aliases: dict[str, dict[str, str]] = {}


@dataclass(frozen=True, slots=True)
class Reference:
    """A model version that exists in the store."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Published:
    """A verified model version, in memory."""

    reference: Reference
    digest: str
    card: Card
    model: Model
    calibration: Calibration
    golden: Golden | None


@dataclass(frozen=True)
class Catalog:
    """What a store holds at a moment: versions by name, oldest first, aliases, the default, and what a bare name means.

    `serving` is a model's alias `production` where there is one, and its newest version otherwise.
    """

    versions: dict[str, tuple[str, ...]]
    aliases: dict[str, dict[str, str]]
    default: str | None
    serving: dict[str, str]

    @staticmethod
    def of(versions: dict[str, list[str]], aliases: Aliases) -> Catalog:
        """The catalog of some versions and what aliases.json says."""
        named = {name: aliases.aliases.get(name, {}) for name in versions}
        serving = {name: named[name].get(PRODUCTION, numbers[-1]) for name, numbers in versions.items()}
        return Catalog({name: tuple(numbers) for name, numbers in versions.items()}, named, aliases.default, serving)

    def names(self) -> list[str]:
        """The models that have at least one version."""
        return sorted(self.versions)

    def default_name(self) -> str:
        """The model that is meant where none is named."""
        if self.default is not None:
            return self.default
        names = self.names()
        if len(names) == 1:
            return names[0]
        raise ModelNotFoundError("the store has no default model: name one" if names else "the store holds no model")

    def resolve(self, name: str | None = None) -> Reference:
        """Which version `NAME`, `NAME@VERSION` or `NAME@ALIAS` means; None is the default model.

        A version's number is taken as it stands, though the catalog may not have it: it may be half-written, or new.

        Raises:
            ModelNotFoundError: there is none such, or the name is not one.
        """
        name, _, wanted = (name if name is not None else self.default_name()).partition("@")
        checked_name(name)
        if wanted and VERSION.fullmatch(wanted):
            return Reference(name, wanted)
        if name not in self.versions:
            raise ModelNotFoundError(f"no such model in the store, it has: {', '.join(self.names()) or 'none'}")
        if not wanted:
            return Reference(name, self.serving[name])
        aliases = self.aliases[name]
        if wanted not in aliases:
            raise ModelNotFoundError(
                f"model {name!r} has no such alias, it has: {', '.join(aliases) or 'none'}; a version is a number"
            )
        return Reference(name, aliases[wanted])

    def targets(self, name: str) -> set[Reference]:
        """The versions that a model's bare name and its aliases mean."""
        return {Reference(name, version) for version in (self.serving[name], *self.aliases[name].values())}


class Store:
    """Models in a folder, or at an fsspec URL.

    Args:
        cache: folder in which files from afar are kept by their digest; None: nowhere.
    """

    def __init__(self, root: str | os.PathLike[str], cache: Path | None = None) -> None:
        self.shelf = shelf_of(os.fspath(root), cache)

    @property
    def root(self) -> Path:
        """The folder, of a store that is one."""
        assert isinstance(self.shelf, LocalShelf)
        return self.shelf.root

    def catalog(self) -> Catalog:
        """What the store holds now.

        Raises:
            DamagedModelError: aliases.json cannot be read.
            UnavailableError: the place cannot be reached.
        """
        try:
            return Catalog.of(self.shelf.versions(), self.aliases())
        except OSError as error:
            raise UnavailableError(f"the store cannot be read: {type(error).__name__}", 30.0) from error

    def names(self) -> list[str]:
        """The models that have at least one version."""
        return self.catalog().names()

    def versions(self, name: str) -> list[str]:
        """A model's published versions, oldest first. A folder without a manifest was never finished: it is none."""
        return list(self.catalog().versions.get(checked_name(name), ()))

    def resolve(self, name: str | None = None) -> Reference:
        """Which version `NAME`, `NAME@VERSION` or `NAME@ALIAS` means (`Catalog.resolve`)."""
        catalog = self.catalog()
        reference = catalog.resolve(name)
        self.check_holds(reference, catalog)
        return reference

    def check_holds(self, reference: Reference, catalog: Catalog) -> None:
        """Refuse a version that is not there at all; one that is half-written is there, and damaged."""
        versions = catalog.versions.get(reference.name, ())
        if reference.version in versions:
            return
        try:
            is_there = self.shelf.holds(reference.name, reference.version)
        except OSError as error:
            raise UnavailableError(f"the store cannot be read: {type(error).__name__}", 30.0) from error
        if not is_there:
            known = ", ".join(versions) or "none"
            raise ModelNotFoundError(f"model {reference.name!r} has no version {reference.version}, it has: {known}")

    def aliases(self) -> Aliases:
        """The default model and the aliases."""
        try:
            return Aliases.model_validate_json(self.shelf.read(ALIASES, MAX_ALIASES))
        except FileNotFoundError:
            return Aliases()
        except (ValidationError, OSError) as error:
            raise DamagedModelError(f"{ALIASES}: is damaged: {first_line(error)}") from error

    def load(self, reference: Reference) -> Published:
        """Read a version and check every hash.

        Raises:
            DamagedModelError: names the version and the file that is missing, cut short or altered.
            CalibrationError: its thresholds belong to another estimator.
        """
        if not self.shelf.holds(checked_name(reference.name), reference.version):
            raise ModelNotFoundError(f"model {reference} is not in the store")
        contents, digest = verified_files(self.shelf, reference)
        try:
            card = Card.model_validate_json(contents["card.json"])
        except ValidationError as error:
            raise DamagedModelError(f"{reference}: card.json cannot be read: {first_line(error)}") from error
        if (card.name, card.version) != (reference.name, reference.version):
            raise DamagedModelError(f"{reference}: card.json is that of {card.name}@{card.version}")
        vaes = load_networks(card, contents["weights.safetensors"])
        calibration, codebooks, golden = load_calibration(card, contents["calibration.safetensors"])
        first, *others = (Member(vae, codebook) for vae, codebook in zip(vaes, codebooks, strict=True))
        model = Model(first.vae, card.input, card.estimator, first.codebook, tuple(others))
        try:
            calibration.check_belongs_to(model)
        except CalibrationError as error:
            raise CalibrationError(f"{reference}: {error}") from error
        return Published(reference, digest, card, model, calibration, golden)

    def publish(
        self,
        name: str,
        model: Model,
        calibration: Calibration,
        *,
        training: dict[str, Any],
        calibration_data: dict[str, Any],
        description: str = "",
    ) -> Reference:
        """Write a new version of a model, the next number after the newest; no existing one is touched.

        Raises:
            CalibrationError: the thresholds belong to another estimator.
            ModelConflictError: somebody else published the same version meanwhile.
        """
        calibration.check_belongs_to(model)
        golden = Golden.of(model, calibration)
        reference = Reference(checked_name(name), self.shelf.next_version(name))
        band = calibration.band()
        card = Card(
            name=name,
            version=reference.version,
            created=datetime.now(UTC).replace(microsecond=0),
            description=description,
            architecture=model.vae.architecture,
            members=len(model.members),
            input=model.input,
            estimator=model.estimator,
            calibration=CalibrationCard(
                rows=len(calibration.scores),
                percentiles=calibration.percentiles,
                band=band.ends_or_none,
                data=calibration_data,
            ),
            training=training,
        )
        contents = {
            "card.json": (card.model_dump_json(indent=2) + "\n").encode(),
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
                        f"{prefix_of(number)}codebook": torch.from_numpy(one.codebook)
                        for number, one in enumerate(model.members)
                    },
                    **{f"golden.{key}": torch.tensor(array) for key, array in golden.arrays().items()},
                    **reference_tensors(calibration.reference),
                    **sketch_tensors(calibration.columns),
                    **evidence_tensors(calibration.evidence),
                },
                metadata={"fingerprint": calibration.fingerprint},
            ),
        }
        self.shelf.publish(name, contents, manifest_of(contents), reference.version)
        return reference

    def set_alias(self, name: str, alias: str, version: str, expected: str | None = None) -> Aliases:
        """Let an alias name a version, in one step.

        Args:
            expected: where given, the version that the alias must name now.

        Raises:
            ModelNotFoundError: no such version.
            ModelConflictError: the alias names another version than `expected`, or is no proper name.
        """
        if not ALIAS.fullmatch(alias):
            raise ModelConflictError("an alias is a lower-case word of letters, digits, - and _, and no number")
        if version not in self.versions(name):
            raise ModelNotFoundError(f"model {name!r} has no such version, it has: {', '.join(self.versions(name))}")
        with self.shelf.locked():
            aliases = self.aliases()
            current = aliases.aliases.get(name, {}).get(alias)
            if expected is not None and current != expected:
                raise ModelConflictError(f"alias {alias!r} of {name!r} names version {current}, not the expected one")
            aliases.aliases.setdefault(name, {})[alias] = version
            self.write_aliases(aliases)
        return aliases

    def set_default(self, name: str) -> None:
        """Make a model the one that is meant where none is named."""
        if not self.versions(name):
            raise ModelNotFoundError(f"no model {name!r} in the store")
        with self.shelf.locked():
            aliases = self.aliases()
            aliases.default = name
            self.write_aliases(aliases)

    def write_aliases(self, aliases: Aliases) -> None:
        """Replace aliases.json in one step; the caller holds the lock."""
        self.shelf.replace(ALIASES, (aliases.model_dump_json(indent=2) + "\n").encode())


def checked_name(name: str) -> str:
    """The name, if it is one: it becomes a folder's."""
    if not NAME.fullmatch(name):
        raise ModelNotFoundError(
            "no such model: a name has 1 to 64 lower-case letters, digits, - and _, and starts with a letter or digit"
        )
    return name


def verified_files(shelf: Shelf, reference: Reference) -> tuple[dict[str, bytes], str]:
    """The contents of a version's files, each with the size and hash that the manifest says, and the version's digest."""
    folder = f"{reference.name}/{reference.version}"
    try:
        manifest_bytes = shelf.read(f"{folder}/{MANIFEST}", MAX_MANIFEST)
        manifest = Manifest.model_validate_json(manifest_bytes)
    except FileNotFoundError as error:
        raise DamagedModelError(f"{reference}: {MANIFEST} is missing: the version is half-written") from error
    except (ValidationError, OSError) as error:
        raise DamagedModelError(f"{reference}: {MANIFEST} cannot be read: {first_line(error)}") from error
    contents = {}
    for name in FILES:
        if name not in manifest.files:
            raise DamagedModelError(f"{reference}: {MANIFEST} does not list {name}")
        contents[name] = verified_file(shelf, folder, name, manifest.files[name], str(reference))
    return contents, f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def verified_file(shelf: Shelf, folder: str, name: str, entry: FileEntry, label: str) -> bytes:
    """A file's content, if it has the size and the hash of its entry."""
    if entry.size > MAX_FILE_BYTES:
        raise DamagedModelError(f"{label}: {name} is said to have {entry.size} bytes, at most {MAX_FILE_BYTES}")
    try:
        content = shelf.read_hashed(f"{folder}/{name}", entry.sha256, entry.size)
    except OSError as error:
        raise DamagedModelError(f"{label}: {name} is missing or cannot be read") from error
    if len(content) != entry.size:
        has = "more" if len(content) > entry.size else f"only {len(content)}"
        raise DamagedModelError(f"{label}: {name} has {has} bytes, {MANIFEST} says {entry.size}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DamagedModelError(f"{label}: {name} does not have the sha256 that {MANIFEST} says")
    return content


def manifest_of(contents: dict[str, bytes]) -> bytes:
    """The manifest of some files."""
    files = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for name, content in contents.items()
    }
    return (Manifest(files=files).model_dump_json(indent=2) + "\n").encode()


def prefix_of(member: int) -> str:
    """What the names of a network's tensors begin with; nothing for the first one's."""
    return f"member.{member}." if member else ""


def load_networks(card: Card, content: bytes) -> list[VAE]:
    """The networks of a card with their weights, ready for inference."""
    try:
        tensors, vaes = load_tensors(content), []
        for member in reversed(range(card.members)):  # the first one, without a prefix, takes what is left
            prefix = prefix_of(member)
            own = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            vae = VAE(card.architecture)
            vae.load_state_dict(own)
            vaes.append(vae.eval().requires_grad_(False))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedModelError(
            f"{card.name}@{card.version}: weights.safetensors does not fit the card: {first_line(error)}"
        ) from error
    return vaes[::-1]


def load_calibration(card: Card, content: bytes) -> tuple[Calibration, list[np.ndarray], Golden | None]:
    """The validation scores, the codebooks and the golden rows of a card; older versions have no golden rows."""
    try:
        tensors = load_tensors(content)
        scores = tensors["scores"].numpy().astype(np.float64)
        codebooks = [tensors[f"{prefix_of(member)}codebook"].numpy() for member in range(card.members)]
        golden = golden_of({key: tensor.numpy() for key, tensor in tensors.items()})
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        fingerprint = header["__metadata__"]["fingerprint"]
        reference, sketch, evidence = reference_of(tensors), sketch_of(tensors), evidence_of(tensors, card.input)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedModelError(f"{card.name}@{card.version}: calibration.safetensors cannot be read") from error
    if scores.shape != (card.calibration.rows,) or not len(scores) or not (np.diff(scores) >= 0).all():
        raise DamagedModelError(
            f"{card.name}@{card.version}: the validation scores are not {card.calibration.rows} in order"
        )
    for codebook in codebooks:
        shape = (max(1, len(codebook)), card.architecture.latents)
        if codebook.shape != shape or not (np.isfinite(codebook).all() and np.isfinite(scores).all()):
            raise DamagedModelError(f"{card.name}@{card.version}: the codebook does not fit the card")
    folds = tensors["folds"].numpy() if "folds" in tensors else None
    if folds is not None and (folds.shape != scores.shape or set(folds.tolist()) != set(range(card.members))):
        raise DamagedModelError(f"{card.name}@{card.version}: the folds are not those of {card.members} networks")
    calibration = Calibration(scores, card.calibration.percentiles, fingerprint, reference, sketch, evidence, folds)
    return calibration, codebooks, golden


def reference_tensors(reference: ReferenceRows | None) -> dict[str, torch.Tensor]:
    """The reference rows of a calibration that has some."""
    if reference is None:
        return {}
    arrays = {"rows": reference.rows, "holes": reference.holes, "folds": reference.folds}
    return {f"reference.{name}": torch.tensor(array) for name, array in arrays.items() if array is not None}


def reference_of(tensors: dict[str, torch.Tensor]) -> ReferenceRows | None:
    """And back."""
    if "reference.rows" not in tensors:
        return None
    folds = tensors["reference.folds"].numpy() if "reference.folds" in tensors else None
    return ReferenceRows(tensors["reference.rows"].numpy(), tensors["reference.holes"].numpy(), folds)


def sketch_tensors(sketch: ColumnSketch | None) -> dict[str, torch.Tensor]:
    """The columns of a calibration that knows them."""
    return {} if sketch is None else {f"columns.{name}": torch.tensor(getattr(sketch, name)) for name in SKETCH}


def sketch_of(tensors: dict[str, torch.Tensor]) -> ColumnSketch | None:
    """And back."""
    if f"columns.{SKETCH[0]}" not in tensors:
        return None
    return ColumnSketch(*(tensors[f"columns.{name}"].numpy() for name in SKETCH))


def evidence_tensors(evidence: Evidence | None) -> dict[str, torch.Tensor]:
    """The evidence of a calibration that has some; rows of small whole numbers, such as pixels, as bytes."""
    if evidence is None:
        return {}
    rows = evidence.known.rows
    small = np.where(np.isfinite(rows), rows, -1.0).astype(np.uint8, casting="unsafe")
    arrays = {
        "rows": small if np.array_equal(small.astype(rows.dtype), rows) else rows,
        "usual": evidence.known.usual,
        **{name: getattr(evidence.combination, name) for name in COMBINATION},
    }
    return {f"evidence.{name}": torch.tensor(array) for name, array in arrays.items()}


def evidence_of(tensors: dict[str, torch.Tensor], spec: InputSpec) -> Evidence | None:
    """And back.

    Raises:
        ValueError: it does not fit the input.
    """
    if "evidence.rows" not in tensors:
        return None
    arrays = {name: tensors[f"evidence.{name}"].numpy() for name in ("rows", "usual", *COMBINATION)}
    known = Known(arrays["rows"].astype(np.float32), arrays["usual"].astype(np.float64))
    combination = Combination(*(arrays[name].astype(np.float64) for name in COMBINATION))
    sides = len(weights_of(spec)[0])
    shapes = known.rows.shape[1:], known.usual.shape, combination.parts.shape[1:], combination.weights.shape
    if shapes != ((spec.features,), (2, spec.features), (sides,), (sides,)):
        raise ValueError("evidence of other shapes")
    return Evidence(known, combination)


def golden_of(tensors: dict[str, np.ndarray]) -> Golden | None:
    """The golden rows among a version's tensors."""
    arrays = {key.removeprefix("golden."): array for key, array in tensors.items() if key.startswith("golden.")}
    return Golden(**arrays) if arrays else None


def first_line(error: Exception) -> str:
    """An exception in one line; pydantic's without the input that it repeats."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
