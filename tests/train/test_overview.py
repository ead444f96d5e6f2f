import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.model.matrices import hidden_matrices
from diffmoe_scale.plan.parameters import count_parameters
from diffmoe_scale.pretrain import main, report_end
from diffmoe_scale.train.overview import describe_planned_run, describe_run, estimate_memory
from tests.moe.layers import alone
from tests.train.runs import text_settings, tiny_config, tiny_pipeline


def count_by_hand() -> tuple[int, int]:
    """Parameters of the tiny network, and those of its experts."""
    network = tiny_pipeline(tiny_config([]), alone()).denoiser
    experts = sum(p.numel() for layer in network.moe_layers() for _, p in layer.expert_parameters())
    return sum(p.numel() for p in network.parameters()), experts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(("ranks", "expert_parallel"), [(1, 1), (8, 1), (8, 4)])
def test_memory_is_what_each_rank_keeps(precision: str, stage: int, ranks: int, expert_parallel: int) -> None:
    total, experts = count_by_hand()
    settings = [
        f"model.precision={precision}",
        f"parallel.zero_stage={stage}",
        f"parallel.expert_parallel={expert_parallel}",
    ]
    held = total - experts + experts // expert_parallel
    gradients = held if stage == 1 else total / ranks
    weights = (4 if precision == "fp32" else 2) * held
    config = tiny_config(settings)
    memory = estimate_memory(config, count_parameters(config), ranks=ranks)
    assert memory.host == 0 and abs(memory.device - (weights + 4 * gradients + 16 * total / ranks)) <= 2
    config = tiny_config([*settings, "parallel.offload_optimizer=true"])
    offloaded = estimate_memory(config, count_parameters(config), ranks=ranks)
    assert abs(offloaded.host - 16 * total / ranks) <= 1
    assert offloaded.device + offloaded.host == memory.device


def test_matrices_of_muon_have_one_moment() -> None:
    config = tiny_config([])
    size = count_parameters(config)
    by_adamw, by_muon = (
        estimate_memory(tiny_config([f"optimizer.kind={kind}"]), size, ranks=2) for kind in ("adamw", "muon")
    )
    network = tiny_pipeline(config, alone()).denoiser
    matrices = hidden_matrices(network)
    count = sum(parameter.numel() for parameter in network.parameters() if id(parameter) in matrices)
    assert count > size.total / 2 and abs(by_adamw.device - by_muon.device - 4 * count / 2) <= 1


def test_lines_name_size_data_memory_and_place(tmp_path: Path) -> None:
    total, experts = count_by_hand()
    config = tiny_config(["run.steps=30", "run.global_batch=8", "checkpoint.every=7"])
    network, data, memory, place = describe_run(
        config, RunDirectory(tmp_path / "run"), num_samples=100, ranks=2
    )
    used = total - round(experts * (1 - config.moe.capacity / 4))
    assert f"{total:,} parameters, of which a token activates {used:,} on average; 4 experts" in network
    tokens = (config.model.image_size // config.model.patch_size) ** 2
    assert f"; {tokens} tokens a picture" in network
    assert "100 samples, so an epoch is 12.5 steps of 8" in data and "is 2.40 epochs" in data
    mib = (8 * total + 16 * total / 2) / 2**20 - 4 * total / 2 / 2**20 * (config.parallel.zero_stage > 1)
    assert memory.startswith(f"memory of a rank (2 in all): {mib:.1f} MiB for weights")
    assert str(tmp_path / "run") in place and "every 7 steps" in place


def test_counting_draws_no_random_number(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    describe_run(tiny_config([]), RunDirectory(tmp_path), num_samples=100, ranks=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_warmup_that_is_longer_than_the_run_is_said(tmp_path: Path) -> None:
    settings = ["run.steps=30", "optimizer.warmup_steps=31"]
    *_, line = describe_run(tiny_config(settings), RunDirectory(tmp_path), num_samples=100, ranks=1)
    assert line == "optimizer.warmup_steps is 31 but run.steps is 30: the warm-up takes 30 steps"


def test_dry_run_prints_the_same_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    settings = text_settings(tmp_path)
    (tmp_path / "tiny.yaml").write_text("run: {steps: 30}\n", encoding="utf-8")
    assert main(["--config", str(tmp_path / "tiny.yaml"), "--dry-run", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "40 samples" in lines[1] and lines[-1] == "begins at step 1; nothing was trained (--dry-run)"
    assert not (tmp_path / "run").exists()


def test_dry_run_finds_what_would_keep_the_run_from_its_start(tmp_path: Path) -> None:
    config = tiny_config(text_settings(tmp_path))
    directory = RunDirectory(tmp_path / "run")
    (directory.checkpoints / "step_00000006").mkdir(parents=True)
    *_, end = describe_planned_run(config, directory, ranks=1)
    assert end.startswith("continues from the checkpoint of step 6")
    directory.saved.write_text(json.dumps({"step": 6}), encoding="utf-8")
    (directory.checkpoints / "step_00000006").rmdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        describe_planned_run(config, directory, ranks=1)
    with pytest.raises(ValueError, match="3 data-parallel ranks"):
        describe_planned_run(config, RunDirectory(tmp_path / "other"), ranks=3)


def test_a_planned_run_needs_the_frozen_networks_that_a_plan_may_assume(tmp_path: Path) -> None:
    latents = ["autoencoder.kind=diffusers", "autoencoder.path=pretrained/sd-vae", "model.channels=4"]
    with pytest.raises(ValueError, match=r"autoencoder\.path is 'pretrained/sd-vae'"):
        describe_planned_run(tiny_config(latents), RunDirectory(tmp_path), ranks=1)
    encoder = {"kind": "transformers", "path": "pretrained/qwen3-4b", "max_tokens": 8}
    captions = [*text_settings(tmp_path), f"text.encoders=[{json.dumps(encoder)}]", "text.max_tokens=24"]
    with pytest.raises(ValueError, match=r"text\.encoders\.0\.path is 'pretrained/qwen3-4b'"):
        describe_planned_run(tiny_config(captions), RunDirectory(tmp_path), ranks=1)


def test_end_names_the_run_its_report_and_the_next_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, directory = tiny_config(["run.steps=30"]), RunDirectory(tmp_path / "my run")
    directory.path.mkdir()
    caplog.set_level("INFO")
    report_end(config, directory)
    assert directory.report.is_file()
    assert f"{directory.path} has its 30 steps; its report is {directory.report}" in caplog.text
    assert f"next: python -m diffmoe_scale.sample --checkpoint '{directory.path}' --label 0" in caplog.text
    text = replace(config, model=replace(config.model, conditioning="text", num_classes=0))
    directory.report.unlink()
    directory.report.mkdir()
    report_end(text, directory)
    assert "the report was not written: " in caplog.text and "it has no new report" in caplog.text
    assert re.search(r"--checkpoint \S+my run' --prompt \"\.\.\.\"", caplog.text)
