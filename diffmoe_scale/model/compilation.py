"""torch.compile, block by block: a dense block as one graph, of a block with experts the pieces whose shapes
are known before (attention, capacity predictor, shared experts). Routing, dispatch and the experts' products
stay as they are.

Equal blocks share what was compiled. Modules keep their names, so checkpoints do not change.
"""

import logging

import torch
from torch import nn

from diffmoe_scale.model.transformer import DiffusionTransformer
from diffmoe_scale.moe.layer import MoELayer
from diffmoe_scale.words import counted

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


def compiled_graphs() -> int:
    """Graphs that torch.compile made in this process, those for further shapes included."""
    # Where torch 2.14 counts them.
    count: int = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return count


class CompilationLog:
    """Says in the log in which step something was compiled: a run that never ends to compile is slower than
    one that does not."""

    def __init__(self) -> None:
        self.count = compiled_graphs()

    def add_step(self, step: int) -> None:
        """To be called after each optimizer step."""
        count = compiled_graphs()
        if count > self.count:
            new = counted(count - self.count, "graph")
            logger.info("run.compile: %s compiled in step %d, %d in all", new, step, count)
        self.count = count
