import json

import numpy as np
import pytest
from PIL import Image

from diffmoe_scale.sampling.picture_files import SUFFIXES, encode_picture
from tests.evaluation.metrics.networks import LITE0, blobs, write_lite0
from tools import compute_metrics


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_lite0(tmp_path_factory.mktemp("lite0") / "lite0.pth")


def score(*arguments: object) -> int:
    return compute_metrics.main([str(argument) for argument in arguments])


def test_an_archive_of_samples_is_scored_against_a_folder(weights, tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", arr_0=blobs(12, seed=1))
    (tmp_path / "reference").mkdir()
    for number, picture_HWC in enumerate(blobs(10, seed=0)):
        Image.fromarray(picture_HWC).save(tmp_path / "reference" / f"{number}.png")
    command = [tmp_path / "samples.npz", "--reference", tmp_path / "reference", "--timm", LITE0, weights]
    command += ["--timm-size", 64, "--output", tmp_path / "out.json", "--metrics", "kid:timm", "is:timm"]
    assert score(*command) == 0
    values = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [(value["name"], value["pictures"]) for value in values] == [("kid:timm", 12), ("is:timm", 12)]
    assert values[0]["reference_pictures"] == 10
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"kid:timm {values[0]['value']:.6g} +- ") and "10 of" in lines[0]


def test_prompts_are_read_from_the_files_that_sample_wrote(tmp_path):
    picture_HWC = blobs(1, seed=0)[0]
    for suffix, kind in SUFFIXES.items():
        path = tmp_path / f"0{suffix}"
        path.write_bytes(encode_picture(picture_HWC, kind, {"prompt": "a red circle", "seed": 3}))
        assert compute_metrics.read_caption(path) == "a red circle"
    Image.fromarray(picture_HWC).save(tmp_path / "plain.png")
    assert compute_metrics.read_caption(tmp_path / "plain.png") is None
    assert compute_metrics.read_caption(tmp_path / "picture.bmp") is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            [],
            "metric fid needs metrics.inception; expected the path of weights-inception-2015-12-05",
        ),
        (["--metrics", "fd:timm"], "metric fd:timm needs metrics.timm_architecture and metrics.timm_weights"),
        (["--metrics", "fd:timm", "--timm", LITE0, "absent"], "is absent, which is no file"),
        (["--metrics", "fad"], "'fad' is no metric; expected one of fid, sfid"),
        (["--checksum", "vgg=12"], "--checksum vgg=12; expected inception=HEX, timm=HEX or clip=HEX"),
        (["--batch", "0"], "metrics.batch is 0; expected 1 to"),
    ],
)
def test_a_wrong_command_is_one_sentence(tmp_path, capsys, options, error):
    np.savez(tmp_path / "samples.npz", arr_0=blobs(4, seed=1))
    assert score(tmp_path / "samples.npz", "--reference", tmp_path / "samples.npz", *options) == 2
    captured = capsys.readouterr().err
    assert error in captured and captured.count("\n") == 1


def test_another_size_is_found_before_the_reference_is_computed(tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", arr_0=blobs(4, seed=1))
    np.savez(tmp_path / "reference.npz", arr_0=blobs(4, seed=1, side=32))
    assert score(tmp_path / "samples.npz", "--reference", tmp_path / "reference.npz") == 2
    assert "the samples have 64 x 64 pixels, but" in capsys.readouterr().err
