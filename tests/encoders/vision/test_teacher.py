"""Features of a frozen encoder of pictures against transformers' own networks."""

import json
import time
from pathlib import Path

import pytest
import torch

from diffmoe_scale.encoders.fingerprint import FINE_CLOCK_S
from diffmoe_scale.encoders.vision.teacher import Teacher
from tests.encoders.vision.models import KINDS, write_preprocessor, write_teacher

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_features_are_those_of_patches_in_rows_after_the_final_norm(
    tmp_path: Path, kind: str, grid: tuple[int, int]
) -> None:
    network = write_teacher(tmp_path, kind)
    teacher = Teacher(str(tmp_path), precision="fp32")
    assert (teacher.width, teacher.patch) == (24, 7)
    size = grid[0] * 7, grid[1] * 7
    pictures = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    # The size fits, so that nothing is resized: ImageNet's normalization by hand.
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    states = network(((pictures + 1) / 2 - mean) / std).last_hidden_state
    count = grid[0] * grid[1]
    torch.testing.assert_close(teacher.features(pictures, grid), states[:, -count:], rtol=1e-4, atol=1e-5)


def test_a_feature_is_where_its_patch_is(tmp_path: Path) -> None:
    """Of a change of one corner, the nearest feature changes most."""
    write_teacher(tmp_path)
    teacher = Teacher(str(tmp_path), precision="fp32")
    pictures = torch.zeros(2, 3, 16, 16)
    pictures[1, :, :4, 12:] = 1
    before, after = teacher.features(pictures, (4, 4))
    assert int((after - before).norm(dim=-1).argmax()) == 3


def test_channels_are_normalized_before_the_bicubic_resize(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    write_preprocessor(tmp_path, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.5, 1.0])
    teacher = Teacher(str(tmp_path), precision="fp32")
    pictures = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    normalized = torch.stack([(pictures[:, c] + 1) / 2 - 0.5 for c in range(3)], 1)
    normalized = normalized / torch.tensor([0.25, 0.5, 1.0])[:, None, None]
    expected = torch.nn.functional.interpolate(normalized, size=(28, 28), mode="bicubic")
    torch.testing.assert_close(teacher.prepare(pictures, (28, 28)), expected)


def test_fingerprints_tell_weights_and_normalization_apart(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_teacher(tmp_path / name, seed=seed)
    first, same, other = (Teacher(str(tmp_path / n), precision="fp32").fingerprint() for n in "abc")
    assert first == same != other
    write_preprocessor(tmp_path / "b", image_mean=[0.5, 0.5, 0.5])
    assert Teacher(str(tmp_path / "b"), precision="fp32").fingerprint() != first


@pytest.mark.parametrize("setting", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}])
def test_settings_that_weights_do_not_show_are_another_fingerprint(
    setting: dict[str, object], tmp_path: Path
) -> None:
    write_teacher(tmp_path)
    first = Teacher(str(tmp_path), precision="fp32").fingerprint()
    config = tmp_path / "config.json"
    tree = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(tree | setting), encoding="utf-8")
    assert Teacher(str(tmp_path), precision="fp32").fingerprint() != first


def test_fewer_layers_than_the_weights_have_are_refused_whatever_was_recorded(tmp_path: Path) -> None:
    """Features of the first layer alone would pass for those of the whole network."""
    write_teacher(tmp_path)
    time.sleep(2 * FINE_CLOCK_S)  # a file that was just written is not trusted
    Teacher(str(tmp_path), precision="fp32").fingerprint()
    assert (tmp_path / "fingerprint.json").is_file()
    config = tmp_path / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings = {name: value for name, value in settings.items() if not name.startswith(("out_", "stage_"))}
    config.write_text(json.dumps(settings | {"num_hidden_layers": 1}), encoding="utf-8")
    for use in (Teacher.fingerprint, lambda teacher: teacher.load(CPU)):
        with pytest.raises(
            ValueError, match=r"hold \d+ tensors without a place in a dinov2 model of 1 layer,"
        ):
            use(Teacher(str(tmp_path), precision="fp32"))


def test_wrong_folders_are_sentences(tmp_path: Path) -> None:
    write_teacher(tmp_path / "good")
    with pytest.raises(ValueError, match=r"alignment.encoder is .*none'; expected a folder"):
        Teacher(str(tmp_path / "none"), precision="fp32")
    config = tmp_path / "good" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(settings | {"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(ValueError, match="describes a 'vit' model; expected one of dinov2"):
        Teacher(str(tmp_path / "good"), precision="fp32")
    config.write_text(json.dumps(settings | {"hidden_size": 48}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"its weights (lack|cannot be loaded)"):
        Teacher(str(tmp_path / "good"), precision="fp32").load(CPU)
    config.write_text(json.dumps(settings | {"num_hidden_layers": 3}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"its weights lack \d+ tensors of a dinov2 model, such as "):
        Teacher(str(tmp_path / "good"), precision="fp32").load(CPU)
    config.write_text(json.dumps(settings), encoding="utf-8")
    write_preprocessor(tmp_path / "good", image_mean=[1])
    with pytest.raises(ValueError, match=r"its preprocessor_config\.json cannot be read"):
        Teacher(str(tmp_path / "good"), precision="fp32")
