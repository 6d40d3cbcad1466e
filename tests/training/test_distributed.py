"""Fits that several processes share, that go on after a kill, and that stream rows: the same model in the end."""

import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from service.data.inputs import InputSpec
from service.errors import DataError, TrainingError
from service.files.formats.base import RowRange
from service.store.store import Store
from service.training.augmentation import hidden_cells, random_affine
from service.training.checkpoints import Checkpoints, FileCheckpoint
from service.training.distributed import FitTask, fit_by
from service.training.feeds import InMemory
from service.training.fit import FitOptions, fit
from service.training.inputs import standard
from service.training.parquet_source import CALIBRATION, TRAIN, VALIDATION, ParquetFeed, Source
from service.training.process_group import ProcessGroup
from service.vae.mixed import Categorical, Count, Real
from service.vae.network import VAE, Architecture
from tests.tools import REPOSITORY, vouch

OPTIONS = FitOptions(epochs=12, batch_size=50, importance_samples=2)


def rows_of(count=1200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, 12, generator=torch.Generator().manual_seed(9)) * 3
    return torch.bernoulli(torch.sigmoid(torch.randn(count, 2, generator=generator) @ weights), generator=generator)


def fresh(seed=0, **more):
    torch.manual_seed(seed)
    return VAE(Architecture(12, 2, (16,), **more))


@pytest.mark.slow
def test_two_processes_end_at_the_bound_of_one():
    rows, validation = rows_of(), rows_of(400, 1)
    options = replace(OPTIONS, epochs=60)
    alone, together = (
        fit_by(number, FitTask(fresh(), rows, validation, options), lambda progress: None).validation.bound
        for number in (1, 2)
    )
    # By seeds of the noise alone, bounds of one process spread by 0.03.
    assert together == pytest.approx(alone, abs=0.1)
    assert together > fit(fresh(), rows, validation, OPTIONS).validation.bound + 2.0


def test_a_share_of_every_batch_is_each_ones_and_all_of_it_is_somebodys():
    rows = torch.arange(23.0)[:, None]
    feeds = [InMemory(rows, 8, torch.Generator().manual_seed(3)) for _ in range(3)]
    alone = list(feeds[0].epoch(1, ProcessGroup()))
    shares = [list(feed.epoch(1, ProcessGroup(rank, 2))) for rank, feed in enumerate(feeds[1:])]
    assert [len(batch) for batch in alone] == [8, 8]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    "columns", [None, (Real(0.05), Categorical(3, 0.1), Count(0.5, 1.0, 1.0, 0.05)), (Categorical(3, 0.1),) * 3]
)
def test_every_likelihood_and_prior_can_be_shared(columns):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 3, (200, 3), generator=generator).float()
    kind = {"likelihood": "gaussian"} if columns is None else {"likelihood": "columns", "columns": columns}
    vae = VAE(Architecture(3, 2, (8,), prior_components=3, **kind))
    task = FitTask(vae, rows, rows[:50], FitOptions(epochs=2, batch_size=20), None, hidden_cells([1, 1, 1], 0.5))
    if columns is None:
        task = FitTask(vae, rows, rows[:50], FitOptions(epochs=2, batch_size=20))
    assert np.isfinite(fit_by(2, task, lambda progress: None).validation.bound)


class EndedError(Exception):
    """Somebody pulls the plug."""


def end_after(epoch):
    def on_epoch(progress):
        if progress.epoch == epoch:
            raise EndedError

    return on_epoch


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fit_that_was_ended_goes_on_to_the_same_weights(tmp_path, monkeypatch, processes):
    monkeypatch.setattr("service.training.checkpoints.SAVE_EVERY_S", 0.0)
    rows, validation = rows_of(), rows_of(400, 1)
    whole = fresh()
    expected = fit_by(processes, FitTask(whole, rows, validation, OPTIONS), lambda progress: None)
    kept = FileCheckpoint(tmp_path / "fit.pt", "key")
    parts = fresh()
    for epoch in (4, 9):
        with pytest.raises(EndedError):
            fit_by(processes, FitTask(parts, rows, validation, OPTIONS, checkpoint=kept), end_after(epoch))
        parts = fresh(seed=7)  # nothing is left but the file
    found = fit_by(processes, FitTask(parts, rows, validation, OPTIONS, checkpoint=kept), lambda progress: None)
    assert (found.validation, found.best_epoch, found.epochs) == (
        expected.validation,
        expected.best_epoch,
        expected.epochs,
    )
    assert all(torch.equal(parts.state_dict()[name], value) for name, value in whole.state_dict().items())
    again = fresh(seed=8)
    epochs = []
    fit_by(1, FitTask(again, rows, validation, OPTIONS, checkpoint=kept), epochs.append)
    assert epochs == []  # it had ended
    assert torch.equal(again.decoder.output.weight, whole.decoder.output.weight)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    rows = rows_of(300)
    fit(fresh(), rows, rows[:50], FitOptions(epochs=1), checkpoint=FileCheckpoint(tmp_path / "fit.pt", "key"))
    with pytest.raises(DataError, match="started with other data or options"):
        FileCheckpoint(tmp_path / "fit.pt", "other").load()
    (tmp_path / "fit.pt").write_bytes((tmp_path / "fit.pt").read_bytes()[:500])
    with pytest.raises(DataError, match="damaged checkpoint"):
        FileCheckpoint(tmp_path / "fit.pt", "key").load()
    with pytest.raises(DataError, match="no training to resume"):
        Checkpoints.beside(str(tmp_path), "name", resumes=True)


