"""The Ray engine: tasks read shards, and actors with a model each score them, streaming and with back-pressure.

    read tasks -> blocks: a shard's raw rows, as an Arrow stream -> actors: `Worker`, as on one machine -> counts

Every machine must reach the paths and the store. A lost actor is restarted and its shards are read again; what it had
written is overwritten with the same bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

# Read when ray starts: no usage reports, and no logs of ray's own processes.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from service.datasets.local import WorkerSpec
from service.datasets.plan import Shard
from service.datasets.shards import OnBatch, ShardReader, Worker
from service.errors import DataError, UnavailableError, VouchError
from service.validity.conformal import RejectionLimit

READING_CPUS, SCORING_CPUS = 0.1, 0.9  # shares of a CPU: each runs one actor and has room for a read task


@dataclass(frozen=True, slots=True)
class Ray:
    """Runs shards on a Ray cluster, in any order; without an address, on a small one started on this machine.

    `actors` defaults to one per GPU or, without GPUs, one per CPU.
    """

    job: WorkerSpec
    actors: int | None
    address: str | None

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        self.work(shards, None, on_batch)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        self.work(shards, limit, on_batch)

    def work(self, shards: Sequence[Shard], limit: RejectionLimit | None, on_batch: OnBatch) -> None:
        """Stream the shards through the actors.

        Raises:
            DataError: an actor could not read or write a file.
            UnavailableError: there is no cluster, or it failed.
        """
        if not shards:
            return
        try:
            gpus = self.connect()
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"ray: {last_line(error)}") from error
        try:
            number = self.actors or gpus or int(ray.cluster_resources().get("CPU", 1))
            by_number = {shard.number: shard for shard in shards}
            rows = ray.data.read_datasource(Shards(shards), num_cpus=READING_CPUS)
            counts = rows.map_batches(
                Actor,
                fn_constructor_args=(self.job, by_number, limit),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(number, len(shards))),
                num_cpus=SCORING_CPUS,
                num_gpus=1 if gpus else None,
            )
            for batch in counts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for count in batch.to_pylist():
                    if count["problem"] is not None:
                        raise DataError(count["problem"])
                    on_batch(count["rows"], count["invalid"])
        except ray.exceptions.RayError as error:
            raise UnavailableError(f"ray: {last_line(error)}") from error

    def connect(self) -> int:
        """Join the cluster or start one; return how many GPUs to use."""
        if not ray.is_initialized():
            of_a_new_one = {"num_cpus": self.actors, "include_dashboard": False}
            of_the_cluster = {"address": self.address}
            how = of_a_new_one if self.address is None else of_the_cluster
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **how)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        return 0 if self.job.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))


def last_line(error: Exception) -> str:
    """The last line of an error's text, which may be a whole traceback."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class Shards(Datasource):  # type: ignore[misc]  # ray is an extra
    """A read task for each shard; its block has one row: the shard's number and its raw rows."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One read task per shard; `parallelism` is ignored."""
        return [
            ReadTask(partial(block, shard), BlockMetadata(num_rows=1, size_bytes=None, exec_stats=None))
            for shard in self.shards
        ]


def block(shard: Shard) -> Iterable[pa.Table]:
    """Yield a shard's raw rows, or why they cannot be read."""
    content, problem = None, None
    reader = ShardReader()
    try:
        content = as_stream(reader.read(shard))
    except DataError as error:
        problem = str(error)
    finally:
        reader.close()
    yield pa.table(
        {
            "shard": pa.array([shard.number], pa.int64()),
            "content": pa.array([content], pa.large_binary()),
            "problem": pa.array([problem], pa.string()),
        }
    )


class Actor:
    """A worker in a process of the cluster."""

    def __init__(self, job: WorkerSpec, shards: dict[int, Shard], limit: RejectionLimit | None) -> None:
        self.job, self.shards, self.limit = job, shards, limit

    @cached_property
    def worker(self) -> Worker:
        """Made with the first shard, so that an error in loading the model is reported as that shard's."""
        return self.job.worker()

    def __call__(self, blocks: pa.Table) -> pa.Table:
        """Row counts, or the problem, of each shard."""
        counts = [self.done(self.shards[one["shard"]], one["content"], one["problem"]) for one in blocks.to_pylist()]
        kinds = {"rows": pa.int64(), "invalid": pa.int64(), "problem": pa.string()}
        return pa.Table.from_pylist(counts, pa.schema(list(kinds.items())))

    def done(self, shard: Shard, content: bytes | None, problem: str | None) -> dict[str, Any]:
        """Score or split a shard. Errors are returned, since Ray would retry an actor that raises."""
        try:
            if content is None:
                done = self.worker.refused(shard, DataError(problem or ""))
            elif self.limit is None:
                done = self.worker.score_rows(shard, of_stream(content))
            else:
                self.worker.split_rows(shard, of_stream(content), self.limit)
                return {"rows": shard.row_range.rows, "invalid": 0, "problem": None}
        except (VouchError, OSError) as error:
            return {"rows": 0, "invalid": 0, "problem": str(error)}
        return {"rows": done.rows, "invalid": done.invalid, "problem": None}


def as_stream(table: pa.Table) -> bytes:
    """A table in Arrow's stream format."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def of_stream(content: bytes) -> pa.Table:
    return pa.ipc.open_stream(content).read_all()
