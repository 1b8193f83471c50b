"""Networks as strangers write them, each with what pruning must do to it; an oracle that knows no pruneport checks it.

registry: what a stranger is, and the layers that many of them use · failing: those that fail today · oracle and absent:
the dense network, computed without what was removed · checks and returned: what must hold · test_strangers and
test_oracle: the tests · all other modules: the networks, by theme.
"""

from . import (
    attention_heads,
    attention_kinds,
    attention_layers,
    attention_maps,
    backbones,
    channels,
    chosen,
    concat,
    detection,
    detection_stages,
    hidden,
    norms,
    operators,
    outputs,
    own_weights,
    projects,
    residual,
    sizes,
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
    chosen,
    concat,
    detection,
    detection_stages,
    hidden,
    norms,
    operators,
    outputs,
    own_weights,
    projects,
    residual,
    sizes,
    styles,
    tied,
    upsampling,
)
"""They register themselves."""
