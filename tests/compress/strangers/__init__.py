"""Networks as strangers write them, each with what pruning must do to it; an oracle that knows no pruneport checks it.

registry: what a stranger is, and the layers that many of them use · failing: those that fail today · oracle and absent:
the dense network, computed without what was removed · checks: what must hold · test_strangers: the tests · all other
modules: the networks, by theme.
"""

from . import (
    attention_heads,
    attention_kinds,
    attention_layers,
    attention_maps,
    backbones,
    channels,
    concat,
    detection,
    norms,
    operators,
    outputs,
    own_weights,
    projects,
    residual,
    styles,
    tied,
    upsampling,
)

NETWORKS = (
    attention_heads,
    attention_kinds,
    attention_layers,
    attention_maps,
    backbones,
    channels,
    concat,
    detection,
    norms,
    operators,
    outputs,
    own_weights,
    projects,
    residual,
    styles,
    tied,
    upsampling,
)
"""They register themselves."""
