"""How quick the console is: a clicked digit to its painted verdict, frames over 5,000 rows, bytes of the first load.

    python benchmarks/console.py

Debian's chromium looks at a service that this starts, on loopback. Beside each figure stands its floor, measured in the
same page: the bare request to POST /score, and the frames of a page that does nothing. Needs the extra:
pip install '.[dev]'.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from playwright.sync_api import FilePayload, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from console_pictures import QUIET  # noqa: E402
from readme import bundled_service  # noqa: E402

# From the click to the first frame after the verdict is in the page.
CLICK = """at => new Promise(done => {
    const buttons = document.querySelectorAll(".examples button");
    document.querySelector(".intake .quiet")?.click();
    setTimeout(() => {
        const begun = performance.now();
        const watch = new MutationObserver(() => {
            if (!document.querySelector("article.card .badge")) return;
            watch.disconnect();
            requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun), 0));
        });
        watch.observe(document.querySelector("main"), {childList: true, subtree: true});
        buttons[at % buttons.length].click();
    }, 300);
})"""
BARE = """async at => {
    const {examples} = await (await fetch("examples?model=mnist")).json();
    const body = JSON.stringify({instances: [examples[at % examples.length].instance]});
    const begun = performance.now();
    await (await fetch("score?model=mnist&rule=combined&false_alarm=0.01&trial=1",
        {method: "POST", body, headers: {"content-type": "application/json"}})).json();
    return performance.now() - begun;
}"""
# Milliseconds between frames while something happens in each.
FRAMES = """([what, number]) => new Promise(done => {
    const box = document.querySelector(".table .scroll"), find = document.querySelector("input[type=search]");
    const words = ["4", "40", "400", "", "priv", "bach", "", "divorced"], times = [];
    let last = performance.now(), at = 0;
    const step = () => {
        const now = performance.now();
        times.push(now - last);
        last = now;
        if (++at > number) return done(times.slice(1));
        if (what === "scroll") box.scrollTop = (at * 1733) % (box.scrollHeight - box.clientHeight);
        if (what === "filter") {
            find.value = words[at % words.length];
            find.dispatchEvent(new Event("input", {bubbles: true}));
        }
        requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
})"""


def clicked(page: Page, address: str, times: int) -> None:
    """From a bundled digit clicked to its verdict painted, beside the bare request."""
    page.goto(f"{address}/#/check?model=mnist")
    page.locator(".examples button").nth(2).wait_for()
    painted, bare = [], []
    for at in range(times + 2):
        painted.append(page.evaluate(CLICK, at))
        page.wait_for_timeout(600)  # until the details are there, too
        bare.append(page.evaluate(BARE, at))
    told("a digit clicked to its verdict painted", painted[2:], bare[2:], "the bare request")


def many_rows(page: Page, address: str, rows: int, frames: int) -> None:
    """Frames while a table of rows is scrolled and filtered, and when its first verdicts were there."""
    head, *lines = (ROOT / "examples" / "adult.csv").read_text().splitlines()
    content = "\n".join([head, *(lines[at % 4].replace(",40,", f",{30 + at % 20},") for at in range(rows))])
    page.goto(f"{address}/#/promise?model=adult&rule=band&tail=low")
    idle = page.evaluate(FRAMES, ["nothing", frames])
    page.goto(f"{address}/#/check?model=adult&rule=band&tail=low")
    page.locator(".drop").wait_for()
    file: FilePayload = {"name": "rows.csv", "mimeType": "text/csv", "buffer": content.encode()}
    begun = time.perf_counter()
    page.locator("input[aria-label='Files of rows']").set_input_files(file)
    page.locator(".table .badge").first.wait_for()
    first = time.perf_counter() - begun
    page.wait_for_timeout(500)
    told("frames while rows arrive and are scrolled", page.evaluate(FRAMES, ["scroll", frames]), idle, "idle frames")
    while "to come" in page.locator(".tally").inner_text():
        page.wait_for_timeout(200)
    print(f"{rows:,} rows: first verdicts after {first:.2f} s, all after {time.perf_counter() - begun:.1f} s")
    told("frames while scrolling", page.evaluate(FRAMES, ["scroll", frames]), idle, "idle frames")
    told("frames while filtering", page.evaluate(FRAMES, ["filter", frames]), idle, "idle frames")


def first_load(page: Page, address: str) -> None:
    """Bytes of the first load, as they came over the wire."""
    sizes: list[int] = []

    def on_response(response: Any) -> None:
        if "/console" in response.url or response.url == f"{address}/":
            sizes.append(int(response.headers.get("content-length", "0")))

    page.on("response", on_response)
    page.goto(f"{address}/")
    page.locator(".drop").wait_for()
    print(f"first load: {len(sizes)} files, {sum(sizes):,} bytes")


def told(what: str, times: list[float], floor: list[float], floor_name: str) -> None:
    """Print medians and the worst, in milliseconds, and the ratio to the floor."""
    middle, least = statistics.median(times), statistics.median(floor)
    print(
        f"{what}: median {middle:.0f} ms, slowest {max(times):.0f} ms of {len(times)}; {floor_name}: {least:.0f} ms; "
        f"ratio {middle / least:.2f}"
    )


def main(
    clicks: Annotated[int, typer.Option(help="digits that are clicked")] = 20,
    rows: Annotated[int, typer.Option(help="rows of the table")] = 5_000,
    frames: Annotated[int, typer.Option(help="frames that are timed")] = 120,
) -> None:
    """Measure in a browser; prints medians beside their floors."""
    with bundled_service() as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)

        def page() -> Page:
            return browser.new_context(viewport={"width": 1280, "height": 900}).new_page()

        address = f"http://{host}"
        first_load(page(), address)
        clicked(page(), address, clicks)
        many_rows(page(), address, rows, frames)
        browser.close()


if __name__ == "__main__":
    typer.run(main)
