import json

import pytest
import torch

from tools import bench_step

TINY = [
    "--width",
    "16",
    "--depth",
    "2",
    "--experts",
    "2",
    "--batch",
    "2",
    "--latent-size",
    "8",
    "--rounds",
    "2",
    "--threads",
    "1",
    "--device",
    "cpu",
]


def test_every_contender_of_every_phase_is_in_table_and_file(tmp_path, capsys):
    output = tmp_path / "step.json"
    assert bench_step.main([*TINY, "--output", str(output)]) == 0
    table = json.loads(output.read_text())["table"]
    names = ["dense", "scatter_loop", "loop", "grouped"]
    assert [(row["phase"], row["contender"]) for row in table] == [
        (phase, name) for phase in bench_step.PHASES for name in names
    ]
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(table)


def test_models_with_experts_give_the_same_gradients():
    parsed, device = bench_step.parse(TINY), torch.device("cpu")
    models, grads = bench_step.build_models(parsed, device), {}
    for name, model in models.items():
        for block in model.blocks:  # zero at the start, they would hide the experts
            torch.nn.init.ones_(block.modulation.bias)
        generator = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(model.final_projection.weight, generator=generator)
        x_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
        bench_step.predict(model, x_BCHW, bench_step.Selection("train")).value_BCHW.square().sum().backward()
        grads[name] = model.patch_embedding.weight.grad
    torch.testing.assert_close(grads["scatter_loop"], grads["grouped"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grads["loop"], grads["grouped"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(grads["dense"], grads["grouped"], rtol=1e-2)


def test_sizes_that_do_not_fit_are_an_error(capsys):
    assert bench_step.main([*TINY, "--latent-size", "7"]) == 2
    assert "choose a divisor" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench_step.main(["--batch", "0"])
    assert "--batch is 0" in capsys.readouterr().err
