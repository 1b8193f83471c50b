"""Where trials run: processes of this machine, or a Ray cluster.

A worker that dies is replaced, and its trial run again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import psutil
import torch

from pruneport.bench.devices import available_cores
from pruneport.bench.options import ExecutorOptions
from pruneport.compress.devices import check_memory_bound
from pruneport.errors import InputError, PruneportError
from pruneport.models.options import refuse_idle

__all__ = ["Outcome", "check_executor", "run_local", "run_ray", "workers_that_fit"]

_ATTEMPTS = 3
Work = Callable[[Any], Any]


class Outcome(NamedTuple):
    """What became of one piece of work."""

    todo: Any
    result: Any
    error: str | None
    wall_s: float
    host: str


def check_executor(options: ExecutorOptions) -> None:
    """Check where the work is done, before any of it.

    Raises:
        InputError: An address is given without Ray, or memory is no amount.
    """
    if options.executor != "ray":
        refuse_idle(options, ["address"], "for `executor=ray`", "Give that")
    check_memory_bound(options.memory)


def workers_that_fit(memory: float, jobs: int | None) -> int:
    """How many trials of ``memory`` GiB run side by side here: one a core at most."""
    if jobs is not None:
        return jobs
    return max(1, min(available_cores(), int(psutil.virtual_memory().available / (memory * 2**30))))


def run_local(work: Work, todo: Sequence[Any], workers: int) -> Iterator[Outcome]:
    """Yield outcomes as they come, from ``workers`` processes.

    A process that is killed takes the pool with it. What was in hand is then run again alone, three times at most, so
    that the one that kills its processes is known from those that were only near.
    """
    attempts = dict.fromkeys(range(len(todo)), 0)
    suspects: list[int] = []
    while attempts:
        alone = suspects[:1]
        for index, outcome in _round(work, todo, alone or list(attempts), 1 if alone else workers):
            if outcome is None and not alone:
                suspects.append(index)
                continue
            if outcome is None:
                attempts[index] += 1
                if attempts[index] < _ATTEMPTS:
                    continue
                outcome = Outcome(todo[index], None, "its process was killed, three times over", 0.0, "")
            suspects = [other for other in suspects if other != index]
            del attempts[index]
            yield outcome


def _round(
    work: Work, todo: Sequence[Any], indices: Sequence[int], workers: int
) -> Iterator[tuple[int, Outcome | None]]:
    """One pool, until all is done or a process dies; None for what was in hand then."""
    threads = max(1, available_cores() // workers)
    context = multiprocessing.get_context("forkserver")  # imports once; forked from a process that has run nothing
    context.set_forkserver_preload(["pruneport.bench.transfer.trial"])
    waiting, running, broken = list(indices), dict[Future[Outcome], int](), False
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(threads,)) as pool:
        while running or (waiting and not broken):
            try:
                while waiting and len(running) < workers and not broken:
                    running[pool.submit(_timed, work, todo[waiting[0]])] = waiting[0]
                    del waiting[0]
            except BrokenProcessPool:
                broken = True
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                try:
                    yield index, future.result()
                except BrokenProcessPool:
                    broken = True
                    yield index, None


def run_ray(work: Work, todo: Sequence[Any], memory: float, address: str | None) -> Iterator[Outcome]:
    """The same over a Ray cluster: Ray places, counts memory and retries.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("`executor=ray` needs Ray: pip install ray, or use `executor=local`.") from error
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster at `address` {address}: {error}. Start one with: ray start --head") from error
    try:
        remote = ray.remote(num_cpus=1, memory=int(memory * 2**30), max_retries=_ATTEMPTS - 1)(_timed)
        running = {remote.remote(work, item): item for item in todo}
        while running:
            done, _ = ray.wait(list(running))
            for reference in done:
                item = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield Outcome(item, None, str(error).splitlines()[0], 0.0, "")
    finally:
        ray.shutdown()


def _begin(threads: int) -> None:
    """Bind this process to so many threads, and end it with the study that it works for.

    A worker that outlived a killed study would compete with the one that resumes it.
    """
    torch.set_num_threads(threads)
    study = multiprocessing.parent_process()

    def watch() -> None:
        """End this process when the study's has ended."""
        if study is not None:
            study.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _timed(work: Work, todo: Any) -> Outcome:
    """Do the work, and note how long it took and what went wrong."""
    start = time.monotonic()
    try:
        result, error = work(todo), None
    except PruneportError as wrong:
        result, error = None, str(wrong)
    except Exception as wrong:  # one trial's, such as memory that ran out; the others go on
        result, error = None, f"{type(wrong).__name__}: {wrong}"
    return Outcome(todo, result, error, time.monotonic() - start, os.uname().nodename)
