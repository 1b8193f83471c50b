"""Text and numbers as card, report and console write them."""

from __future__ import annotations

import unicodedata

from pruneport.documents import Json

__all__ = ["clean", "matched", "milliseconds", "p_value", "percent", "shorten", "speedup_claim", "surely_slower"]


def clean(text: object) -> str:
    """Return one printable line: whitespace runs become a space, control and direction characters U+FFFD."""
    line = " ".join(str(text).split())
    return "".join("\ufffd" if unicodedata.category(char).startswith("C") else char for char in line)


def shorten(name: object, chars: int) -> str:
    """Return a long name cut in its middle: its ends tell where in the network it is."""
    text, half = clean(name), chars // 2
    return text if len(text) <= chars else f"{text[: half - 1]}…{text[-half:]}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share of one as per cent, ``0.5 -> '50.0 %'``."""
    return f"{100 * share:.{digits}f} %"


def milliseconds(value: float) -> str:
    """Return a latency in ms with two decimals, three below 1 ms."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def speedup_claim(speedup: Json, faster: str, slower: str) -> str:
    """Return a speed-up before the word for it; a claim only where the whole interval lies on one side of 1."""
    ratio = float(speedup["ratio"])
    if speedup["low"] > 1:
        return f"{ratio:.2f}{faster}"
    if surely_slower(speedup):
        return f"{1 / ratio:.2f}{slower}"
    return "no clear speed-up"


def surely_slower(speedup: Json) -> bool:
    """Whether the whole interval of a speed-up says that the pruned network is slower."""
    return bool(speedup["high"] < 1)


def matched(detections: Json) -> str:
    """Return what became of the detections of a comparison, in a clause."""
    both, lost = detections["torch"] + detections["onnx"], detections["unmatched"]
    found = f"{detections['torch']} detections in torch, {detections['onnx']} in ONNX Runtime"
    rule = f"label, IoU of {detections['least_iou']:g} and score within {detections['score_tolerance']:.1e}"
    if not both:
        return "no detections in either"
    if not lost:
        return f"{found}; each has its match in the other ({rule})"
    doubt = f", {detections['undecided']} of them where rounding decides" if detections["undecided"] else ""
    return f"{found}; {lost} have no match in the other ({rule}){doubt}"


def p_value(chance: float) -> str:
    """Return a probability as text, ``0.0004 -> 'p < 0.001'``."""
    return "p < 0.001" if chance < 0.001 else f"p = {chance:.3f}"
