"""Checkpoint files of fits in progress, one per network, from which `vouch train --resume` continues."""

from __future__ import annotations

import contextlib
import io
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from service.errors import DataError
from service.system.files import is_url, write_whole

SAVE_EVERY_S = 5.0  # a short epoch takes less time than writing to disk


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder of checkpoints for one training run.

    Attributes:
        key: identifies the data and the recipe of the run.
        resumes: whether to continue from existing checkpoints; otherwise they are removed.
    """

    folder: Path
    resumes: bool = False
    key: str = ""

    @staticmethod
    def beside(store: str, name: str, resumes: bool, folder: Path | None = None) -> Checkpoints:
        """Checkpoints of a model to publish: in `folder` or, by default, in `.training` in the store.

        For a store at a URL the default is `.vouch-training` in the working directory.

        Raises:
            DataError: there is nothing to resume.
        """
        usual = Path(".vouch-training") if is_url(store) else Path(store) / ".training"
        found = Checkpoints((folder or usual) / name, resumes)
        if resumes and not list(found.folder.glob("*.pt")):
            raise DataError(f"{found.folder}: no training to resume")
        return found

    def start(self, key: str) -> Checkpoints:
        """Begin a training run: remove old checkpoints or, to resume, check that they belong to it.

        Raises:
            DataError: they are of other data or options, or damaged.
        """
        if not self.resumes:
            self.clear()
        for path in self.folder.glob("*.pt"):
            FileCheckpoint(path, key).load()
        return replace(self, key=key)

    def of(self, member: str) -> FileCheckpoint:
        return FileCheckpoint(self.folder / f"{member}.pt", self.key)

    def seconds(self) -> dict[str, float]:
        """How long each fit that is saved here has taken so far, by its member's name."""
        found = {path.stem: FileCheckpoint(path, self.key).load() for path in sorted(self.folder.glob("*.pt"))}
        return {member: float(state["seconds"]) for member, state in found.items() if state is not None}

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The weights of the first fit that is saved here; None if there is none."""
        for path in sorted(self.folder.glob("*.pt")):
            state = FileCheckpoint(path, self.key).load()
            if state is not None:
                return dict(state["weights"])
        return None

    def clear(self) -> None:
        """Remove the checkpoints, as when the model is published."""
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@dataclass
class FileCheckpoint:
    """A fit's state in a file, replaced atomically and at most every few seconds."""

    path: Path
    key: str
    saved_at: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The saved state, if there is one.

        Raises:
            DataError: it is of other data or options, or damaged.
        """
        if not self.path.exists():
            return None
        try:
            kept = torch.load(io.BytesIO(self.path.read_bytes()), weights_only=True, map_location="cpu")
            key, state = kept["key"], kept["state"]
        except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise DataError(f"{self.path}: damaged checkpoint: train without --resume") from error
        if key != self.key:
            raise DataError(f"{self.path}: started with other data or options: use the same, or train without --resume")
        return dict(state)

    def save(self, state: Callable[[], dict[str, Any]], is_last: bool) -> None:
        """Save the state if the last save is long enough ago or this is the last one."""
        if not is_last and time.monotonic() - self.saved_at < SAVE_EVERY_S:
            return
        content = io.BytesIO()
        torch.save({"key": self.key, "state": state()}, content)
        write_whole(self.path, content.getvalue())
        self.saved_at = time.monotonic()
