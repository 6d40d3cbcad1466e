"""Fits by several processes on this machine: gloo between CPUs, nccl between GPUs if there is one per process."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from service.errors import TrainingError, VouchError
from service.system.cpus import cpu_quota
from service.system.processes import end_with_parent
from service.training.augmentation import Augmentation
from service.training.feeds import Feed
from service.training.fit import NO_CHECKPOINT, Checkpoint, FitOptions, FitReport, Progress, fit
from service.training.process_group import ALONE, ProcessGroup
from service.vae.network import VAE


@dataclass(frozen=True)
class FitTask:
    """Everything that a process needs to take part in a fit (`service.training.fit.fit`)."""

    vae: VAE
    train: Tensor | Feed
    validation: Tensor
    options: FitOptions
    augment: Augmentation | None = None
    hide: Augmentation | None = None
    checkpoint: Checkpoint = NO_CHECKPOINT

    def run(
        self,
        group: ProcessGroup,
        on_epoch: Callable[[Progress], None] = lambda progress: None,
        on_step: Callable[[float], None] = lambda seconds_left: None,
    ) -> FitReport:
        """Fit the network in place."""
        self.vae.to(group.device)
        report = fit(
            self.vae,
            self.train,
            self.validation.to(group.device),
            self.options,
            on_epoch,
            self.augment,
            self.hide,
            group,
            self.checkpoint,
            on_step,
        )
        self.vae.to("cpu")
        return report


def fit_by(
    processes: int,
    task: FitTask,
    on_epoch: Callable[[Progress], None],
    on_step: Callable[[float], None] = lambda seconds_left: None,
) -> FitReport:
    """Fit a network in place, with this process as the first of `processes`.

    Raises:
        TrainingError: the loss is no longer finite, or another process stopped.
    """
    if processes == 1:
        return task.run(ALONE, on_epoch, on_step)
    if processes > task.options.batch_size:
        raise TrainingError(f"{processes} processes cannot split batches of {task.options.batch_size} rows")
    context = multiprocessing.get_context("spawn")
    threads, hook = torch.get_num_threads(), sys.excepthook
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        others = [Other.started(context, task, rank, processes, meeting) for rank in range(1, processes)]
        try:
            for one in others:
                one.wait_until_ready()
            return task.run(join_group(0, processes, meeting), on_epoch, on_step)
        except RuntimeError as error:  # from gloo or nccl, once a process is gone
            for one in others:
                one.reraise()
            raise TrainingError(f"a training process stopped: {str(error).splitlines()[0]}") from error
        finally:
            for one in others:
                one.end()
            if distributed.is_initialized():
                distributed.destroy_process_group()
            torch.set_num_threads(threads)
            sys.excepthook = hook  # torch replaces it for the rest of the process's life


@dataclass(frozen=True)
class Other:
    """Another process of the fit, and the pipe on which it reports that it is ready, or its error."""

    process: Any
    line: Any

    @staticmethod
    def started(context: Any, task: FitTask, rank: int, size: int, meeting: str) -> Other:
        here, there = context.Pipe()
        process = context.Process(target=take_part, args=(task, rank, size, meeting, there), daemon=True)
        process.start()
        there.close()
        return Other(process, here)

    def wait_until_ready(self) -> None:
        """Wait until it is ready: a process that waits for one that never joins the group cannot be woken.

        Raises:
            TrainingError: it stopped before that.
        """
        try:
            self.line.recv()
        except EOFError:
            raise TrainingError("a training process stopped before starting, perhaps out of memory") from None

    def reraise(self) -> None:
        """Raise its error, if it sent one."""
        with contextlib.suppress(EOFError, OSError):
            if self.line.poll(1.0):
                raise self.line.recv()

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.line.close()


def take_part(task: FitTask, rank: int, size: int, meeting: str, line: Any) -> None:
    """The main function of every other process."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles it, and ends the others
    # Tensors share the parent's memory: right for rows, which never change, and wrong for weights.
    own = replace(task, vae=copy.deepcopy(task.vae))
    line.send("ready")
    try:
        own.run(join_group(rank, size, meeting))
    except VouchError as error:
        line.send(error)
    except RuntimeError:
        sys.exit(1)  # another process is gone, and has reported why


def join_group(rank: int, size: int, meeting: str) -> ProcessGroup:
    """Join the process group."""
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= size
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    # The host name may not resolve; all processes are on this machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, cpu_quota() // size))
    distributed.init_process_group("nccl" if on_gpus else "gloo", init_method=meeting, rank=rank, world_size=size)
    return ProcessGroup(rank, size, device)
