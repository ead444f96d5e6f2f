import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmoe_scale.config.choices import describe_choices
from diffmoe_scale.config.effect import describe_idle
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.data.order.size import Size
from diffmoe_scale.plan.memory import plan_memory
from diffmoe_scale.pretrain import main, report_end
from diffmoe_scale.train.overview import (
    check_ranks,
    check_token_counts,
    describe_network,
    describe_planned_run,
    describe_run,
)
from tests.moe.layers import alone
from tests.train.runs import text_settings, tiny_config, tiny_pipeline


def count_by_hand() -> tuple[int, int]:
    """Parameters of the tiny network, and those of its experts."""
    network = tiny_pipeline(tiny_config([]), alone()).denoiser
    experts = sum(p.numel() for layer in network.moe_layers() for _, p in layer.expert_parameters())
    return sum(p.numel() for p in network.parameters()), experts


@pytest.mark.parametrize(("ranks", "expert_parallel"), [(1, 1), (8, 4)])
def test_memory_is_the_plans(tmp_path: Path, ranks: int, expert_parallel: int) -> None:
    settings = [f"parallel.expert_parallel={expert_parallel}", f"run.global_batch={8 * ranks}"]
    for offload in ("true", "false"):
        config = tiny_config([*settings, f"parallel.offload_optimizer={offload}"])
        memory = plan_memory(config, ranks=ranks, is_gpu=False)
        _, line = describe_network(config, ranks=ranks)
        assert line.startswith(f"memory of a rank ({ranks} in all): {memory.total / 2**20:.1f} MiB")
        assert f" and {memory.host / 2**20:.1f} MiB of host memory" in line or not memory.host
    kept = memory.weights + memory.masters + memory.moments + memory.average
    assert kept + memory.gradients + memory.activations == memory.total
    parts = [kept, memory.gradients, memory.activations]
    assert re.findall(r"([\d.]+) MiB (?:weights|gradients|activations)", line) == [
        f"{part / 2**20:.1f}" for part in parts
    ]


def test_memory_that_cannot_be_planned_ends_no_run() -> None:
    few = ["run.micro_batch=1", "moe.num_experts=64", "model.patch_size=8"]
    _, line = describe_network(tiny_config(few), ranks=1)
    assert line.startswith("memory of a rank (1 in all): not planned, since ")


def test_ranks_that_cannot_share_experts_or_a_batch_are_refused() -> None:
    config = tiny_config(["parallel.expert_parallel=2", "run.global_batch=8", "run.micro_batch=2"])
    check_ranks(config, ranks=4)
    with pytest.raises(ValueError, match="expert_parallel is 2 but the world has 3 ranks"):
        check_ranks(config, ranks=3)
    with pytest.raises(ValueError, match=r"8 data-parallel ranks of run\.micro_batch 2"):
        check_ranks(config, ranks=8)


def test_lines_name_size_data_and_place(tmp_path: Path) -> None:
    total, experts = count_by_hand()
    config = tiny_config(["run.steps=30", "run.global_batch=8", "checkpoint.every=7"])
    network, _ = describe_network(config, ranks=2)
    code, data, place = describe_run(config, RunDirectory(tmp_path / "run"), num_samples=100)
    assert code.startswith("code: diffmoe_scale ") and ", commit " in code
    used = total - round(experts * (1 - config.moe.capacity / 4))
    assert f"{total:,} parameters, of which a token activates {used:,} on average; 4 experts" in network
    tokens = (config.model.image_size // config.model.patch_size) ** 2
    assert f"; {tokens} tokens a picture" in network
    assert "100 samples, so an epoch is 12.5 steps of 8" in data and "is 2.40 epochs" in data
    assert str(tmp_path / "run") in place and "every 7 steps" in place


def test_a_dense_network_has_no_experts_and_a_short_one_splits_over_no_sequence_group() -> None:
    network, _ = describe_network(tiny_config(["moe.num_experts=0"]), ranks=1)
    assert "; no experts; " in network
    split = ["model.heads=6", "model.width=36", "parallel.sequence_parallel=3"]
    with pytest.raises(ValueError, match="expected a divisor of the 16 tokens"):
        check_ranks(tiny_config(split), ranks=3)
    # Two groups of two ranks, each with a micro-batch of 4, take the 8 samples at once.
    pairs = ["parallel.sequence_parallel=2", "run.micro_batch=4", "run.global_batch=8"]
    check_ranks(tiny_config(pairs), ranks=4)
    with pytest.raises(ValueError, match="expected a divisor of the 3 tokens of images of 4 x 12"):
        check_token_counts(tiny_config(pairs), [Size(16, 16), Size(height=12, width=4)])
    with pytest.raises(ValueError, match="4 data-parallel ranks"):
        check_ranks(tiny_config(pairs), ranks=8)


def test_planning_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    describe_network(tiny_config([]), ranks=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_warmup_that_is_longer_than_the_run_is_said(tmp_path: Path) -> None:
    settings = ["run.steps=30", "optimizer.warmup_steps=31"]
    *_, line = describe_run(tiny_config(settings), RunDirectory(tmp_path), num_samples=100)
    assert line == "optimizer.warmup_steps is 31 but run.steps is 30: the warm-up takes 30 steps"
    as_long = tiny_config(["run.steps=30", "optimizer.warmup_steps=30"])
    assert not any(
        "warm-up" in line for line in describe_run(as_long, RunDirectory(tmp_path), num_samples=100)
    )


def test_settings_that_were_chosen_and_those_without_effect_are_said(tmp_path: Path) -> None:
    config = tiny_config(["diffusion.kind=ddpm", "moe.num_experts=0", "moe.capacity=0.5"])
    lines = describe_run(config, RunDirectory(tmp_path), num_samples=100)
    chosen, idle = describe_choices(config), describe_idle(config)
    assert chosen and idle and lines[-len(chosen + idle) :] == chosen + idle


def test_dry_run_prints_the_same_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    settings = text_settings(tmp_path)
    (tmp_path / "tiny.yaml").write_text("run: {steps: 30}\n", encoding="utf-8")
    assert main(["--config", str(tmp_path / "tiny.yaml"), "--dry-run", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "40 samples" in lines[3] and lines[-1] == "begins at step 1; nothing was trained (--dry-run)"
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
    (tmp_path / "damaged.tar").write_bytes(b"no tar")
    unread = tiny_config([*text_settings(tmp_path), f"data.validation=[{tmp_path}/damaged.tar]"])
    with pytest.raises((ValueError, RuntimeError), match=r"damaged\.tar"):
        describe_planned_run(unread, RunDirectory(tmp_path / "other"), ranks=1)
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
