"""The output layer, replaced by a fresh one for other classes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pruneport.errors import SourceError
from pruneport.models.parts import set_part

__all__ = ["replace_output_layers"]


def replace_output_layers(network: nn.Module, outputs: Mapping[str, int]) -> None:
    """Give layers that make the outputs a new number of them, with torch's initial weights.

    Args:
        network: Changed in place.
        outputs: How many, by the name of a linear layer or an ungrouped convolution.

    Raises:
        SourceError: No such layer, or one of another kind.
    """
    for name, count in outputs.items():
        try:
            old = network.get_submodule(name)
        except AttributeError as error:
            raise SourceError(f"the network has no head {name}; load it with the factory it was made with.") from error
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, count, bias=old.bias is not None)
        elif isinstance(old, nn.Conv2d) and old.groups == 1:
            new = nn.Conv2d(
                old.in_channels,
                count,
                old.kernel_size,  # type: ignore[arg-type]
                old.stride,  # type: ignore[arg-type]
                old.padding,  # type: ignore[arg-type]
                old.dilation,  # type: ignore[arg-type]
                bias=old.bias is not None,
            )
        else:
            raise SourceError(
                f"the output layer {name} is a {type(old).__name__}; expected a linear layer or an ungrouped "
                "convolution. Give a factory that builds the network for your classes."
            )
        set_part(network, name, new.train(old.training))
