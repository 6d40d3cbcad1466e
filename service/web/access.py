"""API keys: a file with the sha256 digest and the scopes of each key."""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import dataclass
from pathlib import Path

from service.errors import AccessError, ScopeError
from service.settings import SettingsError

SCOPES = ("score", "admin")
log = logging.getLogger("vouch")


@dataclass(frozen=True, slots=True)
class Keys:
    """Scopes by key digest; if empty, every caller may do everything."""

    scopes: dict[str, frozenset[str]]

    @staticmethod
    def read(path: Path | None) -> Keys:
        """Read a key file: one `sha256-in-hex scope,scope` per line; empty lines and # comments are skipped.

        Raises:
            SettingsError: the file cannot be read, a line is invalid, or there are no keys.
        """
        if path is None:
            return Keys({})
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"VOUCH_API_KEYS_FILE: cannot be read: {type(error).__name__}") from error
        scopes: dict[str, frozenset[str]] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            digest, _, names = line.strip().partition(" ")
            granted = frozenset(name.strip() for name in names.split(","))
            if len(digest) != 64 or set(digest) - set("0123456789abcdef") or not granted <= set(SCOPES):
                raise SettingsError(
                    f"VOUCH_API_KEYS_FILE: line {number}: expected 64 hex digits, then scopes: {', '.join(SCOPES)}"
                )
            scopes[digest] = granted
        if not scopes:
            raise SettingsError("VOUCH_API_KEYS_FILE: no keys in the file")
        return Keys(scopes)

    def check(self, authorization: str | None, api_key: str | None, scope: str) -> None:
        """Check that the key in `Authorization: Bearer KEY` or `X-API-Key: KEY` has the scope.

        Raises:
            AccessError: the key is missing or unknown.
            ScopeError: the key lacks the scope.
        """
        if not self.scopes:
            return
        shown = api_key
        if authorization is not None and authorization.lower().startswith("bearer "):
            shown = authorization[7:].strip()
        if shown is None:
            raise AccessError("API key required, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        digest = hashlib.sha256(shown.encode("latin-1")).hexdigest()
        # Every stored digest is compared in full: the time does not tell which one came close.
        granted = [scopes for known, scopes in self.scopes.items() if hmac.compare_digest(known, digest)]
        if not granted:
            raise AccessError("unknown API key")
        if scope not in granted[0] and "admin" not in granted[0]:
            raise ScopeError(f"the API key lacks scope {scope!r}")


class KeyRing:
    """The keys of a file, as last read without an error."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.keys = Keys.read(path)

    def reread(self) -> None:
        """Read the file again; if that fails, keep the old keys."""
        try:
            self.keys = Keys.read(self.path)
        except SettingsError as error:
            log.error("cannot load the keys file: keeping the old keys", extra={"error": str(error)})
