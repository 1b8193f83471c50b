"""Nothing of the hooks that were added stays on a network."""

from __future__ import annotations

from torch import nn

from pruneport.compress.hooks import hooks_restored


def test_what_torch_keeps_beside_a_hook_goes_with_it() -> None:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    before = {name: dict(value) for name, value in vars(layer).items() if "hooks" in name}
    with hooks_restored(layer):
        layer.register_forward_hook(lambda *_: None, with_kwargs=True, always_call=True)
        layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    assert {name: dict(value) for name, value in vars(layer).items() if "hooks" in name} == before
