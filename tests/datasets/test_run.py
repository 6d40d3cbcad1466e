"""Whole runs: nothing lost, nothing twice, the same to the byte however often it was ended, and bad files told."""

import csv
import io
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_wine

from service.datasets.plan import Plan, RunOptions, Shard
from service.datasets.report import Tally, as_html
from service.datasets.run import Run, engine_of, merged
from service.files.formats.registry import RowRange
from service.files.locations import InputFile
from service.files.tables import read_table
from service.scoring.options import ScoreOptions
from service.validity.conformal import Discoveries, RejectionLimit
from tests.models import COLUMNS
from tests.tools import REPOSITORY, vouch

NAMES = load_wine().feature_names


def vouch_filter(*arguments, fails=False):
    """The command in this process; its last line."""
    done = vouch("filter", *arguments)
    assert (done.returncode == 2) == fails, done.stderr
    lines = done.stderr.strip().splitlines()
    assert not fails or len(lines) == 1, done.stderr
    return lines[-1]


def tree(folder):
    """All files of a folder with what is in them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def wine_rows(count, seed=0):
    """Rows like wine's, a tenth of them far from it."""
    rng = np.random.default_rng(seed)
    data = load_wine().data
    rows = data[rng.integers(len(data), size=count)] * (1 + 0.02 * rng.normal(size=(count, 13)))
    rows[::10] *= 1 + rng.random((len(rows[::10]), 13))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Wine in four formats, 1,000 rows."""
    folder = tmp_path_factory.mktemp("data")
    rows = wine_rows(1000)
    pq.write_table(
        pa.table({"id": np.arange(450), **{name: rows[:450, at] for at, name in enumerate(NAMES)}}),
        folder / "a.parquet",
        row_group_size=125,
    )
    (folder / "deep").mkdir()
    with (folder / "deep" / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*NAMES, "note"], *([*row, 'x "y"\n'] for row in rows[450:750].tolist())])
    with (folder / "c.jsonl").open("w") as file:
        file.writelines(json.dumps(dict(zip(NAMES, row, strict=True))) + "\n" for row in rows[750:950].tolist())
    np.save(folder / "d.npy", rows[950:])
    return folder


@pytest.fixture(scope="module")
def options(tiny_store):
    return ("--model", "wine", "--store", tiny_store, "--percentiles", "5,95", "--shard-rows", 100, "--device", "cpu")


@pytest.fixture(scope="module")
def undisturbed(data, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "a"
    vouch_filter(data, *options, "--out", out, "--workers", 1)
    return out


def test_every_row_is_in_one_part_as_it_was_and_in_its_order(data, undisturbed, wine):
    scores = {path.name.split("-")[0][0]: [] for path in (undisturbed / "scores").rglob("*.parquet")}
    for path in sorted((undisturbed / "scores").rglob("*.parquet")):
        scores[path.name[0]].append(pq.read_table(path))
    scores = {name: pa.concat_tables(parts) for name, parts in scores.items()}
    rows = wine_rows(1000)
    expected = wine.score(rows, ScoreOptions(percentiles=(5.0, 95.0)))
    found = pa.concat_tables([scores[name] for name in "abcd"])
    assert found.column("log_likelihood").to_pylist() == expected.log_likelihood.tolist()
    assert found.column("verdict").to_pylist() == expected.verdict
    parts = {
        kind: pa.concat_tables([pq.read_table(path) for path in sorted((undisturbed / kind).glob("a-*"))])
        for kind in ("valid", "invalid")
    }
    ids = {kind: table.column("id").to_pylist() for kind, table in parts.items()}
    assert ids["valid"] == np.flatnonzero(expected.valid[:450]).tolist()
    assert sorted(ids["valid"] + ids["invalid"]) == list(range(450))
    header, *_ = (data / "deep" / "b.csv").read_bytes().partition(b"\n")
    records = list(csv.reader(io.StringIO((data / "deep" / "b.csv").read_text(), newline="")))[1:]
    for kind, is_there in (("valid", expected.valid), ("invalid", ~expected.valid)):
        files = sorted((undisturbed / kind / "deep").glob("b-*.csv"))
        assert [path.name for path in files] == [f"b-{at:05d}-of-00003.csv" for at in range(3)]
        assert all(path.read_bytes().startswith(header) for path in files)
        kept = [row for path in files for row in list(csv.reader(io.StringIO(path.read_text(), newline="")))[1:]]
        assert kept == [record for record, one in zip(records, is_there[450:750], strict=True) if one]
        assert np.array_equal(np.load(undisturbed / kind / "d.npy"), rows[950:][is_there[950:]])
    report = json.loads((undisturbed / "report.json").read_text())
    assert (report["rows"], report["valid"]) == (1000, int(expected.valid.sum()))
    assert sum(report["log_likelihood"]["counts"]) == sum(report["p_values"]) == 1000
    assert report["sides"]["below"] == int((expected.sides == -1).sum())
    strangest = report["strangest"][0]
    assert strangest["log_likelihood"] == min(expected.log_likelihood)
    assert strangest["p_value"] == min(expected.low_p_value)
    assert report["drift"]["watched_rows"] == 1000
    page = (undisturbed / "report.html").read_text()
    assert "1,000 rows are invalid" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.slow
def test_processes_parts_and_new_starts_give_the_same_bytes(data, options, undisturbed, tmp_path):
    expected = tree(undisturbed)
    vouch_filter(data, *options, "--out", tmp_path / "two", "--workers", 2)
    assert tree(tmp_path / "two") == expected
    for part in ("1/3", "0/3"):
        assert f"part {part} of 11 shards is done" in vouch_filter(
            data, *options, "--out", tmp_path / "parts", "--shard", part, "--workers", 1
        )
    said = vouch_filter(data, *options, "--out", tmp_path / "parts", "--finish", fails=True)
    assert "3 of 11 shards are not done yet: 2, 5, 8" in said
    vouch_filter(data, *options, "--out", tmp_path / "parts", "--shard", "2/3", "--workers", 1)
    vouch_filter(data, *options, "--out", tmp_path / "parts", "--finish", "--workers", 1)
    assert tree(tmp_path / "parts") == expected
    # What is done is not done again; what is lost or half-written is.
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.parquet")}
    (tmp_path / "two" / "valid" / "d.npy").unlink()
    (tmp_path / "two" / ".vouch" / "done" / "deep" / "b-00001-of-00003.csv.json").write_text("{")
    vouch_filter(data, *options, "--out", tmp_path / "two", "--workers", 1)
    assert tree(tmp_path / "two") == expected
    changed = {path.name for path, time_ns in done.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"d.npy.parquet", "b-00001-of-00003.csv.parquet"}


@pytest.mark.slow
def test_killed_at_any_moment_and_begun_again_the_bytes_are_the_same(data, options, undisturbed, tmp_path):
    out, generator = tmp_path / "killed", random.Random(0)
    command = [sys.executable, "-m", "service.cli", "filter", data, *options, "--out", out, "--workers", 1]
    for _ in range(4):
        process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
        wait_for_work(out, process)
        time.sleep(0.3 * generator.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (name for kind in ("valid", "invalid") for name in (out / kind).rglob("*") if name.is_file()):
            assert path.read_bytes() == (undisturbed / path.relative_to(out)).read_bytes()
    vouch_filter(*command[4:])
    assert tree(out) == tree(undisturbed)


def wait_for_work(out, process):
    """Wait until a run is past its imports: until one more shard is done, or all are."""
    before = len(list((out / ".vouch" / "done").rglob("*.json")))
    while process.poll() is None and len(list((out / ".vouch" / "done").rglob("*.json"))) == before:
        time.sleep(0.02)


def test_a_folder_of_another_run_is_left_alone(data, options, undisturbed, tmp_path, tiny_store):
    before = tree(undisturbed)
    for other, message in (
        (
            ("--percentiles", "10,90"),
            r"belongs to another run \(percentiles: \(5.0, 95.0\) then, \(10.0, 90.0\) now\)",
        ),
        (("--shard-rows", 300), r"belongs to another run \(shard rows: 100 then, 300 now\)"),
        (("--fdr", 0.1), "sets the threshold itself"),
    ):
        said = vouch_filter(data, *options, *other, "--out", undisturbed, fails=True)
        assert re.search(message, said), said
    (tmp_path / "copy").mkdir()
    np.save(tmp_path / "copy" / "d.npy", wine_rows(20))
    said = vouch_filter(tmp_path / "copy", *options, "--out", undisturbed, fails=True)
    assert "belongs to another run (a.parquet is missing)" in said
    assert tree(undisturbed) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    said = vouch_filter(data, *options, "--out", tmp_path / "mine", fails=True)
    assert "the folder is not empty and not a run of `vouch filter`" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def bad_files(folder):
    """Files with what is said of each."""
    rows = wine_rows(50)
    table = pa.table({name: rows[:, at] for at, name in enumerate(NAMES)})
    pq.write_table(table, folder / "good.parquet", write_page_checksum=True)
    content = bytearray((folder / "good.parquet").read_bytes())
    content[300] ^= 1  # of a page's numbers: only its checksum tells
    (folder / "damaged.parquet").write_bytes(content)
    (folder / "cut.parquet").write_bytes(content[:1000])
    pq.write_table(table.drop_columns("ash"), folder / "lacking.parquet")
    lines = [",".join(NAMES), *(",".join(map(str, row)) for row in rows.tolist())]
    lines[8] += ",7"
    (folder / "ragged.csv").write_text("\n".join(lines))
    lines[8] = lines[8].rpartition(",")[0].replace(lines[8].split(",")[0], "many", 1)
    (folder / "text.csv").write_text("\n".join(lines))
    return {
        "damaged.parquet": r"damaged.parquet: rows from 0 on cannot be read: ",
        "cut.parquet": r"cut.parquet: the file cannot be read: ",
        "lacking.parquet": r"lacking.parquet: has no column 'ash'$",
        "ragged.csv": r"ragged.csv: line 9 has 14 cells, the header has 13",
        "text.csv": r"text.csv: line 9, column 'alcohol': text, expected a number$",
    }


def test_bad_files_are_one_line_each_and_may_be_skipped(options, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for at, (name, message) in enumerate(bad_files(folder).items()):
        said = vouch_filter(folder / name, *options, "--out", tmp_path / f"out{at}", "--workers", 1, fails=True)
        assert re.search(message, said), said
        assert not (tmp_path / f"out{at}" / "report.json").exists()
    command = (folder, *options, "--out", tmp_path / "out", "--workers", 1, "--on-bad-file", "skip")
    vouch_filter(*command)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == 50
    told = {one["file"]: f"{one['file']}: {one['reason']}" for one in report["not_done"]}
    assert told.keys() == bad_files(folder).keys()
    assert all(re.search(message, told[name]) for name, message in bad_files(folder).items())
    assert "ragged.csv" in (tmp_path / "out" / "report.html").read_text()
    before = tree(tmp_path / "out")
    vouch_filter(*command)
    assert tree(tmp_path / "out") == before
    said = vouch_filter(*command[:-2], fails=True)
    assert "cut.parquet: the file cannot be read" in said
    # A run that stopped at a row may go on without it.
    (folder / "lines").mkdir()
    (folder / "ragged.csv").rename(folder / "lines" / "ragged.csv")
    command = (folder / "lines", *options[:-4], "--shard-rows", 4, "--out", tmp_path / "rows", "--workers", 1)
    assert "line 9 has 14 cells" in vouch_filter(*command, fails=True)
    vouch_filter(*command, "--on-bad-file", "skip")
    report = json.loads((tmp_path / "rows" / "report.json").read_text())
    assert (report["rows"], [one["rows"] for one in report["not_done"]]) == (46, ["4 to 7"])
    assert "line 9 has 14 cells" in vouch_filter(*command, fails=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(data, options, undisturbed, tmp_path):
    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))

    command = (data / "a.parquet", *options, "--out", tmp_path / "out", "--workers", 1)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "filter", *map(str, command)],
        capture_output=True, text=True, cwd=REPOSITORY, check=False, preexec_fn=small_disk,
    )  # fmt: skip
    said = done.stderr
    assert done.returncode == 2
    assert said.count("\n") == 1
    assert re.search("out/(valid|invalid|scores)/a-0000.-of-00005.parquet: cannot be written: File too large", said), (
        said
    )
    assert not list((tmp_path / "out" / ".vouch" / "tmp").iterdir())
    vouch_filter(*command)
    assert (tmp_path / "out" / "scores" / "a-00001-of-00005.parquet").read_bytes() == (
        undisturbed / "scores" / "a-00001-of-00005.parquet"
    ).read_bytes()


@pytest.mark.slow
def test_a_false_discovery_rate_is_held_over_the_whole_data_set(data, tiny_store, tmp_path, wine):
    options = ("--model", "wine", "--store", tiny_store, "--shard-rows", 150, "--fdr", 0.3, "--workers", 1)
    vouch_filter(data, *options, "--out", tmp_path / "out")
    scores = wine.score(wine_rows(1000))
    chosen = scores.discoveries(0.3).chosen
    assert 0 < chosen.sum() < 1000
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["invalid"] == report["fdr"]["discoveries"] == chosen.sum()
    assert report["fdr"]["p_value"] == scores.low_p_value[chosen].max()
    assert report["fdr"]["estimate"] <= 0.3
    invalid = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out" / "invalid").glob("a-*"))])
    assert invalid.column("id").to_pylist() == np.flatnonzero(chosen[:450]).tolist()
    marked = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out" / "scores").glob("a-*"))])
    assert marked.column("discovery").to_pylist() == chosen[:450].tolist()
    before = tree(tmp_path / "out")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "valid").rglob("*")}
    (tmp_path / "out" / "invalid" / "d.npy").unlink()
    vouch_filter(data, *options, "--out", tmp_path / "out")
    assert tree(tmp_path / "out") == before
    changed = {path.name for path, time_ns in done.items() if path.stat().st_mtime_ns != time_ns}
    assert changed <= {"valid", "d.npy"}
    said = vouch_filter(data, *options[:-4], "--fdr", 0.001, "--workers", 1, "--out", tmp_path / "few")
    assert "with so few validation rows, no row can be a discovery" in said


def test_the_limit_is_the_same_however_the_p_values_were_counted():
    p_values = (
        np.random.default_rng(0).integers(1, 300, size=5000) / 300 * np.random.default_rng(1).random(5000).round(1)
    )
    p_values = np.maximum(p_values, 1 / 300)
    counts = (np.zeros(0), np.zeros(0, dtype=int))
    for part in np.array_split(p_values, 7):
        counts = merged(*counts, *np.unique(part, return_counts=True))
    for tail in ("low", "both"):
        for level in (0.05, 0.5, 0.9):
            limit = RejectionLimit.of(*counts, level, tail, 299)
            whole = Discoveries.of(p_values, level, tail, 299)
            assert np.array_equal(limit.chosen(p_values), whole.chosen)
            assert limit.needed == whole.needed


@pytest.mark.slow
def test_rows_with_their_verdicts_and_the_columns_to_blame(people, tmp_path):
    options = ("--model", "people", "--store", people.store, "--write", "verdicts", "--explain", 1, "--workers", 1)
    few = tmp_path / "few.csv"
    # A pattern of holes that is new costs as much as a thousand rows: one will do.
    lines = people.csv.read_text().splitlines(keepends=True)
    few.write_text(
        "".join([*[line for line in lines if "?" not in line][:41], lines[1].replace(lines[1].split(",")[1], "?", 1)])
    )
    vouch_filter(few, *options, "--out", tmp_path / "out")
    table = read_table(tmp_path / "out" / "rows" / "few.csv")
    before = read_table(few)
    assert table.names[: len(before.names)] == before.names
    scores = people.scorer.score(people.scorer.model.input.array(before))
    assert table.column("vouch_verdict").tolist() == scores.verdict
    assert np.array_equal(table.column("vouch_log_likelihood"), scores.log_likelihood)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sum(report["blamed"].values()) <= report["invalid"]
    assert report["strangest"][0]["blamed"]
    np.save(tmp_path / "a.npy", np.zeros((3, 7)))
    said = vouch_filter(tmp_path / "a.npy", *options, "--out", tmp_path / "no", fails=True)
    assert "--write verdicts is not available for arrays" in said


def test_what_has_no_place_for_verdicts_is_told_before_the_last_row_is_scored(options, tmp_path):
    rows = wine_rows(30)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows.tolist()))
    pq.write_table(
        pa.table({**{name: rows[:, at] for at, name in enumerate(NAMES)}, "vouch_side": [""] * 30}),
        tmp_path / "b.parquet",
    )
    for name, message in (("a.jsonl", "line 1 is a list"), ("b.parquet", "already has a column 'vouch_side'")):
        for more in ((), ("--fdr", 0.3)):
            chosen = options if not more else (*options[:4], "--shard-rows", 200, *more)
            out = tmp_path / f"{name}{len(more)}"
            said = vouch_filter(
                tmp_path / name, *chosen, "--write", "verdicts", "--out", out, "--workers", 1, fails=True
            )
            assert f"{name}: {message}" in said


def test_names_that_would_meet_and_results_below_the_input(data, options, undisturbed, tmp_path):
    table = pq.read_table(data / "a.parquet")
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(table, folder / "a.pq")
    pq.write_table(table, folder / "a.pq.parquet")
    whole = (*options[:-4], "--shard-rows", 1000, "--device", "cpu")
    said = vouch_filter(folder, *whole, "--out", tmp_path / "out", fails=True)
    assert "two files would produce the same result file scores/a.pq.parquet" in said
    (folder / "a.pq.parquet").unlink()
    vouch_filter(folder, *options, "--out", folder / "out", "--workers", 1)
    before = tree(folder / "out")
    vouch_filter(folder, *options, "--out", folder / "out", "--workers", 1)
    assert tree(folder / "out") == before
    double = pa.Table.from_arrays([*table.columns, table.column("ash")], [*table.column_names, "ash"])
    pq.write_table(double, tmp_path / "double.parquet")
    said = vouch_filter(tmp_path / "double.parquet", *options, "--out", tmp_path / "no", "--workers", 1, fails=True)
    assert "has two columns 'ash'" in said


def test_drift_is_told_with_the_row_at_which_it_became_plain(people):
    generator = np.random.default_rng(0)
    known = people.scorer.calibration.scores
    usual, low = generator.choice(known, 600), generator.choice(known[: len(known) // 10], 200)
    options = RunOptions(model="people@1", model_digest=people.scorer.published.digest, shard_rows=400)
    tally = Tally(people.scorer, Plan(options=options, files=()), None)
    for number, part in enumerate(np.split(np.concatenate([usual, low]), 2)):
        shard = Shard(number, 400 * number, InputFile("x/a.npy", "a.npy"), "", RowRange(400 * number, 400), "a.npy", "")
        tally.add(shard, scores_of(part))
    report = tally.report([])
    assert report.drift.drifts
    assert report.drift.file == "a.npy"
    assert 600 < report.drift.row < 800
    assert report.strangest[0].log_likelihood == low.min()
    assert "detected at row" in as_html(report)


def scores_of(log_likelihood):
    """A table of scores that are this likely."""
    count = len(log_likelihood)
    return pa.table(
        {
            "verdict": ["valid"] * count,
            "side": ["inside"] * count,
            "log_likelihood": log_likelihood,
            "std_error": np.zeros(count),
            "low_p_value": np.full(count, 0.5),
            "missing": np.zeros(count, dtype=int),
            "unreadable": np.zeros(count, dtype=bool),
        }
    )


@pytest.mark.slow
def test_results_may_go_where_only_a_driver_reaches(data, tiny_store, undisturbed, wine):
    chosen = RunOptions(
        model="wine@1",
        model_digest=wine.published.digest,
        percentiles=(5.0, 95.0),
        shard_rows=100,
    )
    run = Run.start(str(data), "memory://results/wine", chosen, wine)
    engine = engine_of("local", run, str(tiny_store), "cpu", 1)
    engine.score(run.undone(), lambda rows, invalid: None)
    run.finish(engine, lambda rows, invalid: None)
    assert run.undone() == []
    there = {name: run.out.read(name) for name in run.out.names()}
    expected = {name: content for name, content in tree(undisturbed).items() if "lock" not in name}
    assert there == expected


@pytest.mark.parametrize(("absent", "extra"), [("pyarrow", "datasets"), ("ray", "ray")])
def test_a_missing_extra_is_named(data, options, tmp_path, absent, extra):
    engine = ("--engine", "ray") if absent == "ray" else ()
    arguments = ["vouch", "filter", str(data), *map(str, options), *engine, "--out", str(tmp_path / "out")]
    code = f"import sys; sys.modules[{absent!r}] = None; sys.argv = {arguments!r}; import service.cli.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"needs the extra: pip install '.[{extra}]'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="two actors need two CPUs")
def test_ray_gives_the_same_bytes(data, options, undisturbed, tmp_path):
    """In a process of its own, which ends Ray's with it."""
    command = ("filter", data, *options, "--out", tmp_path / "ray", "--engine", "ray", "--workers", 2)
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, command)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "ray") == tree(undisturbed)


