"""Every message about a table is provoked here, and names the file, and the line and column where there is one."""

import ast
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.tools import REPOSITORY
from tests.ugly.files import REFUSALS, columns, parquet, text

MODULES = (
    *("files/dialect", "files/records", "files/text_tables", "files/json_tables", "files/tables"),
    *("data/detect", "data/kinds", "data/learn", "data/cells", "data/scales"),
)
RAISED = {"DataError", "DamagedTextError"}
NOT_PROVOKED = {
    "unpacks to more than .* GiB": "16 GiB",
    ".*: the file is too large for memory": "a machine without memory",
    "reading Parquet needs the extra: pip install '\\.\\[parquet\\]'": "an installation without pyarrow",
    "column .* is text but declared as .*, which needs numbers": "in Python, by tests/data/test_columns.py",
    "has columns but no rows|has no usable column": "what each reader says itself, sooner",
    "column .* is empty in the training rows: leave it out": "VAEDetector, by tests/test_detector.py",
    "has no column .*, which the model reads": "tests/test_table_attacks.py",
    ".*": "other messages put together elsewhere: ragged lines",
    "line .*: .*": "by `an open quote`",
}


def template(node):
    """A raised message as a pattern: what is put in at run time is anything."""
    if isinstance(node, ast.Constant):
        return re.escape(str(node.value))
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.IfExp):
        return f"{template(node.body)}|{template(node.orelse)}"
    return ".*"


def templates():
    for module in MODULES:
        tree = ast.parse((REPOSITORY / "service" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in RAISED:
                yield module, template(call.args[0]).replace("\\ ", " ")


def refused(path, *flags, command="train"):
    made = (
        [command, str(path), "--name", "x", "--store", str(path.parent / "store")]
        if command == "train"
        else [command, str(path)]
    )
    done = CliRunner().invoke(app, [*made, *flags])
    assert done.exit_code == 2, (path.name, flags, done.output)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vouch: ")]
    return line


def wide():
    return ",".join(f"c{at}" for at in range(10_001))


def schema_of(kinds):
    return json.dumps({"columns": [{"name": name, "kind": kind} for name, kind in kinds.items()]})


def more_cases(folder):
    """Files, flags, and the column or line that the message has to name."""
    table = text(columns())

    def written(name, content):
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    plain = written("plain.csv", table)
    written("half.csv", ("stadt,n\n" + "Zürich,1\n" * 20).encode() + "Köln,2\n".encode("cp1252"))
    yield plain, ("--sep", ";;"), None
    yield plain, ("--encoding", "nonsense"), None
    yield plain, ("--columns", "hight"), "hight"
    yield plain, ("--keep", "hight"), "hight"
    yield folder / "nowhere.csv", (), None
    yield written("wide.csv", f"{wide()}\n{wide()}\n"), (), None
    yield written("blank.csv", "\n\n"), (), None
    yield written("nameless.csv", "\n"), (), None
    yield written("utf16.csv", table.encode("utf-16")[:-1]), (), None
    yield written("no.json", "[{"), (), None
    yield written("one.json", '{"a": 1,\n"b": 2}'), (), None
    yield written("damaged.csv", "stadt,n\n" + "Zürich,1\n" * 20).with_name("half.csv"), (), "line 22"
    yield written("quote.tsv", 'a\tb\n1\t"Open\n2\tx\n3\ty\n4\tpipe 5"\n5\tz\n'), (), "line 2"
    yield written("title.csv", "Export of a logger\n" + "state;alarm\n" * 2 + "0~1~2\n" * 9), (), "line 1"
    yield written("no.jsonl", "\n"), (), None
    yield written("lists.jsonl", "[1, 2]\n[1]\n"), (), "line 2"
    yield written("nested.jsonl", '{"a": [1], "b": 2}\n'), ("--columns", "a,b"), "'a'"
    yield written("nested.parquet", parquet(pa.table({"a": [[1]], "b": [2]}))), ("--columns", "a"), "'a'"
    yield written("broken.parquet", b"PAR1 no PAR1"), (), None
    several = folder / "several"
    several.mkdir()
    for at, name in enumerate("ab"):
        pq.write_table(pa.table({name: [1, 2]}), several / f"{at}.parquet")
    yield several, (), "1.parquet"
    for kinds, column in (
        ({"city": "real"}, "city"),
        ({"height": "count"}, "height"),
        ({"growth": "positive"}, "growth"),
        ({"zip": "boolean"}, "zip"),
        ({"empty": "real", "height": "real"}, "empty"),
    ):
        schema = written(f"{column}.json", schema_of(kinds))
        source = plain if column != "empty" else written("empty.csv", text(columns() | {"empty": [None] * 1000}))
        yield source, ("--schema", str(schema)), column
    schema = written("as-category.json", schema_of({"empty": "category", "height": "real"}))
    yield folder / "empty.csv", ("--schema", str(schema)), "empty"


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    """All that is said, by file."""
    folder = tmp_path_factory.mktemp("messages")
    said = []
    for name, refusal in REFUSALS.items():
        path = folder / f"{len(said)}{refusal.suffix}"
        path.write_bytes(refusal.content)
        said.append((name, path, refused(path, *refusal.flags)))
    for path, flags, place in more_cases(folder):
        line = refused(path, *flags)
        assert place is None or place in line, line
        said.append((path.name, path, line))
    return said


def test_every_message_is_provoked(lines):
    left = []
    for module, pattern in templates():
        if pattern not in NOT_PROVOKED and not any(re.search(pattern, line) for _, _, line in lines):
            left.append((module, pattern))
    assert not left


def test_every_message_names_the_file_and_is_one_line(lines):
    options = ("--sep:", "--encoding:")
    for name, path, line in lines:
        assert path.name in line or any(option in line for option in options), (name, line)
        assert len(line) < 700, (name, line)


def test_what_is_not_provoked_is_raised_somewhere():
    known = {pattern for _, pattern in templates()}
    assert set(NOT_PROVOKED) <= known
