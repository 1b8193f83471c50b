"""Networks in memory: what can be copied is copied without a trace, and what cannot be pruned is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruneport.errors import ModelError
from pruneport.models.live.copying import as_factory, copy_network
from pruneport.models.live.identity import live_source, state_sha256
from small_networks import same_state


class Watched(nn.Module):
    """Watches itself by a hook of its own, which doubles what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0
        self.layer.register_forward_hook(self.double)

    def double(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return 2 * output

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Remembers(nn.Module):
    """Keeps what it computed last, as some do in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.seen["last"] = self.layer(x)
        return self.seen["last"]


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


def compiled_in_place() -> nn.Module:
    network = small()
    network.compile()
    return network


def test_the_copy_is_in_eval_mode_on_the_cpu_and_shares_nothing() -> None:
    network = small().train()
    network[2].requires_grad_(False)
    network(torch.randn(5, 4)).sum().backward()
    copied = copy_network(network).network
    assert same_state(network, copied)
    assert not any(module.training for module in copied.modules())
    assert all(parameter.grad is None for parameter in copied.parameters())
    flags = [parameter.requires_grad for parameter in network.parameters()]
    assert [parameter.requires_grad for parameter in copied.parameters()] == flags
    ours = {tensor.data_ptr() for tensor in copied.state_dict().values()}
    assert not ours & {tensor.data_ptr() for tensor in network.state_dict().values()}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda net: nn.DataParallel(torch.compile(net))])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network = small()
    copied = copy_network(wrap(network)).network
    assert type(copied) is nn.Sequential
    assert same_state(copied, network)


def test_ddp_is_taken_off(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = small()
        wrapped = nn.parallel.DistributedDataParallel(network)
        assert same_state(copy_network(wrapped).network, network)
    finally:
        torch.distributed.destroy_process_group()


def test_what_was_compiled_in_place_is_copied_as_it_was_before() -> None:
    copied = copy_network(compiled_in_place()).network
    assert copied._compiled_call_impl is None


def test_hooks_of_others_stay_with_the_original_and_are_named() -> None:
    network, seen = small(), []
    network[0].register_forward_hook(lambda *_: seen.append("forward"))
    network[2].register_full_backward_hook(lambda *_: seen.append("backward"))
    copied, removed = copy_network(network)
    assert removed == ("0", "2")
    copied(torch.randn(5, 4)).sum().backward()
    assert seen == []
    network.eval()(torch.randn(5, 4)).sum().backward()
    assert seen == ["forward", "backward"]


def test_hooks_that_are_the_networks_own_stay() -> None:
    network = Watched().eval()
    norm = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    old = torch.nn.utils.spectral_norm(nn.Linear(4, 4)).eval()  # by a hook, which parametrizations are not
    inputs = torch.randn(3, 4)
    for given in (network, norm, old):
        copied, removed = copy_network(given)
        assert removed == ()
        torch.testing.assert_close(copied(inputs), given(inputs), rtol=0, atol=0)
    calls = network.calls
    copy_network(network).network(inputs)
    assert network.calls == calls  # the copy's hook is bound to the copy


def test_tensors_that_a_forward_left_behind_are_no_obstacle() -> None:
    network = Remembers()
    network(torch.randn(3, 4))
    copied = copy_network(network).network
    assert isinstance(copied, Remembers)
    assert torch.equal(copied.seen["last"], network.seen["last"])


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lines = (line for line in ("a", "b"))


def quantised() -> nn.Module:
    return nn.Sequential(torch.ao.nn.quantized.Linear(4, 4), nn.Linear(4, 4))


def prepared() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), torch.ao.quantization.FakeQuantize())


def infinite() -> nn.Module:
    network = small()
    nn.init.constant_(network[2].weight, float("inf"))
    return network


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: "torchvision:resnet50", "the network is a str; expected a torch.nn.Module.*pruneport.ship"),
        (lambda: nn.ReLU, "the network is a ReLU; expected"),
        (lambda: small().state_dict(), "the network is a OrderedDict; expected"),
        (lambda: torch.jit.script(small()), "torch.jit has scripted or traced"),
        (lambda: small().to("meta"), r"without values \(lazy, or on the meta device\): 0.weight"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "without values .*: 0.weight"),
        (quantised, "quantised, or prepared for it: 0, .*Give the network as it is before"),
        (prepared, "quantised, or prepared for it: 1"),
        (lambda: small().half(), "weights are torch.float16; expected torch.float32"),
        (lambda: small().double(), "weights are torch.float64; expected torch.float32"),
        (infinite, "NaN or infinite weights in 2.weight"),
        (Broken, "cannot be copied: TypeError"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_pruned_is_named(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        copy_network(make())


def test_a_network_as_a_factory_is_copied_whatever_arguments_come() -> None:
    network = small()
    factory = as_factory(network)
    assert factory is not None
    made = factory(width=3)
    assert made is not network
    assert same_state(made, network)
    assert as_factory(small) is small
    assert as_factory(None) is None


def test_the_hash_is_of_names_types_shapes_and_bits() -> None:
    state = small().state_dict()
    first = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == first
    changed = copy.deepcopy(state)
    changed["0.bias"][0] += 1
    renamed = {f"{name}x": tensor for name, tensor in state.items()}
    reshaped = state | {"0.weight": state["0.weight"].T.contiguous()}
    retyped = state | {"0.bias": state["0.bias"].view(torch.int32)}
    hashes = {state_sha256(other) for other in (state, changed, renamed, reshaped, retyped)}
    assert len(hashes) == 5


def test_norms_that_saw_nothing_say_untrained() -> None:
    network = small()
    assert not live_source(network, (1, 2, 2)).trained
    network(torch.randn(5, 4))
    source = live_source(network, (1, 2, 2), seed=3)
    assert source.trained
    assert source.library is None
    assert (source.spec, source.seed) == ("torch.nn.modules.container:Sequential", 3)
    assert live_source(nn.Linear(2, 2), (1, 2, 2)).trained
