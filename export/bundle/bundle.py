"""The bundle: a folder that holds a compressed network and everything needed to trust it.

It is read here, with its hashes checked; ``writing`` makes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import msgspec
import safetensors

from pruneport.compress.surgery.plan import Plan, parse_plan
from pruneport.documents import Count, fit_document, load_document, read_start
from pruneport.errors import BundleError
from pruneport.export.bundle.unfinished import (
    is_half_moved,
    settle,
)
from pruneport.export.options import OnnxPrecision
from pruneport.files import file_sha256

__all__ = [
    "BENCH",
    "CARD",
    "DATA",
    "DENSE_ONNX",
    "FORMAT_VERSION",
    "MANIFEST",
    "MODEL_ONNX",
    "PLAN",
    "PRECISIONS",
    "PREPROCESSOR",
    "REPORT",
    "TRAINING",
    "VERIFY",
    "WEIGHTS",
    "Bundle",
    "check_hashes",
    "entry_of",
    "is_bundle",
    "onnx_name",
    "open_bundle",
    "plan_hash",
    "read_bundle",
    "read_manifest",
]

PLAN, WEIGHTS, MANIFEST = "plan.json", "weights.safetensors", "manifest.json"
PREPROCESSOR = "preprocessor.json"
MODEL_ONNX, DENSE_ONNX = "model.onnx", "dense.onnx"
DATA = ".data"
"""Stands behind an ONNX file's name in that of the file that holds its weights, where they are not in it."""
PRECISIONS: tuple[OnnxPrecision, ...] = get_args(OnnxPrecision)
VERIFY, BENCH, REPORT, TRAINING = "verify.json", "bench.json", "report.html", "training.json"
CARD = "README.md"
FORMAT_VERSION = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Manifest(msgspec.Struct):
    """What is read of manifest.json; each file's entry is looked at once its name is known to be one."""

    files: Annotated[dict[str, Any], msgspec.Meta(max_length=1000)]
    commands: tuple[str, ...] = ()


class _FileEntry(msgspec.Struct, forbid_unknown_fields=True):
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: its folder, its plan, and what the manifest says of its files."""

    folder: Path
    plan: Plan
    files: Mapping[str, Mapping[str, Any]]
    commands: tuple[str, ...] = ()

    @property
    def precisions(self) -> tuple[OnnxPrecision, ...]:
        """Those in which it has the pruned network as ONNX."""
        return tuple(precision for precision in PRECISIONS if onnx_name(MODEL_ONNX, precision) in self.files)

    def path(self, name: str) -> Path:
        """Path of one of its files, which is what the manifest says; so are the weights beside an ONNX file.

        Raises:
            BundleError: The bundle has no such file yet, or it was changed.
        """
        if name not in self.files:
            raise BundleError(f"{self.folder} has no {name}; make it with: pruneport export {self.folder}")
        data = name + DATA
        beside = data in self.files or os.path.lexists(self.folder / data)
        _check(self.folder, self.files, (name, data) if beside else (name,))
        return self.folder / name


def onnx_name(file: str, precision: OnnxPrecision) -> str:
    """The name of an ONNX file in a precision: ``model.onnx`` is fp32, ``model.int8.onnx`` int8.

    Args:
        file: ``MODEL_ONNX`` or ``DENSE_ONNX``.
        precision: Which.
    """
    return file if precision == "fp32" else f"{file.removesuffix('.onnx')}.{precision}.onnx"


def is_bundle(folder: Path) -> bool:
    """Whether there is a bundle, sound or not."""
    settle(folder)
    return (folder / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """Read manifest and plan, and check both and the weights against the manifest's hashes.

    What a killed process left of a write is taken back first, where the folder can be written.

    Raises:
        BundleError: No bundle there, a changed or missing file, a path outside the folder, a newer format.
    """
    settle(folder)
    return read_bundle(folder)


def read_bundle(folder: Path) -> Bundle:
    """Read manifest and plan, once plan and weights are known to be those of the manifest."""
    if not folder.is_dir():
        raise BundleError(f"no bundle at {folder}; expected a folder written by pruneport ship or compress.")
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; expected a folder written by pruneport ship or compress."
        )
    files, commands = read_manifest(folder)
    _check(folder, files, (PLAN, WEIGHTS))
    plan = parse_plan(read_start(folder / PLAN), _shapes(folder / WEIGHTS))
    return Bundle(folder=folder, plan=plan, files=files, commands=commands)


def check_hashes(bundle: Bundle) -> str:
    """Check every file against the manifest; return a sentence that says so.

    Raises:
        BundleError: Names every missing and changed file.
    """
    _check(bundle.folder, bundle.files, tuple(bundle.files))
    return f"{len(bundle.files)} files match the manifest"


def plan_hash(folder: Path) -> str:
    """The sha256 of plan.json, which also stands inside the ONNX files."""
    return str(entry_of(folder / PLAN)["sha256"])


def read_manifest(folder: Path) -> tuple[dict[str, Mapping[str, Any]], tuple[str, ...]]:
    """What the manifest says of every file, and the command lines.

    Raises:
        BundleError: It is no manifest, or names what lies outside the folder.
    """
    name, advice = f"{folder / MANIFEST} is not a manifest", "Fetch the bundle again."
    manifest = fit_document(
        load_document(read_start(folder / MANIFEST), (FORMAT_VERSION,), name, advice), _Manifest, name, advice
    )
    for file in manifest.files:
        if not _FILE_NAME.fullmatch(file) or not _inside(folder, file):
            raise BundleError(f"{folder / MANIFEST} names {file!r}, which lies outside the bundle; do not use it.")
    for file, entry in manifest.files.items():
        fit_document(entry, _FileEntry, f"{name}: of {file} it should say hash and size", advice)
    return manifest.files, manifest.commands


def _inside(folder: Path, name: str) -> bool:
    """Whether a file of the folder lies there, and not elsewhere through a link; links in a ring do not."""
    return Path(os.path.realpath(folder / name)).parent == Path(os.path.realpath(folder))


def _shapes(weights: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a file, of which no more than the header is read."""
    try:
        with safetensors.safe_open(weights, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise BundleError(f"{weights} is not a file of weights: {error}. Fetch the bundle again.") from error


def _check(folder: Path, files: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> None:
    """Raise where one of the named files is not the one in the manifest."""
    faults = []
    for name in names:
        if name not in files:
            faults.append(f"{name} is not in the manifest")
        elif not (folder / name).is_file():
            faults.append(f"{name} is missing")
        elif entry_of(folder / name) != files[name]:
            faults.append(f"{name} was changed")
    if faults:
        help = "Fetch the bundle again, or make it anew."
        if is_half_moved(folder):
            help = "A process was killed while it changed the bundle; make the folder writable and open it once more."
        raise BundleError(f"{folder} does not match its manifest: {'; '.join(faults)}. {help}")


def entry_of(path: Path) -> dict[str, Any]:
    """What the manifest says of a file: its hash and size."""
    return {"sha256": file_sha256(path), "bytes": path.stat().st_size}
