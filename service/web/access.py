"""API keys: a file with the sha256 digest of each key, its id, and what it may do."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from service.errors import AccessError, ScopeError
from service.serving.quotas import UNLIMITED, Quota
from service.settings import SettingsError
from service.system.files import read_regular

SCOPES = ("score", "review", "admin")
REVIEW_PATH = "/feedback"
DIGEST = re.compile("[0-9a-f]{64}")
ID = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What a file of keys holds that was made from a variable without a value: with and without echo's line end.
EMPTY = {hashlib.sha256(text).hexdigest() for text in (b"", b"\n", b"\r\n")}
EXPECTED = (
    f"expected 64 hex digits, then scopes: {', '.join(SCOPES)}; then perhaps id=, models=, rows_per_s=, "
    "concurrent_rows=, expires=YYYY-MM-DD"
)
MAX_FILE = 2**20
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of one key.

    Attributes:
        id: what logs, quotas and drift monitors call it; by default the start of its digest.
        models: the models that it may use; empty: all.
        quota: how many rows it may send.
        expires: the last day on which it is valid, in UTC.
    """

    digest: str
    id: str
    scopes: frozenset[str]
    models: tuple[str, ...] = ()
    quota: Quota = UNLIMITED
    expires: date | None = None

    def is_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC).date() > self.expires

    def line(self) -> str:
        """The key as a line of the file."""
        options = {
            "id": self.id,
            "models": ",".join(self.models),
            "rows_per_s": self.quota.rows_per_s and f"{self.quota.rows_per_s:g}",
            "concurrent_rows": self.quota.concurrent_rows,
            "expires": self.expires,
        }
        named = [f"{name}={value}" for name, value in options.items() if value]
        return " ".join([self.digest, ",".join(sorted(self.scopes)), *named])


def parse_line(line: str) -> Key:
    """A line of the file: `SHA256 SCOPE,SCOPE [NAME=VALUE ...]`.

    Raises:
        ValueError: says what is wrong, without repeating it.
    """
    digest, _, rest = line.strip().partition(" ")
    words = rest.split(" ")
    scopes = " ".join(word for word in words if "=" not in word)
    options = dict(word.split("=", 1) for word in words if "=" in word)
    granted = frozenset(name.strip() for name in scopes.split(","))
    if not DIGEST.fullmatch(digest) or not granted <= set(SCOPES):
        raise ValueError(EXPECTED)
    if digest in EMPTY:
        raise ValueError("the digest of an empty key: was the variable unset that it was made from?")
    key_id, models = options.pop("id", digest[:12]), options.pop("models", "")
    rate, rows, day = (options.pop(name, None) for name in ("rows_per_s", "concurrent_rows", "expires"))
    if options or not ID.fullmatch(key_id):
        raise ValueError(EXPECTED)
    try:
        key = Key(
            digest,
            key_id,
            granted,
            tuple(name for name in models.split(",") if name),
            Quota(None if rate is None else float(rate), None if rows is None else int(rows)),
            None if day is None else date.fromisoformat(day),
        )
    except ValueError:
        raise ValueError(EXPECTED) from None
    if rate is not None and not 0 < float(rate) < float("inf"):
        raise ValueError(EXPECTED)
    if rows is not None and int(rows) < 1:
        raise ValueError(EXPECTED)
    return key


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys by digest. If none are configured, every caller may do everything."""

    by_digest: dict[str, Key]
    are_required: bool = True

    @staticmethod
    def read(path: Path | None) -> Keys:
        """Read a key file; empty lines and # comments are skipped.

        Raises:
            MissingKeysError: the file cannot be read, or has no keys.
            SettingsError: a line is invalid.
        """
        return Keys({}, False) if path is None else Keys({key.digest: key for key in read_keys(path)})

    def check(self, authorization: str | None, api_key: str | None) -> Key | None:
        """The key in `Authorization: Bearer KEY` or `X-API-Key: KEY`; None if no keys are configured.

        Raises:
            AccessError: the key is missing, unknown or expired.
        """
        if not self.are_required:
            return None
        shown = api_key
        if authorization is not None and authorization.lower().startswith("bearer "):
            shown = authorization[7:].strip()
        if shown is None:
            raise AccessError("API key required: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if not shown.strip():
            raise AccessError("the API key is empty: send one (was the variable unset that it came from?)")
        digest = hashlib.sha256(shown.encode("latin-1")).hexdigest()
        # Every stored digest is compared in full: the time does not tell which one came close.
        found = [key for known, key in self.by_digest.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise AccessError("unknown API key: send one that the file of keys has")
        if found[0].is_expired():
            raise AccessError("the API key has expired: ask for another")
        return found[0]


def check_scope(key: Key | None, *scopes: str) -> None:
    """Raise unless the key has one of the scopes; `admin` includes every other. None: no keys are configured."""
    if key is not None and not {*scopes, "admin"} & key.scopes:
        raise ScopeError(f"the API key lacks scope {scopes[0]!r}: use one that has it")


def scopes_of(path: str) -> tuple[str, ...]:
    """The scopes of which a path needs one; what changes models asks for more."""
    if path == REVIEW_PATH:
        return ("review",)
    # Who reviews rows has to see what the model reads.
    is_about_models = path in ("/version", "/calibration", "/models") or path.startswith("/models/")
    return ("score", "review") if is_about_models or path.startswith("/console") or path == "/" else ("score",)


class MissingKeysError(SettingsError):
    """The key file is missing, cannot be read, or has no keys."""


def read_keys(path: Path, may_be_empty: bool = False) -> list[Key]:
    """The keys of a file, in order.

    Raises:
        MissingKeysError: it cannot be read, or has no keys.
        SettingsError: names the line that is invalid.
    """
    try:
        text = read_regular(path, MAX_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingKeysError(f"VOUCH_API_KEYS_FILE: cannot be read: {type(error).__name__}") from error
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not is_key(line):
            continue
        try:
            key = parse_line(line)
        except ValueError as error:
            raise SettingsError(f"VOUCH_API_KEYS_FILE: line {number}: {error}") from None
        if any(key.digest == other.digest or key.id == other.id for other in keys):
            raise SettingsError(f"VOUCH_API_KEYS_FILE: line {number}: its key or id is there already")
        keys.append(key)
    if not keys and not may_be_empty:
        raise MissingKeysError("VOUCH_API_KEYS_FILE: no keys in the file")
    return keys


def is_key(line: str) -> bool:
    """Whether a line of the file is one of a key: neither empty nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


class KeyRing:
    """The keys of a file, as last read.

    If the file is malformed, the last good keys stay. If it is gone, unreadable or without keys, every key is refused:
    whoever deletes it, or its last line, wants the keys to end. `problem` says so.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.keys = Keys.read(path)
        self.problem: str | None = None

    def reread(self) -> None:
        """Read the file again."""
        try:
            self.keys, self.problem = Keys.read(self.path), None
            return
        except MissingKeysError as error:
            self.keys, self.problem = Keys({}), f"every key is refused: {error}"
        except SettingsError as error:
            self.problem = f"the keys read before are used: {error}"
        log.error("cannot load the keys file", extra={"error": self.problem})
