"""The model store: a folder of immutable, verified model versions.

    STORE/NAME/VERSION/card.json                 what the model is
                       weights.safetensors       the network
                       calibration.safetensors   the validation rows' scores, and the codebook
                       manifest.json             sha256 and size of each, written last
    STORE/aliases.json                           the default model, and names for versions

A version is written into a temporary folder, synced, and renamed into place: it is there whole or not at all. Loading
checks every hash before a byte is used. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from service import __version__
from service.data.schema import Frozen, InputSpec
from service.density.estimator import Estimator
from service.errors import CalibrationError, DamagedModelError, ModelConflictError, ModelNotFoundError, UnavailableError
from service.model import Calibration, Model
from service.vae.network import VAE, Architecture

FILES = ("card.json", "weights.safetensors", "calibration.safetensors")
MANIFEST = "manifest.json"
ALIASES = "aliases.json"
MAX_FILE_BYTES = 2**30
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class CalibrationCard(Frozen):
    """What the card says of the calibration; the scores themselves are in calibration.safetensors."""

    rows: int
    percentiles: tuple[float, float]
    band: tuple[float, float]
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
    input: InputSpec
    estimator: Estimator
    calibration: CalibrationCard
    training: dict[str, Any] = {}


class FileEntry(Frozen):
    """A file's place in the manifest."""

    sha256: str
    size: int


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


class Store:
    """A folder of models."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        """The models that have at least one version."""
        if not self.root.is_dir():
            return []
        folders = (entry.name for entry in self.root.iterdir() if entry.is_dir() and NAME.fullmatch(entry.name))
        return sorted(name for name in folders if self.versions(name))

    def versions(self, name: str) -> list[str]:
        """A model's published versions, oldest first. A folder without a manifest was never finished: it is none."""
        folder = self.root / checked_name(name)
        try:
            found = [e.name for e in folder.iterdir() if VERSION.fullmatch(e.name) and (e / MANIFEST).is_file()]
        except OSError:  # not there, or a folder that we may not read: no model of ours
            return []
        return sorted(found, key=int)

    def aliases(self) -> Aliases:
        """The default model and the aliases."""
        path = self.root / ALIASES
        try:
            return Aliases.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Aliases()
        except (ValidationError, OSError) as error:
            raise DamagedModelError(f"{ALIASES}: is damaged: {first_line(error)}") from error

    def default_name(self) -> str:
        """The model that is meant where none is named."""
        default = self.aliases().default
        if default is not None:
            return default
        names = self.names()
        if len(names) == 1:
            return names[0]
        raise ModelNotFoundError("the store has no default model: name one" if names else "the store holds no model")

    def resolve(self, name: str | None = None) -> Reference:
        """Which version `NAME`, `NAME@VERSION` or `NAME@ALIAS` means.

        NAME alone is its alias `production` where there is one, and its newest version otherwise; None is the default.

        Raises:
            ModelNotFoundError: there is none such, or the name is not one.
        """
        name, _, wanted = (name if name is not None else self.default_name()).partition("@")
        versions = self.versions(name)
        if not versions and not (wanted and VERSION.fullmatch(wanted)):
            raise ModelNotFoundError(f"no such model in the store, it has: {', '.join(self.names()) or 'none'}")
        aliases = self.aliases().aliases.get(name, {})
        if not wanted:
            return Reference(name, aliases.get("production", versions[-1]))
        if VERSION.fullmatch(wanted):
            if wanted not in versions and not (self.root / name / wanted).is_dir():
                raise ModelNotFoundError(f"model {name!r} has no version {wanted}, it has: {', '.join(versions)}")
            return Reference(name, wanted)
        if wanted not in aliases:
            known = ", ".join(aliases) or "none"
            raise ModelNotFoundError(f"model {name!r} has no such alias, it has: {known}")
        return Reference(name, aliases[wanted])

    def load(self, reference: Reference) -> Published:
        """Read a version and check every hash.

        Raises:
            DamagedModelError: names the version and the file that is missing, cut short or altered.
            CalibrationError: its thresholds belong to another estimator.
        """
        folder = self.root / checked_name(reference.name) / reference.version
        if not folder.is_dir():
            raise ModelNotFoundError(f"model {reference} is not in the store")
        contents, digest = verified_files(folder, str(reference))
        try:
            card = Card.model_validate_json(contents["card.json"])
        except ValidationError as error:
            raise DamagedModelError(f"{reference}: card.json cannot be read: {first_line(error)}") from error
        if (card.name, card.version) != (reference.name, reference.version):
            raise DamagedModelError(f"{reference}: card.json is that of {card.name}@{card.version}")
        vae = load_network(card, contents["weights.safetensors"])
        calibration, codebook = load_calibration(card, contents["calibration.safetensors"])
        model = Model(vae, card.input, card.estimator, codebook)
        try:
            calibration.check_belongs_to(model)
        except CalibrationError as error:
            raise CalibrationError(f"{reference}: {error}") from error
        return Published(reference, digest, card, model, calibration)

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
        folder = self.root / checked_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(entry.name) for entry in folder.iterdir() if VERSION.fullmatch(entry.name)]
        reference = Reference(name, str(max(taken, default=0) + 1))
        band = calibration.band()
        card = Card(
            name=name,
            version=reference.version,
            created=datetime.now(UTC).replace(microsecond=0),
            description=description,
            architecture=model.vae.architecture,
            input=model.input,
            estimator=model.estimator,
            calibration=CalibrationCard(
                rows=len(calibration.scores),
                percentiles=calibration.percentiles,
                band=(band.low, band.high),
                data=calibration_data,
            ),
            training=training,
        )
        contents = {
            "card.json": (card.model_dump_json(indent=2) + "\n").encode(),
            "weights.safetensors": save_tensors(
                {key: tensor.detach().cpu().contiguous() for key, tensor in model.vae.state_dict().items()}
            ),
            "calibration.safetensors": save_tensors(
                {"scores": torch.from_numpy(calibration.scores), "codebook": torch.from_numpy(model.codebook)},
                metadata={"fingerprint": calibration.fingerprint},
            ),
        }
        write_version(folder, reference, contents)
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
        with self.locked():
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
        with self.locked():
            aliases = self.aliases()
            aliases.default = name
            self.write_aliases(aliases)

    def write_aliases(self, aliases: Aliases) -> None:
        """Replace aliases.json atomically; the caller holds the lock."""
        temporary = self.root / f".{ALIASES}.{os.getpid()}"
        write_synced(temporary, (aliases.model_dump_json(indent=2) + "\n").encode())
        temporary.replace(self.root / ALIASES)
        sync_folder(self.root)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock, so that two writers of aliases.json follow each other."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise UnavailableError(f"the store cannot be written: {type(error).__name__}", 60.0) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def checked_name(name: str) -> str:
    """The name, if it is one: it becomes a folder's."""
    if not NAME.fullmatch(name):
        raise ModelNotFoundError(
            "no such model: a name has 1 to 64 lower-case letters, digits, - and _, and starts with a letter or digit"
        )
    return name


