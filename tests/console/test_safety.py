"""Whom the console lets in and what it lets out: keys, strangers' markup, other origins, and people who cannot see it."""

import csv
import io
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from axe_playwright_python.base import AXE_SCRIPT

from tests.console.conftest import KEY
from tests.tools import REPOSITORY

MARKUP = "<img src=x onerror=alert(1)><b>bold</b>"
# What each view is shown with, and what is there once it is whole.
WHOLE = {
    "check?model=adult&example=2": ".cells",
    "check?model=mnist&example=2": ".trio",
    "promise?model=adult": ".slider",
    "review?model=mnist": ".review",
    "learnt?model=mnist&seed=1": ".gallery canvas",
    "learnt?model=mnist&part=manifold": ".here canvas",
    "learnt?model=adult&part=morph": ".plain-table",
    "models?model=adult": ".selftest",
    "drift?model=mnist": ".drift",
}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
@pytest.mark.parametrize("view", WHOLE)
def test_a_view_has_no_violation_that_is_serious_and_fits_a_phone(visit, service, view, scheme, width):
    page = visit(service, f"#/{view}", scheme=scheme, width=width)
    page.locator(WHOLE[view]).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    assert not grave, [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in grave]


def test_markup_in_cells_and_names_of_files_is_text(visit, service):
    page = visit(service, "#/check?model=adult")
    rows = list(csv.reader(io.StringIO((REPOSITORY / "examples" / "adult.csv").read_text())))[:4]
    rows[1][rows[0].index("workclass")] = rows[2][rows[0].index("hours-per-week")] = MARKUP
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    file = {"name": f"{MARKUP.replace('/', '')}.csv", "mimeType": "text/csv", "buffer": out.getvalue().encode()}
    page.locator("input[aria-label='Files of rows']").set_input_files(file)
    page.get_by_text("of 3 refused").wait_for()
    page.locator("article.card h2").get_by_text("onerror").wait_for()
    for row in range(2):
        page.locator(".table tbody tr:not([aria-hidden])").nth(row).get_by_role("button").click()
        page.locator(".cells").wait_for()
        page.wait_for_timeout(200)
    assert not page.locator("b, img[src=x]").count()


def test_markup_in_columns_descriptions_and_messages_is_text(visit, service):
    """As a hostile publisher of models would write it."""
    page = visit(service, "#/drift?model=mnist", tolerates=["422"])

    def alter(route):
        answer = route.fetch()
        text = answer.text().replace("hours-per-week", MARKUP).replace("Rows of the 1994 census", MARKUP)
        text = text.replace("contradicts its other cells", MARKUP).replace("a number x 10", MARKUP)
        route.fulfill(response=answer, body=text)

    page.route("**/models/adult*", alter)
    page.route("**/calibration*", alter)
    page.route("**/examples*", alter)
    page.goto(f"{str(service.base_url).rstrip('/')}/#/models?model=adult")
    page.get_by_text(MARKUP).first.wait_for()
    page.get_by_role("link", name="Check").click()
    page.locator(".welcome").get_by_text(MARKUP).wait_for()
    page.get_by_role("button", name="Spoilt").click()
    page.locator("article.card").get_by_text(
        "unknown column"
    ).first.wait_for()  # the service names it, and the page shows it as text
    assert not page.locator("b, img[src=x]").count()


def test_a_key_is_kept_in_memory_only(visit, locked):
    page = visit(locked, "#/check?model=mnist", tolerates=["401"])
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("button", name="A row that the model drew").click()
    page.locator("article.card .badge").wait_for()
    page.get_by_text("The same by").first.click()
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert stored == f'[{{}},{{}},"","{page.url}"]'
    assert KEY not in page.content()
    assert "$VOUCH_KEY" in page.locator("article.card").inner_text()
    page.reload()
    page.get_by_text("This service asks for a key").wait_for()


def test_a_wrong_key_is_told(visit, locked):
    page = visit(locked, "#/check", tolerates=["401"])
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("unknown API key").wait_for()


@contextmanager
def foreign(body):
    """A page of another origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_page_of_another_origin_can_do_nothing(browser, service, locked):
    """It can neither read, change nor frame, of a service with keys or without, also beside a page that has one."""
    context = browser.new_context()
    console = context.new_page()
    console.goto(f"{locked.base_url}#/check")
    console.get_by_label("API key").fill(KEY)
    console.get_by_role("button", name="Use it").click()
    console.locator(".drop").wait_for()
    address, secret = (str(one.base_url).rstrip("/") for one in (service, locked))
    with foreign(f"<iframe src='{address}/console'></iframe><iframe src='{secret}/console'></iframe>") as elsewhere:
        page = context.new_page()
        page.goto(elsewhere)
        ask = """async ([address, path, body]) => {
            const headers = {"content-type": "application/json"};
            const options = body ? {method: "POST", body: JSON.stringify(body), headers} : {};
            try { return (await fetch(address + path, {...options, credentials: "include"})).status; }
            catch { return "refused"; }
        }"""
        moved = {"alias": "production", "version": "1"}
        for one in (address, secret):
            for path, body in (("/models", None), ("/models/digits/aliases", moved), ("/score", {"instances": []})):
                assert page.evaluate(ask, [one, path, body]) == "refused"
        blind = """([address, path, body]) => fetch(address + path,
            {method: "POST", mode: "no-cors", body: JSON.stringify(body)}).then(one => one.type)"""
        aliases = service.get("/models/digits").json()["aliases"]
        assert page.evaluate(blind, [address, "/models/digits/aliases", moved]) == "opaque"
        assert service.get("/models/digits").json()["aliases"] == aliases
        assert [frame.locator("header").count() for frame in page.frames[1:]] == [0, 0]
        opened = page.evaluate(
            "address => { const one = open(address); return one === null || one.closed; }", f"{secret}/console"
        )
        assert opened in (True, False)
    context.close()
