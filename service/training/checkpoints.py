"""Files in which fits are kept while they last, one for each network, so that `vouch train --resume` goes on with them."""

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

SAVE_EVERY_S = 5.0  # a short epoch takes less time than the disk


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder of them, for one training.

    Attributes:
        key: of the data and the recipe that they are for.
        resumes: whether to go on from what is there; otherwise it is begun anew.
    """

    folder: Path
    resumes: bool = False
    key: str = ""

    @staticmethod
    def beside(store: str, name: str, resumes: bool, folder: Path | None = None) -> Checkpoints:
        """Those of a model that is to be published in a store; beside the store where that is a folder.

        Raises:
            DataError: there is nothing to go on from.
        """
        usual = Path(".vouch-training") if is_url(store) else Path(store) / ".training"
        found = Checkpoints((folder or usual) / name, resumes)
        if resumes and not list(found.folder.glob("*.pt")):
            raise DataError(f"{found.folder}: holds no training to go on with")
        return found

    def begun(self, key: str) -> Checkpoints:
        """Those of a training that begins: what another one left is removed or, where this one resumes, refused.

        Raises:
            DataError: they are of other data or options, or damaged.
        """
        if not self.resumes:
            self.clear()
        for path in self.folder.glob("*.pt"):
            FileCheckpoint(path, key).load()
        return replace(self, key=key)

    def of(self, member: str) -> FileCheckpoint:
        """That of one network."""
        return FileCheckpoint(self.folder / f"{member}.pt", self.key)

    def clear(self) -> None:
        """Remove them, as when the model is published."""
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


@dataclass
class FileCheckpoint:
    """A state in a file, which is replaced whole, and not more often than every few seconds."""

    path: Path
    key: str
    saved_at: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """The state, if there is one.

        Raises:
            DataError: it is of other data or options, or damaged.
        """
        if not self.path.exists():
            return None
        try:
            kept = torch.load(io.BytesIO(self.path.read_bytes()), weights_only=True, map_location="cpu")
            key, state = kept["key"], kept["state"]
        except (RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise DataError(f"{self.path}: is damaged: train without --resume") from error
        if key != self.key:
            raise DataError(
                f"{self.path}: was begun with other data or options: give the same, or train without --resume"
            )
        return dict(state)

    def save(self, state: Callable[[], dict[str, Any]], is_last: bool) -> None:
        """Keep the state, if the last time is long ago or there is no next one."""
        if not is_last and time.monotonic() - self.saved_at < SAVE_EVERY_S:
            return
        content = io.BytesIO()
        torch.save({"key": self.key, "state": state()}, content)
        write_whole(self.path, content.getvalue())
        self.saved_at = time.monotonic()
