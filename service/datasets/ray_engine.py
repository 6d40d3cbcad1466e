"""Many machines, by Ray Data: tasks read shards, actors with a model each score them, streaming and with back-pressure.

    read tasks -> blocks: a shard's raw rows, as Arrow's stream of bytes -> actors: `Worker`, as on one machine -> counts

Paths and stores must be reached from every machine. An actor that is lost starts again, and its shards are read again; what
it had written is written over with the same bytes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

# Read when ray starts: nothing is reported to anyone, and nothing is said of how ray itself goes about it.
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

READING_CPUS, SCORING_CPUS = 0.1, 0.9  # of a CPU: on each one an actor, and room for a read beside it


@dataclass(frozen=True, slots=True)
class Ray:
    """A cluster, or a small one that is started here, with so many actors: by default one for each GPU, or for each CPU."""

    job: WorkerSpec
    actors: int | None
    address: str | None

    def score(self, shards: Sequence[Shard], on_batch: OnBatch) -> None:
        """In whatever order they are done."""
        self.work(shards, None, on_batch)

    def split(self, shards: Sequence[Shard], limit: RejectionLimit, on_batch: OnBatch) -> None:
        """In whatever order they are done."""
        self.work(shards, limit, on_batch)

    def work(self, shards: Sequence[Shard], limit: RejectionLimit | None, on_batch: OnBatch) -> None:
        """Stream the shards through the actors.

        Raises:
            DataError: what an actor could not read or write.
            UnavailableError: there is no cluster, or it broke down.
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
        """Join the cluster, or start one; how many GPUs it has for us."""
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
    """What a traceback in a text ends with."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class Shards(Datasource):  # type: ignore[misc]  # ray is an extra
    """A read task for each shard, whose block has one row: the shard's number and its raw rows."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """One for each shard, however many may run side by side."""
        return [
            ReadTask(partial(block, shard), BlockMetadata(num_rows=1, size_bytes=None, exec_stats=None))
            for shard in self.shards
        ]


def block(shard: Shard) -> Iterable[pa.Table]:
    """A shard's raw rows or, where they cannot be read, why."""
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
        """Made with the first shard, so that what is wrong with the model is told as what is wrong with a shard."""
        return self.job.worker()

    def __call__(self, blocks: pa.Table) -> pa.Table:
        """What became of some shards."""
        counts = [self.done(self.shards[one["shard"]], one["content"], one["problem"]) for one in blocks.to_pylist()]
        kinds = {"rows": pa.int64(), "invalid": pa.int64(), "problem": pa.string()}
        return pa.Table.from_pylist(counts, pa.schema(list(kinds.items())))

    def done(self, shard: Shard, content: bytes | None, problem: str | None) -> dict[str, Any]:
        """Score a shard, or split it; what cannot be done is told, since an error of an actor's would be tried again."""
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
    """And back."""
    return pa.ipc.open_stream(content).read_all()
