"""README and docs/ hold: their requests answer as they say, and nothing that a user may set or call is missing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pages import COMMANDS, HTTP, README
from tests.tools import REPOSITORY, running_service

sys.path.insert(0, str(REPOSITORY / "scripts"))
import readme

SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A service on a copy of the bundled store."""
    folder = tmp_path_factory.mktemp("bundled")
    shutil.copytree(REPOSITORY / "model_store", folder / "store")
    with running_service(folder / "store", folder / "log") as client:
        yield client


def check_alike(found, expected, place=""):
    """The same document, numbers to a hundredth of a percent: machines differ in the last bits."""
    assert type(found) is type(expected) or {type(found), type(expected)} == {int, float}, place
    if isinstance(found, dict):
        assert found.keys() == expected.keys(), place
        for key in found:
            check_alike(found[key], expected[key], f"{place}.{key}")
    elif isinstance(found, list):
        assert len(found) == len(expected), place
        for index, pair in enumerate(zip(found, expected, strict=True)):
            check_alike(*pair, f"{place}[{index}]")
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4), place
    elif not place.endswith("request_id"):
        assert found == expected, place


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_every_curl_line_answers_as_its_page_says(bundled):
    assert len(COMMANDS) >= 17
    for command, answer in COMMANDS:
        printed = readme.run(command, str(bundled.base_url).removeprefix("http://"))
        check_alike(readme.abridged(json.loads(printed)), json.loads(answer), command)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


def test_every_setting_is_in_its_page():
    assert readme.settings_table() in SETTINGS, "run scripts/readme.py"


def test_every_endpoint_is_in_its_page(bundled):
    for path in bundled.get("/openapi.json").json()["paths"]:
        stem = path.split("/")[1].split("{")[0].rstrip(".")
        assert f"/{stem}" in HTTP, path


def test_the_bundled_models_are_small_and_ready(bundled):
    ready = bundled.get("/readyz").json()
    assert (ready["status"], ready["models"]) == ("ok", dict.fromkeys(("adult", "mnist", "mnist-2d", "parts"), "ready"))
    for version in (REPOSITORY / "model_store").glob("*/*/"):
        sizes = [file.stat().st_size for file in version.iterdir()]
        assert max(sizes) < 5e6
        assert sum(sizes) < 8e6


def test_the_examples_are_judged_as_the_readme_says(bundled):
    def accepted(folder, percentiles):
        names = set()
        for file in (REPOSITORY / "examples" / folder).glob("*.png"):
            answer = bundled.post(
                f"/score?percentiles={percentiles}", content=file.read_bytes(), headers={"content-type": "image/png"}
            )
            if answer.json()["scores"][0]["verdict"] == "valid":
                names.add(file.stem)
        return names

    assert accepted("invalid", "25,75") == set()
    assert accepted("invalid", "1,99") <= {"blank"}
    assert 3 <= len(accepted("valid", "25,75")) <= 8
    assert len(accepted("valid", "1,99")) >= 9


def test_the_shipped_rows_are_the_shipped_images():
    from service.files.images import decode

    digits = np.load(REPOSITORY / "examples" / "digits.npy")
    first = decode((REPOSITORY / "examples" / "valid" / "digit-0.png").read_bytes()).pixels
    np.testing.assert_array_equal(digits[0], first)


def test_no_file_names_a_path_of_a_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    ).stdout.split()
    for name in tracked:
        path = Path(REPOSITORY / name)
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".json", ""} and path.is_file():
            assert str(REPOSITORY) not in path.read_text(errors="ignore"), name
