"""API keys: who may pass, which files are none, and which paths ask for no key."""

import hashlib
import json
import logging
import os
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from service.errors import AccessError, ScopeError
from service.serving.quotas import Quota
from service.settings import Settings, SettingsError
from service.web.access import SCOPES, KeyRing, Keys, check_scope, read_keys
from service.web.app import Guard, create_app
from service.web.paths import PROBES
from tests.web.conftest import InProcess


def digest(key):
    return hashlib.sha256(key.encode("latin-1")).hexdigest()


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture
def keys(tmp_path):
    lines = [
        "# ours",
        "",
        f"{digest('reader')} score",
        f"  {digest('ruler')} admin",
        f"{digest('both')} score, admin  ",
    ]
    return Keys.read(written(tmp_path / "keys", "\n".join(lines)))


# The file


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing but a comment\n\n",
        digest("key"),
        f"{digest('key')} ",
        f"{digest('key')} root",
        f"{digest('key')} score,root",
        f"{digest('key')} score,",
        f"{digest('key')} score admin",
        f"{digest('key')} SCORE",
        f"{digest('key')}\tscore",
        f"{digest('key')[:-1]} score",
        f"{digest('key')}0 score",
        f"{digest('key').upper()} score",
        f"{digest('key')[:-1]}g score",
        f"{digest('key')} score\nplain-key score",
        b"\xff\xfe",
    ],
)
def test_a_file_that_holds_no_keys_is_refused_without_a_word_of_it(tmp_path, text):
    with pytest.raises(SettingsError, match=r"^VOUCH_API_KEYS_FILE: ") as caught:
        Keys.read(written(tmp_path / "keys", text))
    assert digest("key")[:20] not in str(caught.value)
    assert "plain-key" not in str(caught.value)


def test_a_line_that_is_none_is_named_by_its_number(tmp_path):
    text = f"# comment\n\n{digest('key')} score\nplain score\n"
    with pytest.raises(SettingsError, match=r"line 4: expected 64 hex digits, then scopes: score, review, admin"):
        Keys.read(written(tmp_path / "keys", text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read: FileNotFoundError"):
        Keys.read(tmp_path / "keys")
    with pytest.raises(SettingsError, match="cannot be read: IsADirectoryError"):
        Keys.read(tmp_path)


# Who may pass


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("key", ["reader", "ruler", "both"])
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  ", None])
def test_a_key_passes_where_its_scope_reaches_and_admin_reaches_everywhere(keys, scheme, key, scope):
    shown = (None, key) if scheme is None else (scheme + key, None)
    found = keys.check(*shown)
    if key == "reader" and scope != "score":
        with pytest.raises(ScopeError):
            check_scope(found, scope)
    else:
        check_scope(found, scope)


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None),
        (None, ""),
        (None, "nobody"),
        (None, "reader "),
        (None, "Reader"),
        (None, digest("reader")),  # the file's own content is no key
        (None, "\xff\x00"),
        ("", None),
        ("reader", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearerreader", None),
        ("Basic reader", None),
        ("Bearer reader, Bearer ruler", None),
        ("Bearer nobody", "reader"),  # the bearer's key is the one that is shown
        ("Bearer " + "x" * 100_000, None),
    ],
)
def test_a_caller_without_a_known_key_is_refused(keys, authorization, api_key):
    with pytest.raises(AccessError) as caught:
        keys.check(authorization, api_key)
    assert not isinstance(caught.value, ScopeError)


def test_a_scheme_that_is_not_ours_leaves_the_other_header(keys):
    assert keys.check("Basic dXNlcjpwYXNz", "reader").id == digest("reader")[:12]


def test_without_keys_everybody_may_do_everything():
    for scope in SCOPES:
        check_scope(Keys.read(None).check(None, None), scope)
        check_scope(Keys.read(None).check("Bearer anything", None), scope)


# Reading again


def test_a_ring_follows_its_file_and_keeps_its_keys_where_that_is_damaged(tmp_path, caplog):
    path = written(tmp_path / "keys", f"{digest('old')} score")
    ring = KeyRing(path)
    path.write_text(f"{digest('new')} score")
    ring.keys.check(None, "old")  # until it is read again
    ring.reread()
    ring.keys.check(None, "new")
    with pytest.raises(AccessError):
        ring.keys.check(None, "old")
    for damage in ("nonsense", f"{digest('')} score"):
        path.write_text(damage)
        with caplog.at_level(logging.ERROR, "vouch"):
            ring.reread()
        assert "the keys read before are used" in ring.problem
        ring.keys.check(None, "new")
        with pytest.raises(AccessError):
            ring.keys.check(None, None)
    path.write_text(f"{digest('new')} score")
    ring.reread()
    assert ring.problem is None


@pytest.mark.parametrize("gone", ["deleted", "a folder", "a pipe", "empty"])
def test_where_the_file_is_gone_every_key_is_refused(tmp_path, gone):
    path = written(tmp_path / "keys", f"{digest('old')} score")
    ring = KeyRing(path)
    path.unlink()
    if gone == "a folder":
        path.mkdir()
    if gone == "a pipe":
        os.mkfifo(path)
    if gone == "empty":
        path.write_text("# none\n")
    ring.reread()
    assert ring.problem.startswith("every key is refused: VOUCH_API_KEYS_FILE: ")
    for shown in ("old", None):
        with pytest.raises(AccessError):
            ring.keys.check(None, shown)


