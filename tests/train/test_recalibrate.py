from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from diffmoe_scale.checkpoint.stored import StoredWeights, open_weights
from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.convert.export import average_checkpoints
from diffmoe_scale.encoders.text.tokenizer import train_tokenizer
from diffmoe_scale.sampling.loading import join_ranks
from diffmoe_scale.train.recalibrate import recalibrate
from tests.convert.runs import save_run
from tests.train.runs import text_settings
from tools import convert_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of captions with three checkpoints, whose thresholds fit no weights."""
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    train_tokenizer(["a red circle", "two blue squares"], vocabulary=300, path=directory.tokenizer)
    save_run(join_ranks(expert_parallel=1), directory.path, text_settings(tmp_path))
    return directory.path


def thresholds(stored: StoredWeights) -> torch.Tensor:
    """As the predictors of all layers use them."""
    decay = stored.config.moe.threshold_decay
    buffers = {name: tensor.read() for name, tensor in stored.family("buffer").items()}
    return torch.stack(
        [
            buffer / (1 - decay ** float(buffers[name.replace("expert_threshold_E", "threshold_steps")]))
            for name, buffer in buffers.items()
            if name.endswith("expert_threshold_E")
        ]
    )


def test_merged_weights_get_thresholds_by_which_experts_take_their_capacity(run: Path) -> None:
    merged = average_checkpoints(run, 3)
    calibrated, lines = recalibrate(merged, family="master", num_batches=4)
    words = lines[0].split()
    after = float(words[words.index("gets") + 1])
    before = float(words[-1])
    # Experts take whole tokens: 32 of the 4 * 32.
    assert after == pytest.approx(1, abs=1 / 32) and abs(before - 1) > 0.2
    assert not torch.equal(thresholds(calibrated), thresholds(merged))
    assert {name for name in merged.tensors if merged.tensors[name] is not calibrated.tensors[name]} == {
        name for name in merged.tensors if name.startswith("buffer/")
    }


def test_more_batches_give_other_thresholds(run: Path) -> None:
    stored = open_weights(run)
    one, three = (thresholds(recalibrate(stored, family="ema", num_batches=count)[0]) for count in (1, 3))
    assert ((one > 0) & (one < 1)).all() and not torch.allclose(one, three, rtol=1e-3)


def test_weights_without_thresholds_are_refused(run: Path) -> None:
    stored = open_weights(run)
    dense = replace(stored, config=replace(stored.config, moe=replace(stored.config.moe, num_experts=0)))
    with pytest.raises(ValueError, match="has no thresholds to calibrate; leave out --calibrate"):
        recalibrate(dense, family="ema", num_batches=1)


def test_command_writes_calibrated_thresholds_and_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "merged.safetensors"
    words = [str(run), str(target), "--average", "2", "--weights", "master", "--calibrate", "2"]
    assert convert_checkpoint.main(words) == 0
    assert "calibrated anew by 2 micro-batches" in capsys.readouterr().out
    expected, _ = recalibrate(average_checkpoints(run, 2), family="master", num_batches=2)
    torch.testing.assert_close(thresholds(open_weights(target)), thresholds(expected))


def test_a_command_among_the_shards_of_a_run_is_not_run(run: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    planted = tmp_path / "planted"
    settings["data"]["train"] = [f"pipe:touch {planted}; cat {settings['data']['train'][0]}"]
    settings["data"]["cache_folder"] = str(tmp_path / "cache")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="which is not run"):
        recalibrate(open_weights(run), family="ema", num_batches=1)
    assert not planted.exists()
