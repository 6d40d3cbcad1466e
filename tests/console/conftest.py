"""A browser, and services to look at with it. Without Debian's chromium these tests are skipped, and one line says so."""

import hashlib
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.store.store import Store
from tests.tools import REPOSITORY, eventually, running_service

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
KEY = "a key of scope admin"
SECRET = "0123456789abcdef" * 4


def pytest_collection_modifyitems(items):
    """Skip what needs a browser where there is none."""
    if CHROMIUM is None:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip("the console is tested with Debian's chromium, which is not here"))


@pytest.fixture(scope="package")
def browser():
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def store(trained_models, tmp_path_factory):
    """A store with bundled models, and a small one of two versions."""
    root = tmp_path_factory.mktemp("console") / "store"
    trained_models.store(root, "digits")
    for name in ("mnist", "adult"):
        shutil.copytree(REPOSITORY / "model_store" / name, root / name)
    Store(root).publish("digits", trained_models.draft("digits"))
    Store(root).set_default("mnist")
    return root


@pytest.fixture(scope="package")
def service(store, tmp_path_factory):
    """A client of a service without keys, with a journal that keeps rows."""
    folder = tmp_path_factory.mktemp("open")
    (folder / "journal.key").write_text(SECRET)
    settings = {"journal": str(folder / "journal"), "journal_key": str(folder / "journal.key"), "journal_rows": "1"}
    with running_service(store, folder / "log", **settings) as client:
        yield client


@pytest.fixture(scope="package")
def locked(store, tmp_path_factory):
    """A client of a service that asks for a key, but not for its page."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "keys").write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} admin id=boss\n")
    with running_service(store, folder / "log", api_keys_file=str(folder / "keys"), open_paths='["/"]') as client:
        yield client


@pytest.fixture
def visit(browser):
    """Opens pages, and checks when the test is over that they were without errors and asked for nothing from elsewhere."""
    with visiting(browser) as open_page:
        yield open_page


def until(page, script, arg=None, seconds=30):
    """Wait until a script, an expression or a function of `arg`, says so; Playwright's own way needs eval."""
    eventually(lambda: page.evaluate(script, arg), seconds)


@contextmanager
def visiting(browser):
    """As the fixture."""
    seen = SimpleNamespace(errors=[], addresses=[], contexts=[], base="")

    def open_page(client, view="", width=1280, height=900, scheme="light", tolerates=()):
        seen.base = str(client.base_url).rstrip("/")
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=seen.base)
        seen.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)

        def on_message(message):
            if message.type in ("error", "warning") and not any(text in message.text for text in tolerates):
                seen.errors.append(message.text)

        page.on("console", on_message)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("dialog", lambda dialog: (seen.errors.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: seen.addresses.append(request.url))
        page.goto(f"{seen.base}/{view}")
        return page

    yield open_page
    for context in seen.contexts:
        context.close()
    assert not seen.errors
    elsewhere = [one for one in seen.addresses if not one.startswith((f"{seen.base}/", "blob:", "data:"))]
    assert not elsewhere