def test_a_ring_without_a_file_never_asks():
    ring = KeyRing(None)
    ring.reread()
    assert ring.keys.check(None, None) is None


# What a line may say


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_the_digest_of_an_empty_key_is_refused_by_name(tmp_path, text):
    with pytest.raises(SettingsError, match="line 2: the digest of an empty key"):
        Keys.read(written(tmp_path / "keys", f"{digest('key')} score\n{digest(text)} score"))


@pytest.mark.parametrize("shown", [(None, ""), (None, "  "), ("Bearer ", None)])
def test_an_empty_key_is_refused_by_name(keys, shown):
    with pytest.raises(AccessError, match="the API key is empty"):
        keys.check(*shown)


def test_a_line_gives_a_key_its_id_models_quota_and_last_day(tmp_path):
    day = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    line = f"{digest('k')} admin,score id=shop models=adult,mnist rows_per_s=2.5 concurrent_rows=7 expires={day}"
    (key,) = read_keys(written(tmp_path / "keys", line))
    assert (key.id, key.models, key.quota) == ("shop", ("adult", "mnist"), Quota(2.5, 7))
    assert not key.is_expired()
    assert key.line() == line


def test_an_expired_key_is_refused_and_was_good_on_its_last_day(tmp_path):
    today = datetime.now(UTC).date()
    for days, is_good in ((0, True), (-1, False)):
        line = f"{digest('k')} score expires={today + timedelta(days=days)}"
        keys = Keys.read(written(tmp_path / "keys", line))
        if is_good:
            keys.check(None, "k")
        else:
            with pytest.raises(AccessError, match="has expired"):
                keys.check(None, "k")


@pytest.mark.parametrize(
    "options",
    ["id=", "id=a/b", "id=\x1b[31m", "rows_per_s=0", "rows_per_s=nan", "rows_per_s=inf", "rows_per_s=x",
     "concurrent_rows=0", "concurrent_rows=1.5", "expires=tomorrow", "color=red", "id=a id"],
)  # fmt: skip
def test_an_option_that_is_none_is_refused(tmp_path, options):
    with pytest.raises(SettingsError, match=r"line 1: expected 64 hex digits"):
        Keys.read(written(tmp_path / "keys", f"{digest('k')} score {options}"))


def test_two_lines_may_not_have_one_key_or_one_id(tmp_path):
    for second in (f"{digest('a')} admin id=other", f"{digest('b')} score id=shop"):
        with pytest.raises(SettingsError, match="line 2: its key or id is there already"):
            Keys.read(written(tmp_path / "keys", f"{digest('a')} score id=shop\n{second}"))


# Paths


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/health"])
def test_probes_ask_for_no_key(path):
    assert Guard(None, KeyRing(None), Settings()).is_open(path)


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "/score", "/v1/score", "/metrics", "/docs", "/openapi.json", "/docs-assets/x", "/livez/", "//livez",
        "/livez/../score", "/v1/v1/livez", "/v1livez", "/LIVEZ", "/livez%2f", "/v2/health/live", "livez", "/v1",
    ],
)  # fmt: skip
def test_no_other_path_is_open(path):
    assert not Guard(None, KeyRing(None), Settings()).is_open(path)


def test_the_documentation_opens_what_its_page_needs_and_nothing_else():
    guard = Guard(None, KeyRing(None), Settings(open_paths=("/docs",)))
    for path in ("/docs", "/openapi.json", "/docs-assets/swagger-ui.css"):
        assert guard.is_open(path)
    for path in ("/score", "/docs/", "/docs-assets", "/openapi.json/", "/metrics"):
        assert not guard.is_open(path)


def test_every_endpoint_of_an_application_with_keys_asks_for_one(tmp_path, tiny_store):
    path = written(tmp_path / "keys", f"{digest('reader')} score")
    settings = Settings(store=str(tiny_store), store_cache=None, api_keys_file=path, open_paths=("/metrics",))
    app = create_app(settings)  # which is not started: the guard stands before everything
    with start_blocking_portal() as portal:
        client = InProcess(app, portal)
        paths = client.get("/openapi.json", headers={"x-api-key": "reader"}).json()["paths"]
        assert len(paths) > 10
        for template, methods in paths.items():
            for method in methods:
                for at in (template, f"/v1{template}"):
                    answer = client.request(method.upper(), at.format(name="x", version="1", extension="npy"))
                    is_open = template in (*PROBES, "/metrics")
                    assert (answer.status_code == 401) != is_open, (method, at, answer.status_code)
                    if not is_open:
                        check_unauthorized(answer)
        assert client.get("/nowhere").status_code == 401
        assert client.get("/nowhere", headers={"authorization": "Bearer reader"}).status_code == 404
        client.portal.call(client.client.aclose)


def check_unauthorized(answer: httpx.Response):
    """It says by which scheme a key comes, in the words of its protocol."""
    assert answer.headers["www-authenticate"] == "Bearer"
    document = json.loads(answer.content)
    assert "API key" in document.get("detail", document.get("error"))
