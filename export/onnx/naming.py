"""Names in an ONNX graph: inputs and outputs as asked for, weights and nodes as the network's modules are called."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["name_nodes", "name_values"]

_WRAPPER = "network"
_SCOPES = "pkg.torch.onnx.name_scopes"
_NOT_A_MODULE = "_empty_nn_module_stack"  # what torch notes of the sizes of the input
_CALL = re.compile(r"@\d+$")  # torch.export numbers the calls of a module that is called several times


def name_values(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs their names, and weights the names that the network has for them.

    Each output is made by a node of its own.
    """
    from onnxscript import ir  # slow to import

    for place, value in enumerate(list(graph.outputs)):
        if value.producer() is None or any(value is earlier for earlier in graph.outputs[:place]):
            node = ir.node("Identity", inputs=[value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
    weights = list(graph.initializers.values())
    leaving = {id(value) for value in graph.outputs}
    inner = [value for node in graph.all_nodes() for value in node.outputs if id(value) not in leaving]
    taken = {*inputs, *outputs}
    names = []
    for value, name in [
        *((weight, str(weight.name).removeprefix(f"{_WRAPPER}.")) for weight in weights),
        *((value, str(value.name)) for value in inner),
    ]:
        while name in taken:
            name += "_"
        taken.add(name)
        names.append((value, name))
    for number, value in enumerate(weights):  # first out of each other's way
        value.name = f"pruneport.renamed.{number}"
    ends = [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]
    for value, name in [*names, *ends]:
        value.name = name


def name_nodes(graph: Any) -> None:
    """Name every node after its module and its operator: ``layer1.0.conv1/Conv``, then ``layer1.0.conv1/Conv_1``.

    Viewers such as Netron, and profilers, show these names. Call it while weights still have torch's names.
    """
    seen: Counter[str] = Counter()
    for node in graph.all_nodes():
        module = _module_of(node)
        name = f"{module}/{node.op_type}" if module else str(node.op_type)
        number = seen[name]
        seen[name] += 1
        node.name = f"{name}_{number}" if number else name


def _module_of(node: Any) -> str:
    """The path of the module that a node computes; empty where none does, or it is not known.

    The weight comes first: a convolution that a normalisation was folded into is noted as the normalisation.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is not None and weight.is_initializer() and str(weight.name).endswith(".weight"):
        path = str(weight.name).removesuffix(".weight")
    else:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        path = next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith(_NOT_A_MODULE)), "")
    return "" if path == _WRAPPER else _CALL.sub("", path.removeprefix(f"{_WRAPPER}."))
