"""The console's files: what they are, how they are sent, what the page may load, and which of them need a key."""

import gzip
import hashlib
import json
import re

import pytest

from service.console.assets import ROOT, assets
from tests.tools import check_problem
from tests.web.conftest import in_process_client

PAGE = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FIRST_LOAD = 150_000  # bytes
VENDORED = json.loads((ROOT / "vendor" / "list.json").read_text())


def test_the_page_is_at_both_addresses_and_programs_get_json(in_process):
    page = in_process.get("/", headers=PAGE)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert in_process.get("/console").content == page.content
    assert in_process.get("/v1/console").content == page.content
    assert in_process.get("/console/").headers["location"] == "../console"
    assert in_process.get("/").json()["console"] == "/console"


def test_everything_that_the_page_refers_to_is_there(in_process):
    modules = {f"console/{name}" for name in assets() if name.endswith((".js", ".mjs"))}
    text = (ROOT / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="([^"]+)"', text))
    named |= {
        f"{path[2:]}"
        for path in json.loads(re.search(r'importmap">(.*?)</script>', text, re.DOTALL)[1])["imports"].values()
    }
    for path in ROOT.glob("*.js"):
        named |= set(re.findall(r'from "(console/[^"]+)"', path.read_text()))
    named.discard("console/")
    for name in named | modules:
        assert in_process.get(f"/{name}").status_code == 200, name
    check_problem(in_process.get("/console/nothing.js"), 404)
    check_problem(in_process.get("/console/%2e%2e/app.py"), 404)


def test_the_first_load_is_small_and_compressed(in_process):
    sizes = []
    for name in assets():
        if "vendor/LICENSE" in name or name.endswith(".json"):
            continue
        answer = in_process.get(f"/console/{name}", headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        sizes.append(int(answer.headers["content-length"]))
        assert gzip.decompress(assets()[name].packed) == assets()[name].content == answer.content
    assert sum(sizes) < FIRST_LOAD


def test_a_file_is_sent_once(in_process):
    tag = in_process.get("/console/app.js").headers["etag"]
    assert in_process.get("/console/app.js", headers={"if-none-match": tag}).status_code == 304


def test_the_page_may_load_nothing_but_the_service(in_process):
    policy = in_process.get("/console").headers["content-security-policy"]
    parts = dict(part.split(" ", 1) for part in policy.split("; ") if " " in part)
    assert parts["default-src"] == "'none'"
    assert parts["connect-src"] == parts["style-src"] == "'self'"
    assert parts["frame-ancestors"] == parts["base-uri"] == "'none'"
    assert "unsafe" not in policy
    assert "http" not in policy


def test_no_file_of_ours_has_a_foreign_address_or_writes_markup():
    for path in [*ROOT.glob("*.js"), ROOT / "index.html", ROOT / "style.css"]:
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path.name
        assert not re.search(
            r"innerHTML|dangerouslySetInnerHTML|document\.write|eval\(|localStorage|sessionStorage|cookie\b.*=", text
        ), path.name


def test_what_is_vendored_is_as_it_was_published():
    files = {path.name for path in (ROOT / "vendor").glob("*.mjs")}
    assert {one["file"] for one in VENDORED} == files
    for one in VENDORED:
        assert hashlib.sha256((ROOT / "vendor" / one["file"]).read_bytes()).hexdigest() == one["sha256"]
        assert (ROOT / "vendor" / one["license_file"]).stat().st_size > 500
        assert re.fullmatch(r"\d+\.\d+\.\d+", one["version"])


@pytest.mark.parametrize("opened", [(), ("/",), ("/console",)])
def test_where_keys_are_set_the_page_needs_one_unless_it_is_opened(tiny_store, tmp_path, opened):
    (tmp_path / "keys").write_text(f"{hashlib.sha256(b'secret').hexdigest()} score\n")
    settings = {"api_keys_file": tmp_path / "keys", "open_paths": opened}
    with in_process_client(tiny_store, **settings) as client:
        for path in ("/console", "/console/app.js", "/console/vendor/htm.mjs"):
            assert client.get(path).status_code == (200 if opened else 401)
            assert client.get(path, headers={"x-api-key": "secret"}).status_code == 200
        for path in ("/models", "/calibration", "/examples", "/docs"):
            assert client.get(path).status_code == 401
