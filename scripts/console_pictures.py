"""The pictures of docs/console.md: each panel, light and dark, on a desktop and on a phone.

    python scripts/console_pictures.py

Debian's chromium looks at a service that this starts, on loopback, with the bundled models and a journal of a few rows.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Playwright, sync_playwright
from readme import bundled_service

ROOT = Path(__file__).resolve().parents[1]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SIZES = {"desktop": (1280, 1000), "phone": (360, 1000)}
GAP, QUALITY = 24, 82
Act = Callable[[Page], None]


def people(wrong: int = 10) -> str:
    """A CSV file of the census in which one row of so many has 400 hours a week."""
    head, *rows = csv.reader(io.StringIO((ROOT / "examples" / "adult.csv").read_text()))
    hours, out = head.index("hours-per-week"), io.StringIO()
    writer = csv.writer(out)
    writer.writerow(head)
    for at in range(60):
        row = list(rows[at % 4])
        row[head.index("age")] = str(22 + at % 40)
        row[hours] = "400" if at % wrong == wrong - 1 else row[hours]
        writer.writerow(row)
    return out.getvalue()


def bring(content: str, name: str = "people.csv", label: str = "Files of rows") -> Act:
    """Choose a file, and wait for its verdicts."""

    def act(page: Page) -> None:
        file: FilePayload = {"name": name, "mimeType": "text/csv", "buffer": content.encode()}
        page.locator(f"input[aria-label='{label}']").set_input_files(file)
        page.wait_for_timeout(2500)

    return act


def a_row_that_is_refused(page: Page) -> None:
    bring(people())(page)
    page.get_by_role("button", name="row 10", exact=True).click()
    page.wait_for_timeout(800)


def rows_and_invalid_ones(page: Page) -> None:
    bring(people(10**6))(page)
    page.get_by_role("link", name="Promise").click()
    bring(people(1), "wrong.csv", "Files of invalid rows")(page)


def nothing(page: Page) -> None:
    """The view as it opens."""


# Each picture: the view, what is there once it is whole, and what is done before it is taken.
PANELS: dict[str, tuple[str, str, Act]] = {
    "table": ("check?model=adult", ".examples button", a_row_that_is_refused),
    "blame": ("check?model=adult&example=2", ".cells", nothing),
    "image": ("check?model=mnist&example=2", ".trio", nothing),
    "promise": ("check?model=adult", ".examples button", rows_and_invalid_ones),
    "review": ("review?model=adult", ".review .badge", nothing),
    "samples": ("learnt?model=mnist&seed=7", ".gallery canvas", nothing),
    "manifold": ("learnt?model=mnist-2d&part=manifold", ".here canvas", nothing),
    "again": ("learnt?model=mnist&part=again", ".gallery canvas", nothing),
    "morph": ("learnt?model=mnist&part=morph", ".gallery canvas", nothing),
    "models": ("models?model=adult", ".selftest", nothing),
    "drift": ("drift?model=adult", ".drift", nothing),
}


def fill_the_journal(address: str) -> None:
    """Score rows as an application would, so that there is something to review, and something to bet on."""
    rows = [
        {name: None if cell == "" else cell for name, cell in row.items()}
        for row in csv.DictReader(io.StringIO(people(5)))
    ]
    body = json.dumps({"instances": rows}).encode()
    url = f"{address}/score?model=adult&rule=combined&false_alarm=0.01"
    urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"}))


def taken(browser: Browser, address: str, name: str, size: str, scheme: str) -> Image.Image:
    """A picture of a panel, of its upper part if it is long."""
    view, whole, act = PANELS[name]
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
        locale="en-GB",
        timezone_id="UTC",
    )
    page = context.new_page()
    page.goto(f"{address}/#/{view}")
    page.locator(whole).first.wait_for(timeout=60_000)
    act(page)
    page.wait_for_timeout(1200)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return picture


def beside(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one height, next to each other."""
    width = sum(one.width for one in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, max(one.height for one in pictures)), "#7f8a93")
    left = 0
    for one in pictures:
        sheet.paste(one, (left, 0))
        left += one.width + GAP
    return sheet


def main(
    out: Annotated[Path, typer.Option(help="folder of the pictures")] = ROOT / "docs" / "pictures" / "console",
    only: Annotated[list[str] | None, typer.Option(help="names of some panels")] = None,
) -> None:
    """Take the pictures of the console."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "key").write_text(secrets.token_hex(32))
        journal = {"journal": f"{folder}/journal", "journal_key": f"{folder}/key", "journal_rows": "1"}
        with bundled_service(**journal) as host:
            take(playwright, f"http://{host}", only or list(PANELS), out)


def take(playwright: Playwright, address: str, names: list[str], out: Path) -> None:
    """Take the pictures of some panels, each light and dark, on a desktop and on a phone."""
    fill_the_journal(address)
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
    for name in names:
        ways = [(size, scheme) for scheme in ("light", "dark") for size in SIZES]
        sheet = beside([taken(browser, address, name, size, scheme) for size, scheme in ways])
        sheet.save(out / f"{name}.webp", quality=QUALITY, method=6)
    browser.close()


if __name__ == "__main__":
    typer.run(main)