def verified_files(folder: Path, label: str) -> tuple[dict[str, bytes], str]:
    """The contents of a version's files, each with the size and hash that the manifest says, and the version's digest."""
    try:
        manifest_bytes = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(manifest_bytes)
    except FileNotFoundError as error:
        raise DamagedModelError(f"{label}: {MANIFEST} is missing: the version is half-written") from error
    except (ValidationError, OSError) as error:
        raise DamagedModelError(f"{label}: {MANIFEST} cannot be read: {first_line(error)}") from error
    contents = {}
    for name in FILES:
        if name not in manifest.files:
            raise DamagedModelError(f"{label}: {MANIFEST} does not list {name}")
        contents[name] = verified_file(folder / name, manifest.files[name], label)
    return contents, f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}"


def verified_file(path: Path, entry: FileEntry, label: str) -> bytes:
    """A file's content, if it has the size and the hash of its entry."""
    if entry.size > MAX_FILE_BYTES:
        raise DamagedModelError(f"{label}: {path.name} is said to have {entry.size} bytes, at most {MAX_FILE_BYTES}")
    try:
        with path.open("rb") as file:
            content = file.read(entry.size + 1)
    except OSError as error:
        raise DamagedModelError(f"{label}: {path.name} is missing or cannot be read") from error
    if len(content) != entry.size:
        has = "more" if len(content) > entry.size else f"only {len(content)}"
        raise DamagedModelError(f"{label}: {path.name} has {has} bytes, {MANIFEST} says {entry.size}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DamagedModelError(f"{label}: {path.name} does not have the sha256 that {MANIFEST} says")
    return content


def load_network(card: Card, content: bytes) -> VAE:
    """The network of a card with its weights, ready for inference."""
    try:
        vae = VAE(card.architecture)
        vae.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise DamagedModelError(
            f"{card.name}@{card.version}: weights.safetensors does not fit the card: {first_line(error)}"
        ) from error
    return vae.eval().requires_grad_(False)


def load_calibration(card: Card, content: bytes) -> tuple[Calibration, np.ndarray]:
    """The validation scores and the codebook of a card."""
    try:
        tensors = load_tensors(content)
        scores, codebook = tensors["scores"].numpy().astype(np.float64), tensors["codebook"].numpy()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        fingerprint = header["__metadata__"]["fingerprint"]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedModelError(f"{card.name}@{card.version}: calibration.safetensors cannot be read") from error
    if scores.shape != (card.calibration.rows,) or not len(scores) or not (np.diff(scores) >= 0).all():
        raise DamagedModelError(
            f"{card.name}@{card.version}: the validation scores are not {card.calibration.rows} in order"
        )
    shape = (max(1, len(codebook)), card.architecture.latents)
    if codebook.shape != shape or not (np.isfinite(codebook).all() and np.isfinite(scores).all()):
        raise DamagedModelError(f"{card.name}@{card.version}: the codebook does not fit the card")
    return Calibration(scores, card.calibration.percentiles, fingerprint), codebook


def write_version(folder: Path, reference: Reference, contents: dict[str, bytes]) -> None:
    """Write the files and the manifest into a temporary folder, sync them, and rename it to the version's number."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{reference.version}-", dir=folder))
    try:
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide the version from a service of another user
        for name, content in contents.items():
            write_synced(temporary / name, content)
        entries = {
            name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            for name, content in contents.items()
        }
        write_synced(temporary / MANIFEST, (Manifest(files=entries).model_dump_json(indent=2) + "\n").encode())
        sync_folder(temporary)
        try:
            temporary.rename(folder / reference.version)
        except OSError as error:
            raise ModelConflictError(f"{reference} exists already: somebody published it meanwhile") from error
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: Exception) -> str:
    """An exception in one line; pydantic's without the input that it repeats."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
