"""Networks as strangers write them: what is pruned is right, by an oracle of its own, and what must shrink shrinks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.assessment import Assessment, assess
from pruneport.compress.prune import Pruned, prune
from pruneport.errors import InputError
from pruneport.export.bundle.bundle import open_bundle
from pruneport.export.bundle.weights import rebuild, same_bits, write_network
from pruneport.export.bundle.writing import new_bundle
from pruneport.export.onnx.onnx_file import write_onnx

from . import (
    NETWORKS,  # noqa: F401  (they register themselves)
    checks,
)
from .checks import inputs_of, options_of, source_of
from .failing import FAILING, NOT_EXPORTED
from .registry import STRANGERS, Stranger
from .returned import leaves

_PARITY = (1e-5, 1e-4)  # absolute, and of the largest output


def parameters(failing: Mapping[str, str], only: str = "", quick: int = 1) -> list[Any]:
    """All strangers as parameters of a test, those that fail today marked so, and all but each ``quick``-th as slow."""
    return [
        pytest.param(
            stranger,
            id=name.replace(" ", "-"),
            marks=[
                *([pytest.mark.xfail(strict=True, reason=failing[name])] if name in failing else ()),
                *([pytest.mark.slow] if position % quick else ()),
            ],
        )
        for position, (name, stranger) in enumerate(STRANGERS.items())
        if not only or getattr(stranger, only)
    ]


def pruned_of(stranger: Stranger, dense: nn.Module) -> tuple[Assessment, Pruned]:
    """Prune 60 % of what may go."""
    options = options_of(stranger, ratio=0.6)
    assessment = assess(dense, source_of(stranger), options)
    return assessment, prune(dense, source_of(stranger), options, assessment=assessment)


@pytest.mark.parametrize("stranger", parameters(FAILING, quick=8))
def test_stranger(stranger: Stranger) -> None:
    dense = stranger.build()
    before = copy.deepcopy(dense.state_dict())
    if stranger.must.refuses:
        for target in ({"ratio": 0.6}, {"flops": 0.6}):
            with pytest.raises(InputError, match=f"(?i){stranger.must.refuses}"):
                prune(dense, source_of(stranger), options_of(stranger, **target))
        return
    try:
        assessment, pruned = pruned_of(stranger, dense)
    except InputError as error:
        if not checks.is_right(stranger, error):
            pytest.fail(f"{type(error).__name__}: {error}", pytrace=False)
        return
    faults = [
        *checks.wrong_widths(stranger, dense, pruned),
        *checks.wrong_outputs(stranger, dense, pruned),
        *checks.wrong_costs(stranger, assessment, pruned),
        *checks.wrong_reasons(pruned.plan),
        *checks.wrong_rebuild(stranger, pruned),
        *checks.wrong_at_other_targets(stranger, dense, assessment),
        *checks.changes(before, dense.state_dict()),
    ]
    if faults:
        groups = [f"  {group.name} ({group.width}): {group.reason}" for group in pruned.plan.groups if not group.kept]
        pytest.fail("\n".join([*faults, "left dense:", *groups]), pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("stranger", parameters(NOT_EXPORTED, only="onnx"))
def test_stranger_is_exported(stranger: Stranger, tmp_path: Path) -> None:
    """Through a bundle and into ONNX, with the outputs of torch."""
    dense = stranger.build()
    _, pruned = pruned_of(stranger, dense)
    with new_bundle(tmp_path / "bundle", overwrite=False, command="") as staging:
        write_network(staging, pruned.network, pruned.plan)
    again = rebuild(open_bundle(tmp_path / "bundle"), stranger.build)
    assert same_bits(again, pruned.network)
    assert checks.same_outputs(again, pruned.network, inputs_of(stranger))
    write_onnx(again, stranger.shape, tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        inputs = torch.randn(batch, *stranger.shape, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = [leaf.numpy() for _, leaf in leaves(pruned.network(inputs)) if isinstance(leaf, Tensor)]
        actual = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        for ours, theirs in zip(actual, expected, strict=True):
            atol = _PARITY[0] + _PARITY[1] * float(np.abs(theirs).max(initial=0))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
