"""One feed-forward network: its pieces, its noise, and outputs of 0."""

import torch

from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.convert.grow_experts import Network


def network_of(*, is_gated: bool = False) -> Network:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "w_in": torch.randn(12, 3, generator=generator),
        "w_out": torch.randn(3, 6 if is_gated else 12, generator=generator),
    }
    if not is_gated:
        tensors |= {"b_in": torch.randn(12, generator=generator), "b_out": torch.ones(3)}
    return Network({name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, is_gated)


def read(network: Network) -> dict[str, torch.Tensor]:
    for name, tensor in network.tensors.items():
        assert tuple(tensor.read().shape) == tensor.shape, name
    return {name: tensor.read() for name, tensor in network.tensors.items()}


def test_outputs_of_0_are_0_to_the_bit_whatever_they_were() -> None:
    network = network_of()
    wild = network.tensors["w_out"].read().clone()
    wild[0, 0], wild[0, 1] = torch.inf, torch.nan
    silent = read(Network({**network.tensors, "w_out": LazyTensor.of(wild)}, False).scaled(0))
    for name in ("w_out", "b_out"):
        assert (silent[name] == 0).all() and not silent[name].signbit().any()
    assert torch.equal(silent["w_in"], network.tensors["w_in"].read())


def test_a_factor_is_of_the_output_and_its_bias() -> None:
    plain, doubled = read(network_of()), read(network_of().scaled(2.0))
    for name, tensor in plain.items():
        assert torch.equal(doubled[name], tensor * (2 if name.endswith("out") else 1)), name


def test_noise_is_added_to_matrices_alone_and_of_each_anew() -> None:
    plain, noisy = read(network_of()), read(network_of().noisy(0.5, "upcycle", 1))
    for name, tensor in plain.items():
        assert torch.equal(noisy[name], tensor) == name.startswith("b"), name
    drawn = [(noisy[name] - plain[name]).flatten()[:10] / plain[name].std() for name in ("w_in", "w_out")]
    assert not torch.allclose(drawn[0], drawn[1])
    assert 0.2 < float(drawn[0].std()) < 0.8


def test_pieces_answer_together_as_the_whole() -> None:
    """SwiGLU: the rows of w_in are those of its gate and of what it weighs, half and half."""
    x_SD = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))

    def answer(tensors: dict[str, torch.Tensor], *, is_gated: bool) -> torch.Tensor:
        hidden_SF = x_SD @ tensors["w_in"].T + tensors.get("b_in", torch.zeros(()))
        if is_gated:
            gate_SF, value_SF = hidden_SF.chunk(2, dim=-1)
            hidden_SF = torch.nn.functional.silu(gate_SF) * value_SF
        else:
            hidden_SF = torch.nn.functional.gelu(hidden_SF)
        return hidden_SF @ tensors["w_out"].T + tensors.get("b_out", torch.zeros(()))

    for is_gated in (False, True):
        network = network_of(is_gated=is_gated)
        pieces = [read(network.piece(number, 3)) for number in range(3)]
        whole = answer(read(network), is_gated=is_gated)
        torch.testing.assert_close(sum(answer(piece, is_gated=is_gated) for piece in pieces), whole)
