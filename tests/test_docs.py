"""Every command and every block of code in README and docs/ runs, or says why it does not."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from scripts import tutorial_data
from service.data.table import MISSING
from tests.pages import COMMANDS
from tests.tools import REPOSITORY, free_port, running_service

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
GLOSSARY = REPOSITORY / "docs" / "glossary.md"
TERMS = {  # of the glossary, each by its heading; a page links to it where it uses the term first
    "band": r"\bbands?\b",
    "conformal": r"\bconformal\b",
    "ess": r"\bESS\b",
    "khat": r"\bkhat\b",
    "nats": r"\bnats?\b",
    "p-value": r"\bp-values?\b",
}
INSTALLS_VOUCH = re.compile(r"pip3? install[^`\n#]*?(?<![\w./-])vouch(?![\w-])")  # a package of that name is not ours
RUN = ("sh", "python")
SHOWN = ("text", "json")  # what a command printed, or what no machine reads
MARK = re.compile(r"<!-- not run here: (.+?) -->")


@dataclass
class Block:
    """A block of code, and the reason that stands before it, if it is not run."""

    page: Path
    line: int
    language: str
    code: str
    reason: str | None


def blocks(page):
    tokens = MarkdownIt().parse(page.read_text())
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            marked = MARK.search(before.content) if before is not None and before.type == "html_block" else None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, marked and marked[1])


ALL = [block for page in PAGES for block in blocks(page)]
TO_RUN = {
    page: chosen
    for page in PAGES
    if (chosen := [one for one in blocks(page) if one.language in RUN and one.reason is None])
}


def test_every_block_says_what_it_is():
    assert len(ALL) > 60
    for block in ALL:
        where = f"{block.page.name}, line {block.line}"
        assert block.language in (*RUN, *SHOWN), f"{where}: indented, or of another language"
        assert block.reason is None or block.language in RUN, f"{where}: a reason for what is not run anyway"


def test_a_reason_that_names_a_test_names_one_that_is_there():
    for block in ALL:
        for name in re.findall(r"\b(?:scripts|tests|docs)/[\w./-]+\w", block.reason or ""):
            assert (REPOSITORY / name).exists(), f"{block.page.name}, line {block.line}: {name}"


def test_what_the_checklist_names_is_there():
    page = (REPOSITORY / "docs" / "deploy.md").read_text().partition("## Checklist")[2]
    lines = [line.split("|") for line in page.splitlines() if line.startswith("|")][2:]
    assert len(lines) >= 15
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for _, claim, proof, _ in lines:
        proofs = re.findall(r"`([^`]+)`", proof)
        assert proofs, claim
        for name in proofs:
            assert (
                name.removeprefix("make ") in targets if name.startswith("make ") else (REPOSITORY / name).exists()
            ), name


def anchors(page):
    """Where links into a page may lead: its headings, as GitHub and mkdocs write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in PAGES:
        for link, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]+))?\)", page.read_text()):
            if "://" not in link and "reference/" not in link:  # those are made when the site is built
                target = page.parent / link if link else page
                assert target.exists(), f"{page.name}: {link}"
                assert not anchor or anchor in anchors(target), f"{page.name}: {link}#{anchor}"


def prose(page):
    """A page's words: without code, headings, comments and the text of pictures."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`|!\[[^\]]*\]|^#.*$", "", text, flags=re.MULTILINE)


def test_a_page_links_to_the_glossary_where_it_uses_a_term_first():
    headings = re.findall(r"^## (.+)$", GLOSSARY.read_text(), re.MULTILINE)
    assert {"band", "conformal", "ESS", "khat", "nats", "p-value"} <= set(headings)
    for page in PAGES:
        for anchor, pattern in TERMS.items():
            first = None if page == GLOSSARY else re.search(pattern, prose(page))
            if first is not None:
                link = re.compile(rf"[^\[\]]*\]\([\w/.]*glossary\.md#{anchor}\)")
                assert link.match(prose(page), first.end()), f"{page.name}: no link to the glossary at {first[0]!r}"


def test_nobody_is_told_to_install_another_package_named_vouch():
    pages = [*PAGES, *(path for name in ("service", "scripts", "examples") for path in (REPOSITORY / name).rglob("*"))]
    files = [path for path in pages if path.suffix in {"", ".md", ".py"} and path.is_file()]
    told = [
        f"{path.relative_to(REPOSITORY)}: {one}" for path in files for one in INSTALLS_VOUCH.findall(path.read_text())
    ]
    assert not told, "the package is vouch-service"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "model_store", folder / "store")
    with running_service(folder / "store", folder / "log") as client:
        yield str(client.base_url).removeprefix("http://")


SLOW = {"datasets.md", "feedback.md", "images.md", "tables.md", "tutorial.md"}  # which train models, or score many rows


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else []) for page in TO_RUN]
)
def test_a_page_runs_from_top_to_bottom(page, service, tmp_path):
    """In a folder of its own, with the examples and the bundled models, beside a service on them."""
    for name in ("examples", "model_store"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    # What has its answer below it is run, and the answer compared, by tests/test_readme.py.
    compared = {command for command, _ in COMMANDS}
    chosen = [block for block in TO_RUN[page] if block.code.strip() not in compared]
    script = "\n".join(
        f"python - <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK" if block.language == "python" else block.code
        for block in chosen
    )
    if "curl" in script and shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    script = script.replace("localhost:8000", service).replace("8123", str(free_port()))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VOUCH_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "VOUCH_DRAIN_S": "0"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr


def test_the_tutorials_tables_are_what_their_script_makes(tmp_path):
    tutorial_data.write(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (REPOSITORY / "examples" / "machine" / path.name).read_bytes()


def test_the_page_on_tables_lists_every_spelling_of_a_missing_cell():
    page = (REPOSITORY / "docs" / "tables.md").read_text().lower()
    assert [text for text in MISSING if text and f"`{text}`" not in page] == []
