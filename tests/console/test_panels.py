"""Every panel of the console, as people use it: in a browser, against a real service, with and without keys."""

import base64
import csv
import io
import json
import os
import shlex
import subprocess
import sys
from urllib.parse import parse_qsl, urlparse

import pytest

from tests.console.conftest import KEY, until
from tests.tools import REPOSITORY, eventually

VIEWS = ["check", "promise", "review", "learnt", "models", "drift"]
EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(params=["open", pytest.param("locked", marks=pytest.mark.slow)])
def opened(request, visit, service, locked):
    """Opens a view of both services; at the one that asks for a key, the key is entered."""

    def open_view(view, **options):
        if request.param == "open":
            return visit(service, f"#/{view}", **options), service
        page = visit(locked, f"#/{view}", tolerates=["401"], **options)
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        locked.headers["X-API-Key"] = KEY
        return page, locked

    return open_view


def verdict(page):
    """The verdict on the card, in a word, once it is up to date."""
    card = page.locator("article.card")
    card.locator(".badge").wait_for()
    until(page, "!document.querySelector('article.card[aria-busy=true]')")
    return card.locator(".badge").inner_text().split()[-1]


def scored(page):
    """The requests of POST /score that the page sends from now on, without those that explain."""
    found = []

    def on_request(request):
        url = urlparse(request.url)
        if url.path.endswith("/score") and "explain" not in url.query:
            found.append((dict(parse_qsl(url.query)), json.loads(request.post_data)))

    page.on("request", on_request)
    return found


def people(number, every=20):
    """A CSV file of the census with 400 hours in one of so many rows."""
    head, *rows = csv.reader(io.StringIO((EXAMPLES / "adult.csv").read_text()))
    rows = [row for row in rows if "" not in row][:4]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(head)
    for at in range(number):
        row = list(rows[at % len(rows)])
        row[head.index("age")] = str(25 + at % 30)
        row[head.index("hours-per-week")] = "400" if at % every == every - 1 else "40"
        writer.writerow(row)
    return out.getvalue()


