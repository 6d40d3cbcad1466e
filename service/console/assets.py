"""The files that the console consists of, as they are and compressed."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent / "static"
PAGE = "index.html"
TYPES = {
    ".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".json": "application/json",
    ".mjs": "text/javascript", ".svg": "image/svg+xml",
}  # fmt: skip
LEVEL = 9


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, as it is and compressed, with its media type and a digest."""

    content: bytes
    packed: bytes
    kind: str
    digest: str


@cache
def assets() -> dict[str, Asset]:
    """The files by path. The compressed ones lie in the wheel; in a checkout they are made here."""
    return {path.relative_to(ROOT).as_posix(): asset(path) for path in sorted(ROOT.rglob("*")) if is_served(path)}


def is_served(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".gz", ".md")


def asset(path: Path) -> Asset:
    content, packed = path.read_bytes(), path.with_name(f"{path.name}.gz")
    kind = TYPES.get(path.suffix, "text/plain")
    return Asset(
        content,
        packed.read_bytes() if packed.is_file() else gzip.compress(content, LEVEL, mtime=0),
        f"{kind}; charset=utf-8",
        hashlib.sha256(content).hexdigest(),
    )
