"""What a verification found: the checks, comparisons and accuracy that verify.json holds, and what failed, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pruneport.arrays import AnyArray
from pruneport.errors import ParityError
from pruneport.export.accuracy import Accuracy, Agreement
from pruneport.export.parity import Parity
from pruneport.export.precisions.comparison import Precision

__all__ = ["Check", "DenseSeen", "Verification", "require_parity"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One yes-or-no check and what it saw."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Everything that was checked; ``verify.json`` holds it.

    Attributes:
        checks: Yes-or-no checks.
        parity: Comparisons of torch and ONNX Runtime.
        accuracy: Top-1, where the images are labelled.
        files: Size of each ONNX file in bytes.
        agreement: How often both networks decide alike.
        max_drop: The most points of top-1 that the user would lose, where they said so.
    """

    checks: tuple[Check, ...]
    parity: tuple[Parity, ...]
    accuracy: Accuracy | None
    files: Mapping[str, int]
    agreement: Agreement | None = None
    max_drop: float | None = None
    precisions: tuple[Precision, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check and every comparison passed."""
        return all(check.ok for check in self.checks) and all(entry.ok for entry in self.parity)

    def to_dict(self) -> dict[str, Any]:
        """The content of verify.json."""
        return {"format_version": 1, "ok": self.ok, **asdict(self)}


@dataclass
class DenseSeen:
    """What a verification found of a dense network, for others that share it: it is compared once.

    Attributes:
        network_sha256: Of the ONNX file without its metadata; of another file nothing is taken over.
        parity: Its comparisons.
        choices: What it chose on the images, by number of the batch.
    """

    network_sha256: str = ""
    parity: list[Parity] = field(default_factory=list)
    choices: dict[int, AnyArray] = field(default_factory=dict)


def require_parity(verification: Verification) -> None:
    """Raise where something did not pass.

    Raises:
        ParityError: Names every check that failed, or every comparison out of tolerance.
    """
    if wrong := [check for check in verification.checks if not check.ok]:
        lines = [f"  {check.name}: {check.detail}" for check in wrong]
        raise ParityError("Checks failed:\n" + "\n".join(lines))
    failed = [entry for entry in verification.parity if not entry.ok]
    if failed:
        lines = [f"  {_compared(entry)}: {entry.fault}" for entry in failed]
        raise ParityError("ONNX Runtime and torch disagree:\n" + "\n".join(lines))


def _compared(entry: Parity) -> str:
    """What was compared, and by which tolerance; of detections alone the fault says that."""
    compared = f"{entry.network} {entry.precision} on {entry.inputs} inputs{_sized(entry)}, batch {entry.batch}"
    if entry.detections is not None and entry.max_abs_error is None:
        return compared
    return (
        f"{compared}: max error {_small(entry.max_abs_error)} ({_small(entry.max_rel_error)} of the largest output), "
        f"allowed {entry.atol:g} + {entry.rtol:g} of the largest output"
    )


def _sized(entry: Parity) -> str:
    return "" if entry.size is None else f" of {entry.size[0]} x {entry.size[1]}"


def _small(error: float | None) -> str:
    return "not to be had" if error is None else f"{error:.2e}"