def test_a_training_removes_what_another_left_and_nothing_else(tmp_path):
    mine = tmp_path / "name"
    mine.mkdir()
    (tmp_path / "thesis.txt").write_text("")
    (mine / "mixture-0.pt").write_text("of another training")
    kept = Checkpoints.beside("store", "name", resumes=False, folder=tmp_path).start("key")
    assert list(mine.parent.iterdir()) == [tmp_path / "thesis.txt"]
    fit(fresh(), rows_of(300), rows_of(50), FitOptions(epochs=1), checkpoint=kept.of("normal-0"))
    resumed = Checkpoints.beside("store", "name", resumes=True, folder=tmp_path)
    with pytest.raises(DataError, match="started with other data or options"):
        resumed.start("other")
    resumed.start("key").clear()
    assert list(mine.parent.iterdir()) == [tmp_path / "thesis.txt"]


@pytest.mark.slow
def test_a_process_that_ends_is_one_clear_error(tmp_path):
    rows = rows_of()

    def kill_the_other(progress):
        import multiprocessing

        (other,) = multiprocessing.active_children()
        other.kill()
        other.join()

    with pytest.raises(TrainingError, match="a training process stopped"):
        fit_by(2, FitTask(fresh(), rows, rows[:50], OPTIONS), kill_the_other)
    diverging = replace(OPTIONS, learning_rate=1e30)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf|-inf) at epoch"):
        fit_by(2, FitTask(fresh(), rows, rows[:50], diverging), lambda progress: None)
    with pytest.raises(TrainingError, match="60 processes cannot split batches of 50 rows"):
        fit_by(60, FitTask(fresh(), rows, rows[:50], OPTIONS), lambda progress: None)


def test_augmentations_can_be_sent_to_processes():
    import pickle

    x = rows_of(5)
    for augment in (random_affine(3, 4, "draw"), hidden_cells([1] * 12, 0.5)):
        again = pickle.loads(pickle.dumps(augment))
        ours, theirs = (one(x, torch.Generator().manual_seed(1)) for one in (augment, again))
        assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


# Streams


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """3,000 rows of four columns in two files; the first column numbers them."""
    folder = tmp_path_factory.mktemp("stream")
    generator = np.random.default_rng(0)
    z = generator.normal(size=(3000, 1))
    rows = np.hstack([np.arange(3000)[:, None], z + 0.3 * generator.normal(size=(3000, 3))])
    for at, part in enumerate(np.split(rows, [1000])):
        table = pa.table({"n": part[:, 0], **{f"c{column}": part[:, column] for column in (1, 2, 3)}})
        pq.write_table(table, folder / f"{at}.parquet", row_group_size=400)
    return folder, rows


def feed_of(folder, batch_size=32):
    source = Source.of(str(folder), None, 0, 0.1, 0.2)
    spec = InputSpec(kind="table", shape=(4,), columns=source.names, transform=standard(np.eye(4), None))
    found = source.gathered()
    return (
        source,
        found,
        ParquetFeed(source, spec, spec.reader(), batch_size, found.train_rows, torch.zeros(0, 4)),
        spec,
    )


