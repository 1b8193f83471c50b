"""The model card's YAML front matter, from which the Hugging Face Hub draws its page: tags, base model, metrics.

Names that come from outside (a folder of images, a device) are written with letters, digits, spaces and ``+ - . _``
alone, so that they can neither end the YAML nor show as anything but text where a renderer takes it for Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pruneport.documents import Json
from pruneport.export.card.provenance import fine_tuned
from pruneport.export.card.summary import device_name
from pruneport.export.card.words import clean
from pruneport.models.hubs.timm_networks import base_model
from pruneport.models.record import LIBRARIES

__all__ = ["FrontMatter", "Metric", "Result", "front_matter", "has_front_matter"]

# What is neither letter, digit nor harmless; also dots and underscores that Markdown takes for a link or for emphasis.
_STRANGE = re.compile(r"[^\w +.-]|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])")
_LONGEST = 100
_CLASSIFIES = "image-classification"  # a task of the hub; known where accuracy was counted


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure; ``type`` is the hub's word for its kind, ``name`` says it in full."""

    type: str
    value: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """Figures that were measured on the same inputs."""

    task: str
    data: str
    """The name of the inputs."""
    data_type: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, kw_only=True)
class FrontMatter:
    """What the hub reads of a card."""

    name: str
    """The network's, for its metrics."""
    tags: tuple[str, ...]
    base_model: str | None = None
    """The repository of the dense network's weights."""
    pipeline_tag: str | None = None
    results: tuple[Result, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """With the hub's keys; what is not known is left out."""
        content: dict[str, Any] = {"library_name": "pruneport", "tags": list(self.tags)}
        if self.pipeline_tag:
            content["pipeline_tag"] = self.pipeline_tag
        if self.base_model:
            content["base_model"] = self.base_model
        if self.results:
            results = [
                {
                    "task": {"type": result.task},
                    "dataset": {"name": result.data, "type": result.data_type},
                    "metrics": [asdict(metric) for metric in result.metrics],
                }
                for result in self.results
            ]
            content["model-index"] = [{"name": self.name, "results": results}]
        return content

    def to_yaml(self) -> str:
        """The block at the head of a card, with the lines of three dashes around it."""
        import yaml

        content = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=False, width=1000)
        return f"---\n{content}---\n"


def front_matter(plan: Json, verify: Json | None, bench: Json | None) -> FrontMatter:
    """Gather what the hub reads from what a bundle's documents say.

    Args:
        plan: What ``plan.json`` holds.
        verify: What ``verify.json`` holds, or None where it was not verified.
        bench: What ``bench.json`` holds, or None where latency was not measured.
    """
    source = plan["source"]
    library = str(source["spec"]).partition(":")[0]
    accuracy = tuple(_accuracy(plan, verify))
    tags = [
        "pruneport",
        "pruned",
        *([library] if library in LIBRARIES[:2] else []),
        *(["onnx"] if verify or bench else []),
    ]
    return FrontMatter(
        name=f"{_plain(source['spec'])} pruned",
        tags=tuple(tags),
        base_model=base_model(str(source["spec"]), source.get("weights")),
        pipeline_tag=_CLASSIFIES if accuracy else None,
        results=(*accuracy, *_latencies(bench)),
    )


def has_front_matter(card: str) -> bool:
    """Whether a card begins with such a block."""
    return card.startswith("---\n")


def _accuracy(plan: Json, verify: Json | None) -> Iterator[Result]:
    """Top-1 of the network that is shipped; of random weights there is none."""
    counted, training = (verify or {}).get("accuracy"), fine_tuned(plan)
    if not plan["source"]["trained"]:
        return
    if counted:
        for key, runtime in (("pruned_onnx", "ONNX Runtime"), ("pruned_torch", "torch")):
            if counted.get(key) is not None:
                name = f"Top-1, {counted['images']} images, {runtime}"
                yield _classified(counted["folder"], counted[key], name)
                return
    elif training:
        yield _classified(training["task"], training["top1"], f"Top-1, {training['test_images']} test images, torch")


def _classified(folder: object, top1: float, name: str) -> Result:
    metric = Metric(type="accuracy", value=float(top1), name=name)
    return Result(task=_CLASSIFIES, data=_plain(folder), data_type="imagefolder", metrics=(metric,))


def _latencies(bench: Json | None) -> Iterator[Result]:
    """Latency at each batch size, and how many times as fast the pruned network is."""
    if not bench:
        return
    device = _plain(device_name(bench) or bench["provider"])
    for entry in bench["batches"]:
        at = f"batch {int(entry['batch'])} on {device}"
        metrics = (
            Metric(type="latency", value=float(entry["pruned"]["p50_ms"]), name=f"p50 in ms, {at}"),
            Metric(type="speed-up", value=float(entry["speedup"]["ratio"]), name=f"times as fast as dense, {at}"),
        )
        yield Result(task="other", data="random inputs", data_type="random", metrics=metrics)


def _plain(text: object) -> str:
    """A name from outside as letters, digits and what cannot be taken for markup."""
    return re.sub("--+", "-", _STRANGE.sub("-", clean(text)))[:_LONGEST].strip(" -") or "unnamed"
