from types import SimpleNamespace

import torch

from diffmoe_scale.bench.contenders import layer_configs
from diffmoe_scale.config.moe import MoEConfig

BASE = MoEConfig(num_experts=4, every=3)
LOAD = "diffmoe_scale.moe.transformer_engine.load_transformer_engine"


def test_a_cpu_runs_the_loop_and_the_grouped_layer():
    configs = layer_configs(BASE, torch.device("cpu"))
    assert {name: config.backend for name, config in configs.items()} == {
        "loop": "loop",
        "grouped": "grouped",
    }
    assert {(config.num_experts, config.every) for config in configs.values()} == {(4, 3)}


def test_a_gpu_runs_the_precisions_that_it_has(monkeypatch):
    te = SimpleNamespace(is_fp8_available=lambda: True, is_fp8_block_scaling_available=lambda: False)
    monkeypatch.setattr(LOAD, lambda: te)
    configs = layer_configs(BASE, torch.device("cuda"))
    assert {name: (config.backend, config.precision) for name, config in configs.items()} == {
        "loop": ("loop", "model"),
        "grouped": ("grouped", "model"),
        "transformer_engine": ("transformer_engine", "model"),
        "fp8_delayed": ("transformer_engine", "fp8_delayed"),
        "fp8_current": ("transformer_engine", "fp8_current"),
    }


def test_what_is_not_installed_is_named_and_not_measured(monkeypatch, capsys):
    def load():
        raise ValueError("Transformer Engine is not installed")

    monkeypatch.setattr(LOAD, load)
    assert list(layer_configs(BASE, torch.device("cuda"))) == ["loop", "grouped"]
    expected = "transformer_engine: not measured: Transformer Engine is not installed\n"
    assert capsys.readouterr().err == expected