def test_every_row_is_for_one_thing_and_a_pass_shows_each_training_row_once(stream):
    folder, _ = stream
    source, found, feed, spec = feed_of(folder)
    held = np.concatenate([found.validation.column("n"), found.calibration.column("n")])
    assert (source.rows, found.train_rows + len(held)) == (3000, 3000)
    assert len(set(held)) == len(held)
    assert len(found.sample) == found.train_rows  # of so few rows all
    numbers = []
    for number in (1, 2):
        batches = list(feed.epoch(number, ProcessGroup()))
        assert len(batches) == found.train_rows // 32
        seen = spec.decode(torch.cat(batches).double().numpy())[:, 0].round()
        assert len(set(seen)) == len(seen)
        assert not set(seen) & set(held)
        numbers.append(seen)
    assert not np.array_equal(*numbers)
    assert abs(np.corrcoef(numbers[0], np.arange(len(numbers[0])))[0, 1]) < 0.1
    again = spec.decode(torch.cat(list(feed_of(folder)[2].epoch(1, ProcessGroup()))).double().numpy())[:, 0].round()
    assert np.array_equal(again, numbers[0])
    parts = [torch.cat(list(feed.epoch(1, ProcessGroup(rank, 2)))) for rank in range(2)]
    assert [len(part) for part in parts] == [16 * (found.train_rows // 32)] * 2
    shared = [set(spec.decode(part.double().numpy())[:, 0].round()) for part in parts]
    assert len(shared[0] & shared[1]) <= 0.1 * len(shared[0])


def test_roles_are_drawn_for_each_piece_alone(stream):
    source, *_ = feed_of(stream[0])
    piece = source.groups[2][0]
    assert np.array_equal(source.draws(piece)[0], source.draws(piece)[0])
    roles = np.concatenate([source.draws(one)[0] for group in source.groups for one in group])
    shares = [(roles == role).mean() for role in (TRAIN, VALIDATION, CALIBRATION)]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.03)
    assert sum(one.row_range.rows for group in source.groups for one in group) == 3000
    assert source.groups[0][0].row_range == RowRange(0, 256)


def test_what_another_process_cannot_read_is_told_by_file_and_row(stream, tmp_path):
    folder, _ = stream
    rows = pq.read_table(folder / "0.parquet").to_pydict()
    rows["c1"][777] = 1e39
    pq.write_table(pa.table(rows), tmp_path / "0.parquet", row_group_size=400)
    with pytest.raises(DataError, match="row 777, column 'c1': a number too large for float32"):
        Source.of(str(tmp_path), None, 0, 0.1, 0.2).gathered()
    source, _, feed, _ = feed_of(folder)
    # The source changed after it was looked at: a process comes upon it in the midst of a fit.
    changed = replace(feed, source=Source.of(str(tmp_path), None, 0, 0.1, 0.2), rows=700)
    network = VAE(Architecture(4, 2, (8,), likelihood="gaussian"))
    task = FitTask(network, replace(changed, some=torch.randn(50, 4)), torch.randn(50, 4), FitOptions(epochs=2))
    with pytest.raises(DataError, match="row 777, column"):
        fit_by(2, task, lambda progress: None)
    assert len(source.pieces) == sum(map(len, source.groups))


@pytest.mark.slow
def test_a_stream_is_trained_killed_and_resumed_by_two_processes(stream, tmp_path):
    folder, _ = stream
    options = (
        "--name",
        "s",
        "--stream",
        "--columns",
        "c1,c2,c3",
        "--epochs",
        40,
        "--patience",
        40,
        "--likelihood",
        "gaussian",
    )
    plain = vouch("train", folder, *options, "--store", tmp_path / "a")
    assert plain.returncode == 0, plain.stderr
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "train",
        folder,
        *options,
        "--store",
        tmp_path / "b",
        "--data-parallel",
        2,
    ]
    process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    kept = tmp_path / "b" / ".training" / "s" / "normal-0.pt"
    while process.poll() is None and not kept.exists():
        time.sleep(0.05)
    was_killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    if was_killed:
        assert Store(tmp_path / "b").names() == []
        done = vouch(*command[3:], "--resume")
        assert done.returncode == 0, done.stderr
    assert not kept.parent.exists()
    cards = [Store(tmp_path / one).load(Store(tmp_path / one).resolve("s")).card for one in "ab"]
    bounds = [card.training["report"]["validation"]["bound"] for card in cards]
    # One draw for each of 300 validation rows makes a bound uncertain by 0.1, where latents come out in another order.
    assert bounds[0] == pytest.approx(bounds[1], abs=0.4)
    assert cards[0].training["data"]["rows"] > 1900
    assert cards[0].calibration.rows > 400
    for wrong, message in (
        (("--columns", "c9"), "has no column 'c9'"),
        (("--folds", 3), "leave out --folds"),
        (("--resume",), "no training to resume"),
    ):
        said = vouch("train", folder, "--name", "s", "--stream", "--store", tmp_path / "a", *wrong)
        assert said.returncode == 2
        assert message in said.stderr
