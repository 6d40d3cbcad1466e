"""API keys: a file of sha256 digests and what each key may do."""

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
    """Scopes by digest; without any, every caller may do everything."""

    scopes: dict[str, frozenset[str]]

    @staticmethod
    def read(path: Path | None) -> Keys:
        """The keys of a file: a line each, `sha256-in-hex scope,scope`, empty lines and # comments aside.

        Raises:
            SettingsError: the file cannot be read, or a line is none.
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
                    f"VOUCH_API_KEYS_FILE: line {number}: expected 64 hex digits and scopes of {', '.join(SCOPES)}"
                )
            scopes[digest] = granted
        if not scopes:
            raise SettingsError("VOUCH_API_KEYS_FILE: the file holds no key")
        return Keys(scopes)

    def check(self, authorization: str | None, api_key: str | None, scope: str) -> None:
        """Let a caller pass who shows a key with the scope, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Raises:
            AccessError: no key, or one that is not known.
            ScopeError: a key without the scope.
        """
        if not self.scopes:
            return
        shown = api_key
        if authorization is not None and authorization.lower().startswith("bearer "):
            shown = authorization[7:].strip()
        if shown is None:
            raise AccessError("an API key is needed, as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        digest = hashlib.sha256(shown.encode("latin-1")).hexdigest()
        # Every stored digest is compared in full: the time does not tell which one came close.
        granted = [scopes for known, scopes in self.scopes.items() if hmac.compare_digest(known, digest)]
        if not granted:
            raise AccessError("the API key is not known")
        if scope not in granted[0] and "admin" not in granted[0]:
            raise ScopeError(f"the API key has no scope {scope!r}")


class KeyRing:
    """The keys of a file, as it was when it was last read without a fault."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.keys = Keys.read(path)

    def reread(self) -> None:
        """Take the file as it is now; one that cannot be read changes nothing."""
        try:
            self.keys = Keys.read(self.path)
        except SettingsError as error:
            log.error("the keys stay as they were", extra={"error": str(error)})