def test_ragged_lines_are_passed_over_and_bad_cells_are_told_with_their_lines(people, tmp_path):
    lines = people.csv.read_text().splitlines()[:60]
    lines[4] += ",7"
    lines[9] = "tall" + lines[9][lines[9].index(",") :]
    lines[20] = "?" + lines[20][lines[20].index(",") :]
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n" + "," * (len(COLUMNS) - 1) + "\n")
    command = (tmp_path / "in.csv", "--model", "people", "--store", people.store, "--shard-rows", 20, "--workers", 1)
    said = vouch_filter(*command, "--out", tmp_path / "stopped", fails=True)
    assert "line 5 has 8 cells, the header has 7" in said
    assert not list((tmp_path / "stopped").rglob("*.csv"))
    vouch_filter(*command, "--out", tmp_path / "out", "--on-bad-row", "skip", "--write", "verdicts")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["rows"], report["unreadable"]) == (59, 2)
    assert report["violations"]["height: text where a number was expected"] == 1
    assert report["not_done"] == [
        {"file": "in.csv", "rows": "", "reason": "1 line passed over, not divided as the header is: 5"}
    ]
    scores = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "out" / "scores").iterdir())])
    unreadable = scores.filter(scores.column("unreadable"))
    assert unreadable.column("line").to_pylist() == [10, 61]
    assert set(unreadable.column("verdict").to_pylist()) == {"invalid"}
    assert "height: text where a number was expected" in (tmp_path / "out" / "report.html").read_text()
    text = "".join(path.read_text() for path in sorted((tmp_path / "out" / "rows").iterdir()))
    assert lines[9] in text
    assert lines[4] not in text
    said = vouch_filter(*command, "--out", tmp_path / "strict", "--strict", "--on-bad-row", "skip", fails=True)
    assert "line 10, column 'height': text" in said
