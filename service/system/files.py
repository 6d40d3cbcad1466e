"""Files: written whole or not at all, in a folder or wherever fsspec reaches."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import VouchError


def write_whole(path: Path, content: bytes, temporary_folder: Path | None = None) -> None:
    """Write a file so that at any moment the old one is there or the new one, in full and on the disk.

    Missing folders are made. The file has the mode that the umask gives to new ones. Nothing is left behind, whatever
    ends the writing, but for the end of the process.

    Args:
        temporary_folder: where the new file is written before it is renamed, on the same disk; by default beside the old.

    Raises:
        OSError: it cannot be written; the old file is untouched.
    """
    folder = temporary_folder or path.parent
    for one in (path.parent, folder):
        one.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}"
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_remote(files: Any, path: str, content: bytes) -> None:
    """Write a file of an fsspec filesystem, where it appears once all of it is there.

    Raises:
        OSError: it cannot be written.
    """
    with as_os_error():
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
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


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
    """Drivers raise whatever their libraries raise; here all of it is an OSError, whose text may name what was tried."""
    try:
        yield
    except (OSError, VouchError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def is_url(root: str) -> bool:
    """Whether a root is a URL instead of a folder."""
    return "://" in root
