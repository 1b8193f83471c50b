"""Networks of installed libraries: torchvision, timm, and the one we carry ourselves."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from pruneport.errors import SourceError
from pruneport.models.checkpoints.checkpoint import load_weights, read_checkpoint
from pruneport.models.digits import network as digits
from pruneport.models.factories import call_factory, did_you_mean
from pruneport.models.hubs.client import HUB
from pruneport.models.hubs.timm_networks import check_architecture
from pruneport.models.record import Factory, Source

__all__ = ["build_from_library", "library_input_shape"]

_EXAMPLES = {"torchvision": "resnet50", "timm": "resnet50", "pruneport": "digits_resnet"}

# Arguments of library factories that fetch or unpickle files. They have no place in a recorded source.
_FETCHING_ARGS = {
    "weights",
    "weights_backbone",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
}


def build_from_library(source: Source, weights: str | None) -> nn.Module:
    """Build a network of ``source.library``, with the named weights or freshly initialised.

    Raises:
        SourceError: The library has no such model or weights, or they cannot be fetched.
    """
    return {"torchvision": _build_torchvision, "timm": _build_timm, "pruneport": _build_embedded}[str(source.library)](
        source, weights
    )


def library_input_shape(source: Source, network: nn.Module) -> tuple[int, int, int] | None:
    """C, H, W that the library documents for the network; None for a factory of the user's own."""
    if source.library == "timm":
        shape = getattr(network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        return (int(shape[0]), int(shape[1]), int(shape[2]))
    if source.library == "pruneport":
        return (1, 8, 8)
    if source.library == "torchvision":
        if source.weights is None:
            return (3, 224, 224)
        from torchvision import models

        transforms = models.get_model_weights(source.spec.partition(":")[2])[source.weights].transforms
        side = getattr(transforms, "keywords", {})  # a detector's resize inside the network
        return (3, int(side.get("crop_size", 224)), int(side.get("crop_size", 224)))
    return None


def _build_torchvision(source: Source, weights: str | None) -> nn.Module:
    """A network of torchvision."""
    from torchvision import models

    name = _known(source, models.list_models())
    _refuse_fetching_args(source)
    if weights is not None:
        offered = [entry.name for entry in models.get_model_weights(name)]
        if weights != "DEFAULT" and weights not in offered:
            raise SourceError(
                f"torchvision:{name} has no weights {weights!r}; expected DEFAULT or one of {', '.join(offered)}."
            )
    fixed: dict[str, Any] = {"weights": weights}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        fixed["weights_backbone"] = None  # else torchvision fetches them
    return _fetch(lambda **args: models.get_model(name, **fixed, **args), source, weights)


def _build_timm(source: Source, weights: str | None) -> nn.Module:
    """A network of timm."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise SourceError("timm is not installed; install it with: pip install timm") from error
    name = _known(source, timm.list_models(), tag_separator=".")
    _refuse_fetching_args(source)
    if weights is not None and weights.startswith(HUB):
        name = check_architecture(weights, name)
    elif weights is not None and weights != "DEFAULT":
        tags = [entry.partition(".")[2] for entry in timm.list_pretrained(name)]
        if weights not in tags:
            raise SourceError(f"timm:{name} has no weights {weights!r}; expected DEFAULT or one of {', '.join(tags)}.")
        name = f"{name}.{weights}"
    return _fetch(lambda **args: timm.create_model(name, pretrained=weights is not None, **args), source, weights)


def _build_embedded(source: Source, weights: str | None) -> nn.Module:
    """A network of ours."""
    name = _known(source, ["digits_resnet"])
    if weights not in (None, "DEFAULT"):
        raise SourceError(f"pruneport:{name} has no weights {weights!r}; expected DEFAULT.")
    network = call_factory(digits.digits_resnet, source)
    if weights is not None:
        load_weights(network, read_checkpoint(digits.WEIGHTS), digits.WEIGHTS)
    return network


def _fetch(factory: Factory, source: Source, weights: str | None) -> nn.Module:
    """Call a factory that may download weights."""
    try:
        return call_factory(factory, source)
    except SourceError as error:
        if weights is not None and isinstance(error.__cause__, OSError):
            raise SourceError(
                f"the weights {weights} of {source.spec} could not be downloaded ({error.__cause__}). "
                "Download them where there is a network and give the file with `checkpoint`."
            ) from error
        raise


def _known(source: Source, offered: list[str], tag_separator: str | None = None) -> str:
    """The network's name, if the library has it."""
    name = source.spec.partition(":")[2]
    base = name.partition(tag_separator)[0] if tag_separator else name
    if base not in offered:
        library = source.library or ""
        hint = did_you_mean(base, offered) or f" Expected one that it has, such as {library}:{_EXAMPLES[library]}."
        raise SourceError(f"{source.library} has no model {name!r}.{hint}")
    return name


def _refuse_fetching_args(source: Source) -> None:
    """Raise where arguments would fetch weights that the plan knows nothing of."""
    if refused := sorted(_FETCHING_ARGS & set(source.model_args)):
        raise SourceError(
            f"`model_arg` {', '.join(refused)} would fetch files behind the plan's back; "
            "give weights with `weights` or `checkpoint`."
        )
