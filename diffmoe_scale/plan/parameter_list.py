"""The parameters of a rank, with what decides their group of the optimizer."""

from dataclasses import dataclass

from diffmoe_scale.model.denoiser import Denoiser
from diffmoe_scale.model.matrices import hidden_matrices


@dataclass(frozen=True)
class Parameter:
    """`group` is that of the optimizer: expert, with weight decay, of a router, a matrix that Muon would
    update."""

    name: str
    numel: int
    group: tuple[bool, bool, bool, bool]


def list_parameters(network: Denoiser) -> list[Parameter]:
    """The parameters of a rank in order, and the groups that `train.optim.parameter_groups` puts them in."""
    experts = {id(tensor) for layer in network.moe_layers() for _, tensor in layer.expert_parameters()}
    routers = {id(tensor) for layer in network.moe_layers() for tensor in layer.router.parameters()}
    embeddings = {id(tensor) for tensor in network.embeddings()}
    matrices = hidden_matrices(network)
    return [
        Parameter(
            name,
            tensor.numel(),
            (
                id(tensor) in experts,
                tensor.dim() >= 2 and id(tensor) not in embeddings,
                id(tensor) in routers,
                id(tensor) in matrices,
            ),
        )
        for name, tensor in network.named_parameters()
    ]
