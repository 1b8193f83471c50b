"""The table of precisions: rows dense and pruned, columns fp32, fp16 and int8; for console, card and report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pruneport.documents import Json
from pruneport.export.accuracy import ROUNDING
from pruneport.export.bundle.bundle import DATA, DENSE_ONNX, MODEL_ONNX, PRECISIONS, onnx_name
from pruneport.export.card.words import clean, milliseconds, percent
from pruneport.export.options import OnnxPrecision
from pruneport.export.precisions.float_layers import FloatLayers
from pruneport.units import scaled

__all__ = ["PrecisionRow", "precision_columns", "precision_notes", "precision_rows", "precision_warnings"]

_NETWORKS = {"dense": DENSE_ONNX, "pruned": MODEL_ONNX}
_LEAST_AGREEMENT = 0.9
_INPUTS = {
    "images": "images",
    "held-out": "calibration inputs that were held out",
    "seeded": "random inputs, which say little of images",
}


class PrecisionRow(NamedTuple):
    """One measure of one network: a cell for each precision, empty where it is not known."""

    label: str
    cells: tuple[str, ...]


def precision_columns(verify: Json | None, bench: Json | None) -> tuple[OnnxPrecision, ...]:
    """The precisions of which something is known; none where there is fp32 alone."""
    known = {record["precision"] for record in _records(verify)} | {
        times["precision"] for entry in (bench or {}).get("batches", ()) for times in entry.get("precisions", ())
    }
    return tuple(name for name in PRECISIONS if name in known or name == "fp32") if known - {"fp32"} else ()


def precision_rows(verify: Json | None, bench: Json | None, *, trained: bool = True) -> list[PrecisionRow]:
    """The table's rows: dense and pruned for each measure that is known; of random weights no accuracy."""
    columns = precision_columns(verify, bench)
    if not columns:
        return []
    rows = [*_compared(columns, verify, trained), *_sizes(columns, verify), *_latencies(columns, bench)]
    return [row for row in rows if any(row.cells)]


def _compared(columns: tuple[OnnxPrecision, ...], verify: Json | None, trained: bool) -> Iterator[PrecisionRow]:
    """What came of running the files on the same inputs."""
    records = {(record["network"], record["precision"]): record for record in _records(verify)}
    measures: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Top-1 accuracy", "top1", percent),
        ("Agreement with fp32", "agreement", percent),
        ("Output error", "output_error", "{:.2g}".format),
    ]
    for title, key, shown in measures:
        for network in _NETWORKS:
            found = [records.get((network, column), {}).get(key) for column in columns]
            if key != "top1":  # of fp32 beside itself there is nothing to say
                found[0] = None
            elif not trained:
                continue
            yield PrecisionRow(f"{title}, {network}", tuple("" if one is None else shown(one) for one in found))


def _sizes(columns: tuple[OnnxPrecision, ...], verify: Json | None) -> Iterator[PrecisionRow]:
    """Sizes of the files, with what lies beside them."""
    files: Mapping[str, int] = (verify or {}).get("files") or {}
    for network, file in _NETWORKS.items():
        names = [onnx_name(file, column) for column in columns]
        sizes = [files[name] + files.get(name + DATA, 0) if name in files else None for name in names]
        yield PrecisionRow(f"File, {network}", tuple("" if size is None else scaled(size, "B") for size in sizes))


def _latencies(columns: tuple[OnnxPrecision, ...], bench: Json | None) -> Iterator[PrecisionRow]:
    """Medians at each batch size, and how many times as fast as dense fp32 that is."""
    for entry in (bench or {}).get("batches", ()):
        times = {"fp32": entry} | {others["precision"]: others for others in entry.get("precisions", ())}
        for network in _NETWORKS:
            medians = [times[column][network]["p50_ms"] if column in times else None for column in columns]
            cells = tuple("" if ms is None else _timed(entry["dense"]["p50_ms"], ms) for ms in medians)
            yield PrecisionRow(f"p50 at batch {entry['batch']}, {network}", cells)


def _timed(dense_ms: float, ms: float) -> str:
    return f"{milliseconds(ms)} ms ({dense_ms / ms:.2f}×)"


def precision_notes(verify: Json | None, bench: Json | None) -> list[str]:
    """What must be known to read the table, as sentences of plain text."""
    columns = precision_columns(verify, bench)
    if not columns:
        return []
    notes = []
    if records := _records(verify):
        inputs = f"{records[0]['count']} {_INPUTS[records[0]['inputs']]}"
        notes.append(
            f"Every precision is compared with the same network in fp32, on {inputs}. Agreement: on how many the first "
            "choice is the same. Output error: mean squared difference over the variance of the outputs."
        )
        providers = {record["provider"] for record in records if record["precision"] == "int8"}
        notes += [f"int8 is made for ONNX Runtime's provider {name}, and for no other." for name in providers if name]
        notes += [
            f"int8 of the {record['network']} network has "
            f"{FloatLayers(layers=tuple(record['float_layers']), reason=record.get('float_reason', ''))}"
            for record in records
            if record.get("float_layers")
        ]
    if bench and any(entry.get("precisions") for entry in bench["batches"]):
        notes.append("In brackets: how many times as fast as the dense network in fp32, timed in the same rounds.")
    if "fp16" in columns and (bench or {}).get("provider", "cpu") == "cpu":
        notes.append(
            "fp16 is for GPUs: ONNX Runtime's CPU provider computes most operators in float32 and converts before and "
            "after, which as a rule makes it slower than fp32."
        )
    return [clean(note) for note in notes]


def precision_warnings(verify: Json | None) -> list[str]:
    """That a precision decides otherwise than fp32 too often, where it was seen on more than random inputs.

    And that int8 loses more against fp32 on images than the user would lose.
    """
    return [*_disagreeing(verify), *_losing(verify)]


def _losing(verify: Json | None) -> Iterator[str]:
    """Where int8 is right on fewer images than fp32 of the same network, by more than ``max_drop`` points."""
    limit = (verify or {}).get("max_drop")
    records = {(record["network"], record["precision"]): record.get("top1") for record in _records(verify)}
    for (network, precision), share in records.items():
        exact = records.get((network, "fp32"))
        if precision != "int8" or limit is None or share is None or exact is None:
            continue
        if (lost := 100 * (exact - share)) > limit + ROUNDING:
            yield (
                f"In int8 the {network} network loses {lost:.1f} points of top-1 against fp32, and {limit:g} were "
                "allowed; on the calibration inputs, by which layers are left in float, the limit held. What helps: "
                "more calibration images, with class folders; or a smaller `max_drop`."
            )


def _disagreeing(verify: Json | None) -> list[str]:
    return [
        f"In {record['precision']} the {record['network']} network's first choice is that of fp32 on only "
        f"{percent(record['agreement'])} of {record['count']} {_INPUTS[record['inputs']]}. What helps: more "
        "calibration images (`calibration=FOLDER`), of the kind that the network will see; or another precision."
        for record in _records(verify)
        if record["inputs"] != "seeded" and record["agreement"] is not None and record["agreement"] < _LEAST_AGREEMENT
    ]


def _records(verify: Json | None) -> list[Json]:
    return list((verify or {}).get("precisions") or ())
