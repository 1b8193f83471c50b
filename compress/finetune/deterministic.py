"""Training on a GPU by algorithms that give the same result every time."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pruneport.progress import Note, Progress

__all__ = ["deterministic"]

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # of cuBLAS, which takes other kernels in others; read when it starts
_UNSURE = re.compile(r"^(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic(device: torch.device, progress: Progress) -> Iterator[None]:
    """Let torch use deterministic algorithms on a GPU, and say which operators of the network have none.

    See torch.use_deterministic_algorithms. On the CPU nothing is changed: what trains there repeats itself.

    Args:
        device: Of the training.
        progress: Told at the end of each operator without one.
    """
    if device.type == "cpu":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    unsure: dict[str, None] = {}
    show = warnings.showwarning

    def keep(message: Warning | str, *given: object, **more: object) -> None:
        found = _UNSURE.match(str(message))
        if found is None:
            show(message, *given, **more)  # type: ignore[arg-type]
        else:
            unsure[found[1]] = None

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=_UNSURE.pattern)
            warnings.showwarning = keep
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = before[2]
        if unsure:
            progress(
                Note(
                    f"{', '.join(unsure)} has no deterministic algorithm on this device: a run that is stopped and "
                    "goes on does not end bit for bit as one that was not."
                )
            )
