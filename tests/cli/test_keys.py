"""`vouch keys`: keys are made, shown once, and end."""

import stat

import pytest

from service.errors import AccessError
from service.serving.quotas import Quota
from service.web.access import KeyRing
from tests.tools import vouch


def test_a_key_is_added_listed_and_revoked(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours")
    first = vouch(
        "keys", "add", "shop", "--file", path, "--models", "adult", "--rows-per-s", "2.5", "--expires", "2999-12-31"
    )
    assert first.returncode == 0, first.stderr
    key = first.stdout.strip()
    assert len(key) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.startswith("# ours\n")
    assert key not in text
    boss = vouch(
        "keys", "add", "boss", "--file", path, "--scopes", "score, admin", "--concurrent-rows", "7"
    ).stdout.strip()
    ring = KeyRing(path)
    found = ring.keys.check(None, key)
    assert (found.id, found.scopes, found.models, found.quota) == ("shop", {"score"}, ("adult",), Quota(2.5, None))
    assert ring.keys.check(f"Bearer {boss}", None).scopes == {"score", "admin"}
    listed = vouch("keys", "list", "--file", path).stdout
    assert all(word in listed for word in ("shop", "boss", "adult", "2999-12-31", "2.5"))
    assert key[:12] not in listed
    assert vouch("keys", "revoke", "shop", "--file", path).returncode == 0
    ring.reread()
    with pytest.raises(AccessError):
        ring.keys.check(None, key)
    assert path.read_text().startswith("# ours\n")
    assert vouch("keys", "revoke", "boss", "--file", path).returncode == 0
    ring.reread()
    with pytest.raises(AccessError):
        ring.keys.check(None, boss)


@pytest.mark.parametrize(
    "arguments",
    [("add", "a/b"), ("add", "x", "--scopes", "root"), ("add", "x", "--expires", "soon"), ("add", "x", "--rows-per-s", "0"),
     ("add", "there"), ("revoke", "nobody")],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_and_changes_nothing(tmp_path, arguments):
    path = tmp_path / "keys"
    vouch("keys", "add", "there", "--file", path)
    before = path.read_bytes()
    refused = vouch("keys", *arguments, "--file", path)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert path.read_bytes() == before
