"""What a compression needs to go on with its imitation, and its state file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from pruneport.compress.state_file import check_same_settings, open_state, write_state_file
from pruneport.compress.surgery.plan import Plan

__all__ = ["Ended", "ImitationState", "ImitationTraining", "Unfinished", "UnfinishedFile", "copied_state"]

_FORMAT_VERSION = 1
_WHAT = "a compression"
Ended = Literal["steps", "time", "no gain", "diverged"]
"""Why a training ended: its steps were done, its time was up, ten checks brought no gain, or the loss was no number."""


@dataclass(kw_only=True)
class ImitationTraining:
    """One training of an imitation, from where reconstruction ended.

    Attributes:
        rate: Its learning rate.
        planned: How many steps it is to have.
        step: How many it has had.
        error: The least distance of its checks.
        worse: Checks since then.
        stopped: Why it ended; None: it has not.
    """

    rate: float
    planned: int
    step: int = 0
    error: float = float("inf")
    worse: int = 0
    stopped: Ended | None = None


@dataclass(kw_only=True)
class ImitationState:
    """An imitation at one moment.

    Attributes:
        start: State dict of the network as reconstruction left it.
        batches: Number of batches that it trains on.
        steps: Of the whole training; 0: not known yet.
        seconds: Spent so far.
        tries: Short trainings, each with its learning rate.
        training: The whole one, once its learning rate is known.
        error: The least distance of all checks.
        best: State dict of that check's network; empty before the first.
        weights: State dict of the training that is under way; empty where none is.
        momenta: Its optimizer's state: "QUANTITY/PARAMETER" -> tensor.
    """

    start: dict[str, Tensor]
    batches: int
    steps: int = 0
    seconds: float = 0.0
    tries: list[ImitationTraining] = field(default_factory=list)
    training: ImitationTraining | None = None
    error: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    momenta: dict[str, Tensor] = field(default_factory=dict)


_PLAIN = ("batches", "steps", "seconds", "error")
_TENSORS = ("start", "best", "weights", "momenta")


@dataclass(frozen=True, kw_only=True)
class UnfinishedFile:
    """Where a compression is saved.

    Attributes:
        path: The state file; it need not be there.
        settings: What the compression was started with, as JSON gives it back; another one does not go on with it.
    """

    path: Path
    settings: Mapping[str, Any]

    def read(self) -> Unfinished | None:
        """What an earlier run of the same compression saved; None where nothing is there.

        Raises:
            CheckpointError: The file is no such state, or of a newer format.
            TrainingError: It is another compression's.
        """
        if not self.path.exists():
            return None
        with open_state(self.path, _WHAT, _FORMAT_VERSION, "pruned") as file:
            check_same_settings(file.content["settings"], self.settings, self.path, _WHAT)
            training = file.content["training"]
            parts: dict[str, Any] = {name: file.content[name] for name in _PLAIN}
            parts |= {name: file.tensors.get(name, {}) for name in _TENSORS}
            imitation = ImitationState(
                tries=[ImitationTraining(**done) for done in file.content["tries"]],
                training=None if training is None else ImitationTraining(**training),
                **parts,
            )
            return Unfinished(file=self, plan=file.plan, pruned=file.tensors["pruned"], imitation=imitation)

    def begin(self, plan: Plan, network: nn.Module) -> Unfinished:
        """A compression whose network was pruned just now; nothing is saved before its imitation has begun."""
        return Unfinished(file=self, plan=plan, pruned=copied_state(network))


@dataclass(kw_only=True)
class Unfinished:
    """A compression that is saved while it imitates.

    Attributes:
        file: Where.
        plan: Of the pruned network, without recovery.
        pruned: Its state dict before recovery.
        imitation: How far it is; None before it has begun.
    """

    file: UnfinishedFile
    plan: Plan
    pruned: dict[str, Tensor]
    imitation: ImitationState | None = None

    def save(self, imitation: ImitationState) -> None:
        """Write the file, with the imitation as it is now.

        Raises:
            OSError: The disk is full or the folder cannot be written; what was there stays.
        """
        self.imitation = imitation
        content = {name: getattr(imitation, name) for name in _PLAIN} | {
            "settings": self.file.settings,
            "tries": [asdict(done) for done in imitation.tries],
            "training": None if imitation.training is None else asdict(imitation.training),
        }
        tensors = {"pruned": self.pruned} | {name: getattr(imitation, name) for name in _TENSORS}
        write_state_file(self.file.path, _FORMAT_VERSION, self.plan, content, tensors)


def copied_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's state dict."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