def drop(page, files):
    """Drop files of (name, type, bytes) on the page."""
    page.locator(".drop").wait_for()
    encoded = [(name, kind, base64.b64encode(content).decode()) for name, kind, content in files]
    page.evaluate(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, content] of files) {
                const bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
            }
            document.querySelector(".drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
        }""",
        encoded,
    )


def test_a_drawn_digit_gets_what_score_says(opened):
    page, client = opened("check?model=mnist")
    page.get_by_text("Draw one").click()
    pad = page.locator(".pad canvas")
    sent, box = scored(page), pad.bounding_box()
    for start, end in (((0.3, 0.2), (0.7, 0.2)), ((0.7, 0.2), (0.45, 0.85))):
        page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=8)
        page.mouse.up()
        verdict(page)
        page.wait_for_timeout(300)
    page.locator(".trio").wait_for()
    shown = verdict(page)
    query, body = sent[-1]
    (score,) = client.post("/score", params={**query, "explain": "map"}, json=body).json()["scores"]
    assert len(sent) >= 1
    assert shown == score["verdict"]
    if score["verdict"] == "invalid":
        assert score["reason"][1:] in page.locator(".reason").inner_text()  # which begins with a capital
    assert f"{score['log_likelihood']:.1f}" in page.locator("article.card").inner_text()


def test_a_pad_can_be_drawn_on_with_the_keyboard(visit, service):
    page = visit(service, "#/check?model=mnist")
    page.get_by_text("Draw one").click()
    page.locator(".pad canvas").focus()
    for key in ("ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    assert verdict(page) in ("valid", "invalid")


def test_ten_images_are_judged_and_sorted(opened):
    page, _ = opened("check?model=mnist")
    paths = sorted((EXAMPLES / "valid").glob("*.png"))[:6] + sorted((EXAMPLES / "invalid").glob("*.png"))[:4]
    drop(page, [(path.name, "image/png", path.read_bytes()) for path in paths])
    page.get_by_text("of 10 refused").wait_for()
    page.get_by_role("columnheader", name="Rarity").get_by_role("button").click()
    first = page.locator(".table tbody tr:not([aria-hidden])").first
    assert first.locator(".badge").inner_text().endswith("invalid")
    first.get_by_role("button").click()
    page.locator(".trio").wait_for()
    assert page.locator("article.card h2").inner_text() in {path.name for path in paths}


@pytest.mark.slow
def test_five_thousand_rows_arrive_one_after_another_and_can_be_filtered(visit, service):
    page = visit(service, "#/check?model=adult&rule=band&tail=low")
    drop(page, [("many.csv", "text/csv", people(5000, every=250).encode())])
    until(page, "/to come/.test(document.querySelector('.tally')?.innerText ?? '')")
    early = page.locator(".tally").inner_text()
    until(page, "!/to come/.test(document.querySelector('.tally').innerText)", seconds=120)
    assert "of 5,000 refused" in page.locator(".tally").inner_text()
    assert early != page.locator(".tally").inner_text()
    assert page.locator(".table tbody tr").count() < 60  # only those in sight
    page.get_by_label("Find").fill("400 ·")
    until(page, "document.querySelector('.table table').getAttribute('aria-rowcount') === '21'")
    page.locator(".scroll").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    until(page, "document.querySelector('.cell.odd input')?.value === '400'")


def test_the_blamed_cell_is_marked_and_its_change_judged(opened):
    page, _ = opened("check?model=adult&example=2")
    assert verdict(page) == "invalid"
    odd = page.locator(".cell.odd")
    odd.wait_for()
    assert "hours-per-week" in odd.inner_text()
    odd.locator("input").fill("40")
    until(page, "document.querySelector('article.card .badge').classList.contains('valid')")
    assert page.evaluate("document.activeElement.tagName") == "INPUT"  # it is still being edited
    assert not page.locator(".cell.odd").count()


def test_a_pixel_that_is_painted_over_is_judged_again(visit, service):
    page = visit(service, "#/check?model=mnist&example=0")
    assert verdict(page) == "valid"
    picture = page.locator(".trio canvas.brush")
    page.get_by_label("Brush paints").select_option("white")
    page.get_by_label("Width").fill("5")
    sent, box = scored(page), picture.bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + box["height"] - 10, steps=10)
    page.mouse.up()
    until(page, "document.querySelector('article.card .badge').classList.contains('invalid')")
    assert len(sent) == 1


def test_the_slider_refuses_the_rows_that_the_service_does(opened):
    page, client = opened("check?model=adult")
    rows = list(csv.DictReader(io.StringIO(people(60, every=9))))
    drop(page, [("some.csv", "text/csv", people(60, every=9).encode())])
    page.get_by_text("of 60 refused").wait_for()
    page.get_by_role("link", name="Promise").click()
    slider = page.get_by_role("slider")
    for rule, query in (("all statistics together", {"rule": "combined"}), ("log p(x), too unlikely", {"tail": "low"})):
        page.get_by_label(rule, exact=True).check()
        for press in ("Home", "End", "PageDown"):
            slider.focus()
            page.keyboard.press(press)
            rate = dict(parse_qsl(urlparse(page.url).fragment.partition("?")[2]))["false_alarm"]
            until(page, "document.querySelector('[aria-label=\"Your rows\"] .big strong')")
            asked = {"model": "adult", "trial": 1, "false_alarm": rate, **query}
            answer = client.post("/score", params=asked, json={"instances": rows})
            refused = sum(one["verdict"] == "invalid" for one in answer.json()["scores"])
            until(
                page,
                "text => document.querySelector('[aria-label=\"Your rows\"] .big').innerText === text",
                arg=f"{refused} of 60 rows would be refused.",
            )


def test_rows_known_to_be_invalid_show_what_is_caught_and_the_cheapest_rate(visit, service):
    page = visit(service, "#/check?model=adult")
    drop(page, [("good.csv", "text/csv", people(40, every=10**6).encode())])
    page.get_by_text("of 40 refused").wait_for()
    page.get_by_role("link", name="Promise").click()
    bad = {"name": "bad.csv", "mimeType": "text/csv", "buffer": people(20, every=1).encode()}
    page.locator("input[aria-label='Files of invalid rows']").set_input_files(bad)
    page.get_by_text("that you know to be invalid are caught").wait_for()
    page.get_by_label("A miss costs").fill("1000")
    page.get_by_role("button", name="Take it").click()
    assert page.locator(".series.caught").count() == 1


def test_what_is_copied_works(visit, service, tmp_path):
    page = visit(service, "#/promise?model=adult&rule=combined&false_alarm=0.02")
    page.get_by_role("button", name="Copy Python").click()
    code = page.evaluate("navigator.clipboard.readText()")
    names = {"rows": list(csv.DictReader(io.StringIO(people(3))))}
    exec(code.replace('"model_store"', repr(str(REPOSITORY / "model_store"))), names)
    assert len(names["scores"]) == 3
    (tmp_path / "rows.csv").write_text(people(3))
    for button, command in (("Copy request", []), ("Copy command", ["--store", str(REPOSITORY / "model_store")])):
        page.get_by_role("button", name=button).click()
        words = [*shlex.split(page.evaluate("navigator.clipboard.readText()")), *command]
        if words[0] == "vouch":
            words = [sys.executable, "-m", "service.cli", *words[1:]]
        told = subprocess.run(
            words,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("valid") >= 3


def test_five_reviews_are_in_the_journal(visit, service):
    rows = list(csv.DictReader(io.StringIO(people(8, every=1))))
    service.post("/score?model=adult&rule=combined", json={"instances": rows}).raise_for_status()
    page = visit(service, "#/review?model=adult")
    for key in "viuvi":
        page.get_by_role("group", name="What is it in truth?").wait_for()
        before = page.locator(".review").inner_text()
        page.keyboard.press(key)
        until(page, "before => document.querySelector('.review').innerText !== before", arg=before)
    page.get_by_text("5 answers given now.").wait_for()
    reviews = service.get("/feedback?model=adult&answered=true").json()["reviews"]
    assert sorted(one["own"] for one in reviews) == sorted(["valid", "invalid", "unsure", "valid", "invalid"])
    page.get_by_text("Look closer").click()
    assert verdict(page) in ("valid", "invalid")


def picture_of(page, at=0):
    """The pixels of a canvas."""
    return page.evaluate("at => document.querySelectorAll('.gallery canvas')[at].toDataURL()", at)


def test_a_seed_gives_the_same_samples_twice(opened):
    page, _ = opened("learnt?model=mnist&seed=7&num=4")
    page.locator(".gallery canvas").nth(3).wait_for()
    first = picture_of(page)
    page.get_by_role("button", name="Others").click()
    until(page, "first => document.querySelector('.gallery canvas').toDataURL() !== first", arg=first)
    page.get_by_label("Seed").fill("7")
    until(page, "first => document.querySelector('.gallery canvas').toDataURL() === first", arg=first)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "samples-mnist-7.png"


def test_the_manifold_is_decoded_under_the_pointer(opened):
    page, _ = opened("learnt?model=mnist&part=manifold&axes=0,1")
    plane, caption = page.locator(".plane"), page.locator(".here figcaption")
    caption.wait_for()
    until(page, "document.querySelector('.plane canvas').width === 12 * 28")  # painted: it has its size
    box = plane.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    page.get_by_text("z0 = -1.2").wait_for()
    plane.focus()
    before = caption.inner_text()
    page.keyboard.press("ArrowDown")
    until(page, "before => document.querySelector('.here figcaption').innerText !== before", arg=before)


def test_a_row_is_drawn_again_and_morphed_into_another(visit, service):
    page = visit(service, "#/learnt?model=mnist&part=again")
    page.locator(".gallery canvas").nth(11).wait_for()
    page.get_by_role("link", name="Morph").click()
    page.get_by_role("slider").wait_for()
    page.locator(".gallery canvas").nth(9).wait_for()
    before = picture_of(page)
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    until(page, "before => document.querySelector('.gallery canvas').toDataURL() !== before", arg=before)


def test_a_version_is_promoted_and_taken_back(opened):
    page, client = opened("models?model=digits")
    served = client.get("/models/digits").json()["serving"]
    other = {"1": "2", "2": "1"}[served]
    page.get_by_role("button", name="Promote").click()
    page.get_by_role("button", name="Serve it").click()
    page.get_by_text(f"Version {other} answers now.").wait_for()
    assert client.get("/models/digits").json()["serving"] == other
    page.get_by_role("button", name=f"Go back to version {served}").click()
    page.get_by_text(f"Version {served} answers now.").wait_for()
    assert client.get("/models/digits").json()["serving"] == served


def test_drift_is_told_as_a_bet(visit, service):
    row = {"instances": [list(map(float, range(64)))] * 64}
    service.post("/score?model=digits", json=row).raise_for_status()
    page = visit(service, "#/drift?model=digits")
    page.get_by_text("The rows no longer look like the validation rows").wait_for()
    page.get_by_role("button", name="Acknowledge the alarm").click()
    page.get_by_text("No sign of drift").wait_for()


def test_each_view_has_an_address_and_its_curl(opened):
    page, client = opened("promise?model=adult&rule=band&tail=low&false_alarm=0.05")
    page.get_by_text("5 %").first.wait_for()
    for view in VIEWS:
        page.goto(f"{page.url.split('#')[0]}#/{view}?model=mnist{'&example=0' if view == 'check' else ''}")
        until(page, "view => document.querySelector('nav [aria-current=page]').hash.includes(view)", arg=view)
        page.get_by_text(
            "The same by"
        ).first.wait_for() if view != "review" or "X-API-Key" not in client.headers else None
    page.go_back()
    until(page, "location.hash.startsWith('#/models')")


def test_another_rule_and_the_way_back_judge_the_rows_again(visit, service):
    page = visit(service, "#/check?model=adult")
    drop(page, [("some.csv", "text/csv", people(12, every=4).encode())])
    page.get_by_text("of 12 refused").wait_for()
    page.get_by_role("link", name="Promise").click()
    page.get_by_label("log p(x), too unlikely", exact=True).check()
    page.get_by_text("of 12 rows would be refused").wait_for()
    page.go_back()
    page.locator(".tally", has_text="of 12 refused").wait_for()  # by the rule that was chosen
    page.get_by_role("link", name="Promise").click()
    assert page.get_by_label("log p(x), too unlikely", exact=True).is_checked()


def test_an_answer_that_is_late_counts_for_nothing(visit, service):
    page = visit(service, "#/check?model=adult&example=0")
    assert verdict(page) == "valid"
    held = []

    def hold(route):
        if "explain" in route.request.url or held:
            route.continue_()
        else:
            held.append(route)  # the answer to the first edit comes last

    page.route("**/score?*", hold)
    age = page.locator(".cell", has_text="age").first.locator("input")
    age.fill("4000")
    eventually(lambda: page.wait_for_timeout(50) or held)
    age.fill("40")
    until(page, "document.querySelector('article.card[aria-busy=false] .badge')?.classList.contains('valid')")
    held[0].continue_()
    page.wait_for_timeout(500)
    assert verdict(page) == "valid"


def test_a_row_that_is_cleared_while_it_is_edited_is_gone(visit, service):
    page = visit(service, "#/check?model=adult&example=0")
    page.locator(".cell input").first.fill("7")
    page.get_by_role("button", name="Clear").click()
    page.wait_for_timeout(400)
    assert page.locator(".welcome").count() == 1


def test_changes_can_be_undone(visit, service):
    page = visit(service, "#/check?model=adult&example=0")
    before = page.locator(".cells").inner_text()
    page.locator(".cell", has_text="hours-per-week").locator("input").fill("400")
    until(page, "document.querySelector('article.card .badge')?.classList.contains('invalid')")
    page.get_by_role("button", name="Undo the changes").click()
    until(page, "document.querySelector('article.card .badge')?.classList.contains('valid')")
    eventually(lambda: page.locator(".cells").inner_text() == before)


def test_rows_are_still_there_after_a_look_at_another_model(visit, service):
    page = visit(service, "#/check?model=adult")
    drop(page, [("some.csv", "text/csv", people(12, every=4).encode())])
    page.get_by_text("3 of 12 refused").wait_for()
    page.get_by_label("Model").select_option("mnist")
    page.get_by_text("Draw one").wait_for()
    assert not page.locator(".table").count()
    page.get_by_label("Model").select_option("adult")
    page.get_by_text("3 of 12 refused").wait_for()


def test_of_a_row_that_cannot_be_judged_no_number_is_told(visit, service):
    page = visit(service, "#/check?model=adult&example=0")
    verdict(page)
    page.locator(".cell", has_text="hours-per-week").locator("input").fill("many")
    page.get_by_text("Cannot be judged").wait_for()
    assert "certain" not in page.locator("article.card").inner_text()
    assert not page.locator("article.card svg.chart").count()


def test_a_key_that_is_held_answers_once(visit, service):
    rows = list(csv.DictReader(io.StringIO(people(6, every=1))))
    service.post("/score?model=adult&rule=combined", json={"instances": rows}).raise_for_status()
    page = visit(service, "#/review?model=adult")
    page.get_by_role("group", name="What is it in truth?").wait_for()
    sent = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    for _ in range(5):
        page.keyboard.down("v")  # without `up`, the browser repeats it
    page.keyboard.up("v")
    page.get_by_text("1 answer given now.").wait_for()
    assert len(sent) == 1
    page.get_by_role("button", name="Change the last one").click()
    page.get_by_label("keys v, i and u answer").uncheck()
    page.wait_for_timeout(200)
    page.keyboard.press("i")
    page.wait_for_timeout(300)
    assert len(sent) == 1


def test_a_file_that_cannot_be_read_is_told(visit, service):
    page = visit(service, "#/check?model=adult", tolerates=["422"])
    drop(page, [("other.csv", "text/csv", b"a,b\n1,2\n"), ("a.png", "image/png", b"\x89PNG")])
    page.locator(".notes .problem-text").nth(1).wait_for()
    assert "unknown column" in page.locator(".notes").inner_text()
    assert "reads tables" in page.locator(".notes").inner_text()


def test_a_pad_and_the_judged_picture_stay_one(visit, service):
    page = visit(service, "#/check?model=mnist")
    page.get_by_text("Draw one").click()
    pad = page.locator(".pad canvas")
    pad.focus()
    page.keyboard.press("Space")
    page.locator(".trio canvas.brush").wait_for()
    assert not page.get_by_text("Undo the changes").count()
    box = page.locator(".trio canvas.brush").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 20, steps=4)
    page.mouse.up()
    pixels = "at => document.querySelectorAll('canvas.brush')[at].toDataURL()"
    eventually(lambda: page.evaluate(pixels, 0) == page.evaluate(pixels, 1))


def test_a_cell_that_is_changed_back_is_as_it_was_brought(visit, service):
    page = visit(service, "#/check?model=adult&example=0")
    verdict(page)
    hours = page.locator(".cell", has_text="hours-per-week").locator("input")
    before = hours.input_value()
    hours.fill("77")
    page.get_by_role("button", name="Undo the changes").wait_for()
    hours.fill(before)
    page.get_by_role("button", name="Undo the changes").wait_for(state="detached")


def test_the_verdicts_are_downloaded_with_their_rule(visit, service):
    page = visit(service, "#/check?model=adult")
    drop(page, [("some.csv", "text/csv", people(12, every=4).encode())])
    page.get_by_text("3 of 12 refused").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the verdicts").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["verdict"] for row in rows].count("invalid") == 3
    assert all("rule=combined&false_alarm=0.01" in row["rule"] for row in rows)
