"""Networks that normalise by what inputs give: against moments taken with hooks of our own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruneport.compress.activations.calibration import Calibration
from pruneport.compress.activations.statistics import as_seen, estimate_statistics, seeing
from pruneport.compress.assessment import assess
from pruneport.compress.options import PruneOptions
from pruneport.compress.records import Calibrated
from pruneport.compress.recovery.imitate import Effort
from pruneport.compress.recovery.recover import recover
from pruneport.models.record import Source
from pruneport.progress import silent
from recovery_cases import SHAPE, batches_of, images, kept_of, network, output_error, pruned_from
from small_networks import same_state


def norms_of(network: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def moments(network: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what every BatchNorm reads."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, norm in norms_of(network).items():

        def look(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            values = given[0].double()
            found[name] = values.mean((0, 2, 3)), values.var((0, 2, 3))

        norm.register_forward_pre_hook(look)
    with torch.inference_mode():
        network(inputs)
    return found


def other(count: int) -> Tensor:
    """Inputs of another brightness and contrast than ``images``."""
    return 1.6 * torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(6)) + 0.8


def test_every_norm_normalises_by_what_it_reads() -> None:
    dense = network()
    before = copy.deepcopy(dense.state_dict())
    found = seeing(dense, batches_of(other(48), 48), silent)
    for name, (mean, variance) in moments(copy.deepcopy(found), other(48)).items():
        norm = norms_of(found)[name]
        np.testing.assert_allclose(norm.running_mean, mean, atol=2e-2)
        np.testing.assert_allclose(norm.running_var, variance, rtol=2e-2)
    assert not found.training
    assert not any(norm.training for norm in norms_of(found).values())
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_a_norm_that_measures_nothing_keeps_what_it_remembers() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Frozen:
            return super().train(False)

    frozen = Frozen(4).eval()
    assert frozen.running_mean is not None
    frozen.running_mean += 3
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), frozen, nn.BatchNorm2d(4)).eval()
    dense.auxiliary = nn.BatchNorm2d(7).eval()
    dense.forward = lambda x: dense[2](dense[1](dense[0](x)))  # type: ignore[method-assign]
    before = copy.deepcopy(dense.state_dict())
    estimate_statistics(dense, batches_of(images(8), 4), silent)
    changed = {name for name, value in dense.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}


def test_single_inputs_have_no_statistics_to_normalise_by() -> None:
    dense = network()
    assert seeing(dense, batches_of(other(3), 1), silent) is dense


def test_what_is_added_to_means_meanwhile_stays_and_nothing_else() -> None:
    dense = network()
    pruned = pruned_from(dense)
    kept, batches = kept_of(pruned), batches_of(other(64), 32)
    before = copy.deepcopy(pruned.network.state_dict())
    expected = norms_of(seeing(dense, batches, silent))
    with as_seen(dense, pruned.network, kept, batches, silent) as teacher:
        for name, norm in norms_of(pruned.network).items():
            places = kept.get(name, {}).get("channels", [*range(expected[name].num_features)])
            assert torch.equal(norm.running_mean, expected[name].running_mean[places])
            assert torch.equal(norm.running_var, expected[name].running_var[places])
            assert torch.equal(norms_of(teacher)[name].running_var, expected[name].running_var)
            norm.running_mean += 0.25
    for name, value in pruned.network.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.25 if name.endswith("running_mean") else before[name])


def test_an_error_meanwhile_leaves_what_was_remembered() -> None:
    dense = network()
    pruned = pruned_from(dense)
    before = copy.deepcopy(pruned.network.state_dict())
    batches = batches_of(other(64), 32)
    with pytest.raises(KeyError), as_seen(dense, pruned.network, kept_of(pruned), batches, silent):
        raise KeyError
    for name, value in pruned.network.state_dict().items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("name", ["data-free", pytest.param("imitate", marks=pytest.mark.slow)])
def test_weights_fitted_to_inputs_of_other_statistics_serve_better_so(name: str) -> None:
    """On images that fit what the dense network remembers; and less so after imitation, which shows images mirrored."""
    dense = network()
    estimate_statistics(dense, batches_of(images(512), 64), silent)
    unseen = batches_of(torch.randn(128, *SHAPE, generator=torch.Generator().manual_seed(9)), 64)
    errors = []
    for synthetic in (False, True):
        pruned = pruned_from(dense)
        given, effort = batches_of(other(256), 64), Effort(steps=15)
        recover(name, dense, pruned.network, pruned.plan.groups, given, effort=effort, synthetic=synthetic)
        errors.append(output_error(dense, pruned.network, unseen))
    assert errors[1] < (0.9 if name == "imitate" else 0.8) * errors[0], errors


def test_synthetic_inputs_are_scored_with_by_a_network_that_normalises_so() -> None:
    dense = network()
    source = Source(spec="x:y", model_args={}, input_shape=SHAPE)
    options = PruneOptions(criterion="block-hessian", ranking="sensitivity")
    batches = batches_of(other(64), 32)
    given = {
        kind: Calibration(batches=batches, record=Calibrated(inputs=kind, count=64)) for kind in ("images", "synthetic")
    }
    copied = seeing(dense, batches, silent)
    found = assess(dense, source, options, given["synthetic"]).scores
    assert all(map(np.array_equal, found, assess(copied, source, options, given["images"]).scores))
    assert not all(map(np.array_equal, found, assess(dense, source, options, given["images"]).scores))
    assert same_state(dense, network())
