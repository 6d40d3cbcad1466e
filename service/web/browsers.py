"""What a page on the web may not make its visitor's browser do: change something here, or ask what only he may ask."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from service.errors import ScopeError
from service.settings import Settings

ANY = "*"


def check_origin(headers: Mapping[str, str], host: str) -> None:
    """Raise if a page of another origin asks for a change.

    Raises:
        ScopeError.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    is_foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
    if is_foreign or site not in ("none", "same-origin"):
        raise ScopeError("a page of another origin may not change anything here")


class HostRule:
    """By which names the service may be asked.

    A page on the web can ask its visitor's machine under the page's own name, once that name points there (DNS rebinding).
    Where no API key is needed, that must not work: only names are answered that no page on the web can have. These are
    addresses, `localhost`, and names without a dot, such as that of a container.
    """

    def __init__(self, settings: Settings) -> None:
        self.names = {name.lower() for name in settings.allowed_hosts}
        self.any = ANY in self.names or (not self.names and settings.api_keys_file is not None)

    def allows(self, host: str) -> bool:
        """Whether a Host header names the service, with or without a port."""
        if self.any:
            return True
        name = name_of(host)
        if self.names:
            return name in self.names or host.lower() in self.names
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return "." not in name or name.endswith(".localhost")
        return True


def name_of(host: str) -> str:
    """The name or address in a Host header, in lower case, without the port and the dot at its end."""
    name, colon, port = host.rpartition(":")
    name = name if colon and port.isdecimal() and (name.endswith("]") or ":" not in name) else host
    return name.lower().removesuffix(".")
