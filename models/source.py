"""Model sources: one string names a network, whoever wrote it.

torchvision:resnet50 · timm:convnext_tiny · timm:hf-hub:owner/name · timm:local-dir:folder · pruneport:digits_resnet
package.module:factory · path/to/file.py:factory
"""

from __future__ import annotations

import ast
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pruneport.errors import CheckpointError, ModelError, SourceError
from pruneport.files import file_sha256
from pruneport.models.checkpoints.checkpoint import load_weights, read_checkpoint
from pruneport.models.factories import call_factory, load_factory
from pruneport.models.hubs.timm_networks import spelled_out
from pruneport.models.inputs import check_seed
from pruneport.models.kinds import check_finite, check_kind
from pruneport.models.libraries import build_from_library, library_input_shape
from pruneport.models.live.identity import state_sha256
from pruneport.models.names import not_a_source
from pruneport.models.options import SourceOptions
from pruneport.models.output_layer import replace_output_layers
from pruneport.models.preparation.class_names import named
from pruneport.models.preparation.known import infer_preprocessing
from pruneport.models.record import Factory, Scalar, Source

__all__ = ["build", "build_dense", "check_shape", "open_source", "renew_output_layers"]


def open_source(options: SourceOptions) -> tuple[nn.Module, Source]:
    """Build the dense network with its weights, ready for inference.

    Returns:
        The network in eval mode on the CPU, and the record from which it can be built again.

    Raises:
        InputError: The seed is none.
        SourceError: The source, an argument or the weight name is wrong, or the factory fails.
        CheckpointError: The checkpoint cannot be read safely or does not fit.
        ModelError: The network is of a kind that cannot be pruned, weights are not finite, or the input shape is not
            known.
        HubError: The source or its weights are on the hub and cannot be read there.
    """
    options = spelled_out(options)
    if options.checkpoint is not None and options.weights is not None:
        raise SourceError("`checkpoint` and `weights` were both given; weights come from one of the two.")
    check_seed(options.seed)
    state = read_checkpoint(options.checkpoint) if options.checkpoint else None
    draft = Source(
        spec=options.source,
        model_args=_parse_model_args(options.model_arg),
        input_shape=options.input_shape or (0, 0, 0),
        seed=options.seed,
        weights=options.weights,
        checkpoint=os.path.realpath(options.checkpoint) if options.checkpoint else None,
    )
    network = build(draft)
    if state is not None and options.checkpoint is not None:
        load_weights(network, state, options.checkpoint)
        draft = replace(draft, checkpoint_sha256=file_sha256(options.checkpoint))
    check_kind(network)
    shape = check_shape(options.input_shape or library_input_shape(draft, network), draft.spec)
    check_finite(network)
    source = replace(draft, input_shape=shape)
    source = replace(source, preprocessing=infer_preprocessing(source, network))
    return network, named(source, network, options.class_names)


def build_dense(source: Source, factory: Factory | None = None) -> nn.Module:
    """Build the recorded dense network again, weights included.

    Raises:
        SourceError: The factory cannot be found or fails, or it was a network in memory and comes with other weights.
        CheckpointError: The checkpoint is not where it was, or its content changed.
    """
    network = build(replace(source, output_layers={}), factory)
    if source.checkpoint is not None:
        path = Path(source.checkpoint)
        state = read_checkpoint(path)
        digest = file_sha256(path)
        if digest != source.checkpoint_sha256:
            raise CheckpointError(
                f"checkpoint {path} is not the file that was compressed: its sha256 is {digest}, "
                f"the plan records {source.checkpoint_sha256}. Restore the original file and try again."
            )
        load_weights(network, state, path)
    if source.live is not None and state_sha256(network.state_dict()) != source.live.state_sha256:
        raise SourceError(
            f"the factory builds a {source.spec} with other weights than the network that was compressed; give one "
            "that returns it with the same weights, or the network itself."
        )
    renew_output_layers(network, source)
    return network


def build(source: Source, factory: Factory | None = None, *, initialise: bool = True) -> nn.Module:
    """Build the architecture; a checkpoint is not read here, a weight name is.

    Args:
        source: What to build.
        factory: Used in place of the recorded factory.
        initialise: False where every weight is about to be replaced: no weight name is resolved.

    Raises:
        SourceError: The factory cannot be found, raises, or returns no Module.
    """
    weights = source.weights if initialise else None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="torchvision|timm")
        torch.manual_seed(source.seed)
        if factory is not None:
            network = call_factory(factory, source)
        elif source.library is not None:
            network = build_from_library(source, weights)
        else:
            if weights is not None:
                raise SourceError(
                    f"`weights` {weights} cannot be used with {source.spec}: weight names belong to a library. "
                    "Give the file with `checkpoint`."
                )
            if ":" not in source.spec:
                raise SourceError(not_a_source(source.spec))
            network = call_factory(load_factory(source.spec), source)
    renew_output_layers(network, source)
    return network.eval()


def renew_output_layers(network: nn.Module, source: Source) -> None:
    """Replace the output layers that the source records, with initial weights that follow from its seed.

    Raises:
        SourceError: No such layer, or one of another kind.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        replace_output_layers(network, source.output_layers)


def _parse_model_args(items: Iterable[str]) -> dict[str, Scalar]:
    """Values of key=value as Python writes them; other text is a string."""
    parsed: dict[str, Scalar] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise SourceError(f"`model_arg` {item!r} is not understood; expected key=value, such as num_classes=10.")
        if key in parsed:
            raise SourceError(f"`model_arg` {key} is given twice; leave one of them out.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
        if not isinstance(value, bool | int | float | str | None):
            raise SourceError(f"`model_arg` {item!r}: the value must be a number, a string, true, false or none.")
        if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
            raise SourceError(f"`model_arg` {item!r}: expected a finite number of 64 bits, which a plan can hold.")
        parsed[key] = value
    return parsed


def check_shape(shape: Sequence[int] | None, name: str) -> tuple[int, int, int]:
    """C, H, W of a network's input, which ``name`` is called in messages.

    Raises:
        ModelError: It is not known, or not three positive numbers.
    """
    if shape is None:
        raise ModelError(f"the input shape of {name} is not known; give `input_shape` C H W, such as 3 224 224.")
    if len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ModelError(f"`input_shape` is {shape}; expected three positive numbers C H W, such as 3 224 224.")
    return (shape[0], shape[1], shape[2])
