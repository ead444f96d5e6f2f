from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffmoe_scale.data.features import (
    CaptionFeatures,
    FeatureSet,
    FeatureSource,
    check_features,
    find_feature_set,
    load_feature_set,
    pack_sample,
    stack_captions,
    stack_latents,
    to_stored,
    unpack_sample,
)

SOURCE = FeatureSource(autoencoder="a", text="t", latent_shape=(2, 3, 3), num_views=1, precision="bf16")


def caption(length: int, value: float) -> CaptionFeatures:
    return CaptionFeatures(torch.full((length, 4), value), torch.full((5,), value))


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_sample_comes_back_with_each_caption_cut_to_its_tokens(precision: str) -> None:
    latents_VCHW = torch.arange(18.0).reshape(1, 2, 3, 3) / 2
    found = unpack_sample(pack_sample(latents_VCHW, [caption(3, 0.5), caption(1, 2.0)], [1.0, 3.0], precision=precision), SOURCE)
    # Halves below 8 have 3 binary digits behind the first in both formats.
    assert torch.equal(found.latents_VCHW.float()[latents_VCHW < 8], latents_VCHW[latents_VCHW < 8])
    for number, (length, value) in enumerate([(3, 0.5), (1, 2.0)]):
        one = found.caption(number)
        assert torch.equal(one.tokens_LT.float(), torch.full((length, 4), value)) and torch.equal(one.pooled_P.float(), torch.full((5,), value))
    assert found.caption_weights() == [1, 3]


def test_tensors_that_do_not_fit_each_other_are_refused() -> None:
    found = unpack_sample(pack_sample(torch.zeros(1, 2, 3, 3), [caption(3, 0.5)], [1.0], precision="bf16"), SOURCE)
    assert found.caption_weights() == [1]
    with pytest.raises(ValueError, match=r"2 tokens and 1 pooled features of 1 captions; expected \(3, 1\)"):
        replace(found, tokens_LT=torch.zeros(2, 4)).caption_weights()


def test_numbers_too_large_for_fp8_saturate() -> None:
    assert to_stored(torch.tensor([1e4, -1e4]), "fp8").float().tolist() == [448, -448]


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(1, 2, 4, 3\); expected \(1, 2, 3, 3\)"):
        unpack_sample(pack_sample(torch.zeros(1, 2, 4, 3), [], [], precision="bf16"), SOURCE)


def test_captions_are_padded_to_the_longest_and_masked() -> None:
    text = stack_captions([caption(1, 1.0), caption(3, 2.0)])
    assert text.mask_BL.tolist() == [[True, False, False], [True, True, True]]
    assert text.tokens_BLT[:, :, 0].tolist() == [[1, 0, 0], [2, 2, 2]] and text.pooled_BV[:, 0].tolist() == [1, 2]


def test_a_sample_without_latents_is_a_row_of_zeros() -> None:
    stacked_BCHW = stack_latents([None, torch.ones(2, 3, 3)], (2, 3, 3))
    assert stacked_BCHW.float().mean((1, 2, 3)).tolist() == [0, 1]


@pytest.mark.parametrize("empty", [None, caption(2, 1.0)])
def test_what_made_a_set_is_read_back(tmp_path: Path, empty: CaptionFeatures | None) -> None:
    FeatureSet(SOURCE, empty).save(tmp_path)
    found = load_feature_set(tmp_path)
    assert found.source == SOURCE and (found.empty is None) == (empty is None)
    assert empty is None or (found.empty is not None and torch.equal(found.empty.tokens_LT, empty.tokens_LT))


def test_sets_of_other_sources_cannot_be_mixed(tmp_path: Path) -> None:
    for name, autoencoder in (("1", "a"), ("2", "b")):
        (tmp_path / name).mkdir()
        FeatureSet(FeatureSource(autoencoder, "t", (2, 3, 3), 1, "bf16"), None).save(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be mixed: autoencoder 'a' instead of 'b'"):
        find_feature_set([tmp_path / "1" / "x.tar", tmp_path / "2" / "x.tar"])
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match=r"3/features\.safetensors is missing"):
        find_feature_set([tmp_path / "1" / "x.tar", tmp_path / "3" / "x.tar"])
    assert find_feature_set([tmp_path / "3" / "x.tar"]) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"autoencoder": "b"}, "autoencoder 'a' instead of 'b'"),
        ({"text": ""}, "text 't' instead of 'none'"),
        ({"latent_shape": (2, 4, 4)}, "latent_shape"),
    ],
)
def test_a_run_with_other_encoders_is_told_which(changed: dict[str, object], message: str) -> None:
    right = {"autoencoder": "a", "text": "t", "latent_shape": (2, 3, 3), "is_flipped": False}
    check_features(SOURCE, **right)
    with pytest.raises(ValueError, match=message):
        check_features(SOURCE, **right | changed)


def test_a_frozen_encoder_may_read_the_captions_of_a_set_without_text() -> None:
    check_features(FeatureSource("a", "", (2, 3, 3), 1, "bf16"), autoencoder="a", text="t", latent_shape=(2, 3, 3), is_flipped=False)
