"""finetune, by keyword arguments."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, Unpack

from pruneport.commands.api.bundles import COMMAND
from pruneport.commands.api.configured import macs_for_flops, options_from
from pruneport.commands.api.keywords import FinetuneKeywords, PathName
from pruneport.commands.configs import FinetuneConfig
from pruneport.commands.finetuning import finetune as finetune_config
from pruneport.commands.results import FinetuneResult
from pruneport.errors import SourceError
from pruneport.progress import Progress, silent

__all__ = ["finetune"]


def finetune(
    source: PathName,
    *,
    task: PathName,
    out: PathName,
    macs: float | None = None,
    progress: Progress = silent,
    **options: Unpack[FinetuneKeywords],
) -> FinetuneResult:
    """Train a bundle, or a dense network, on labelled images in folders; the result is a bundle.

    A run that was stopped goes on where it was last saved, when it is called again with the same arguments.

    Args:
        source: A bundle's folder, ``hf-hub:owner/name`` of one, or any source that ``ship`` takes.
        task: A folder with train/CLASS/* and test/CLASS/* (or val).
        out: The new bundle's folder; it must not exist yet, or be empty.
        macs: With ``schedule="loss"``: keep this share of the dense network's compute.
        progress: Told what is being done.
        **options: Fields of ``FinetuneConfig``, such as ``epochs``, ``learning_rate``, ``distill``, ``keep_head``.

    Returns:
        The bundle, with its accuracy on the way, and the ``network``.

    Raises:
        InputError: Something that was given cannot be used; nothing is written.
        TrainingError: The budget is below one step, or the loss is not finite.

    Example:
        >>> result = pruneport.finetune("half", task="birds", out="birds-half", epochs=10)  # doctest: +SKIP
        >>> result.network, result.plan.training.top1  # doctest: +SKIP
    """
    if not isinstance(source, str | PathLike):
        raise SourceError(
            f"the source is a {type(source).__name__}; expected a bundle's folder or a string such as "
            "'torchvision:resnet50'. A network in memory is trained by a loop of your own; pruneport.save(network, "
            "folder, like=bundle) then writes it."
        )
    with macs_for_flops():
        named: dict[str, Any] = {"source": fspath(source), "task": task, "out": out, "flops": macs}
        given: dict[str, Any] = {**options, **named}
        return finetune_config(options_from(FinetuneConfig, "finetune", given), progress, COMMAND)
