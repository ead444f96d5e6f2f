"""torch.compile, block by block: a dense block as one graph, of a block with experts the pieces whose shapes
are known before (attention, capacity predictor, shared experts). Routing, dispatch and the experts' products
stay as they are.

Equal blocks share what was compiled. Modules keep their names, so checkpoints do not change.
"""

import logging

from torch import nn

from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer

logger = logging.getLogger(__name__)


def compile_blocks(transformer: DiffusionTransformer, *, backend: str = "inductor") -> list[nn.Module]:
    """Have the pieces of `transformer` compiled at their first use, by a backend of torch.compile.

    Returns the pieces. Losses are those of the plain network to round-off.
    """
    pieces = [piece for block in transformer.blocks for piece in pieces_of(block)]
    for piece in pieces:
        piece.compile(backend=backend)
    logger.info("run.compile: %d pieces of %d blocks are compiled", len(pieces), len(transformer.blocks))
    return pieces


def pieces_of(block: nn.Module) -> list[nn.Module]:
    """What of a block is compiled, each in one graph."""
    layer = block.feed_forward
    if not isinstance(layer, MoELayer):
        return [block]
    names = ("attention", "cross_attention", "text_feed_forward")
    pieces = [getattr(block, name, None) for name in names]
    pieces += [layer.shared_experts, getattr(layer.router, "predictor", None)]
    return [piece for piece in pieces if piece is not None]
