import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from diffmoe_scale.config.data import BucketConfig
from diffmoe_scale.data.features.format import (
    SampleFeatures,
    pack_sample,
    stored_original,
    to_stored,
    unpack_sample,
)
from diffmoe_scale.data.features.locate import find_feature_set, load_feature_set, set_file
from diffmoe_scale.data.features.source import (
    PRECISIONS,
    SET_FILE,
    CaptionFeatures,
    FeatureSet,
    FeatureSource,
)
from diffmoe_scale.data.features.stack import stack_arrays, stack_captions
from diffmoe_scale.data.reading.pictures import Size

SOURCE = FeatureSource(
    autoencoder="a",
    text="t",
    channels=2,
    factor=4,
    image_size=12,
    aspects=(),
    step=0,
    num_views=1,
    precision="bf16",
)
SQUARE = Size(12, 12)
BUCKETS = BucketConfig(enabled=True, aspects=(0.5, 1.0), step=4)


def caption(length: int, value: float) -> CaptionFeatures:
    return CaptionFeatures(torch.full((length, 4), value).bfloat16(), torch.full((5,), value).bfloat16())


def pack(
    latents_VCHW: Tensor, captions: list[CaptionFeatures], weights: list[float], *, precision: str = "bf16"
) -> bytes:
    """Of one text encoder."""
    return pack_sample(
        latents_VCHW,
        [(caption,) for caption in captions],
        weights,
        original=Size(60, 90),
        crop=(0, 15),
        precision=precision,
    )


def array_of(found: SampleFeatures, name: str) -> np.ndarray:
    """Of a member, or of its first stream."""
    array: np.ndarray = getattr(found if hasattr(found, name) else found.streams[0], name)
    return array


def with_array(found: SampleFeatures, name: str, array: np.ndarray) -> SampleFeatures:
    if hasattr(found, name):
        return replace(found, **{name: array})  # type: ignore[arg-type]  # a name of its own
    first = replace(found.streams[0], **{name: array})  # type: ignore[arg-type]
    return replace(found, streams=(first, *found.streams[1:]))


def values(bits: np.ndarray, precision: str = "bf16") -> Tensor:
    return torch.from_numpy(bits.copy()).view(PRECISIONS[precision]).float()


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_sample_comes_back_with_each_caption_cut_to_its_tokens(precision: str) -> None:
    latents_VCHW = torch.arange(18.0).reshape(1, 2, 3, 3) / 2
    data = pack(latents_VCHW, [caption(3, 0.5), caption(1, 2.0)], [1.0, 3.0], precision=precision)
    found = unpack_sample(data, replace(SOURCE, precision=precision), SQUARE)
    # Halves below 8 have 3 binary digits behind the first in both formats.
    assert torch.equal(
        values(found.latents(0).bits_CHW, precision)[latents_VCHW[0] < 8], latents_VCHW[latents_VCHW < 8]
    )
    for number, (length, value) in enumerate([(3, 0.5), (1, 2.0)]):
        (one,) = found.caption(number)
        assert torch.equal(values(one.tokens_LT, precision), torch.full((length, 4), value))
        assert one.pooled_P is not None
        assert torch.equal(values(one.pooled_P, precision), torch.full((5,), value))
    assert found.caption_weights() == [1, 3]
    assert (found.latents(0).original, found.latents(0).crop) == ((60, 90), (0, 15))


def test_the_original_size_is_read_from_the_beginning_of_a_member() -> None:
    data = pack(torch.zeros(1, 2, 3, 3), [caption(1000, 0.5)] * 2, [1.0, 1.0])
    assert stored_original(data[:1000]) == Size(60, 90) and len(data) > 10_000
    for broken in (
        b"",
        b"x",
        data[:300],
        data[:8] + b"!" * 1000,
        pack(torch.zeros(1, 2, 3, 3), [], []).replace(b"origin_Z", b"origin_Y"),
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            stored_original(broken)


def test_tensors_that_do_not_fit_each_other_are_refused() -> None:
    found = unpack_sample(pack(torch.zeros(1, 2, 3, 3), [caption(3, 0.5)], [1.0]), SOURCE, SQUARE)
    assert found.caption_weights() == [1]
    with pytest.raises(ValueError, match=r"2 tokens and 1 pooled features of 1 captions; expected \(3, 1\)"):
        with_array(found, "tokens_LT", np.zeros((2, 4))).caption_weights()
    with pytest.raises(ValueError):
        replace(found, origin_Z=np.zeros(3)).latents(0)


def test_numbers_too_large_for_fp8_saturate() -> None:
    assert to_stored(torch.tensor([1e4, -1e4]), "fp8").float().tolist() == [448, -448]


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(1, 2, 4, 3\); expected \(1, 2, 3, 3\)"):
        unpack_sample(pack(torch.zeros(1, 2, 4, 3), [], []), SOURCE, SQUARE)
    assert unpack_sample(pack(torch.zeros(1, 2, 4, 3), [], []), SOURCE, Size(16, 12)).latents_VCHW.shape == (
        1,
        2,
        4,
        3,
    )


def test_bits_of_another_format_are_refused_not_misread() -> None:
    with pytest.raises(ValueError, match=r"uint8.*expected bf16"):
        unpack_sample(pack(torch.zeros(1, 2, 3, 3), [], [], precision="fp8"), SOURCE, SQUARE)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: b"", lambda data: data[:40], lambda data: b"\xff" * len(data)],
)
def test_damaged_bytes_are_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        unpack_sample(damage(pack(torch.zeros(1, 2, 3, 3), [caption(3, 0.5)], [1.0])), SOURCE, SQUARE)


def test_safetensors_reads_the_same() -> None:
    data = pack(torch.randn(1, 2, 3, 3), [caption(3, 0.5), caption(2, 1.5)], [1.0, 2.0])
    found = unpack_sample(data, SOURCE, SQUARE)
    for name, tensor in safetensors.torch.load(data).items():
        bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        assert np.array_equal(array_of(found, name), bits.numpy())


def test_captions_are_padded_to_the_longest_and_masked() -> None:
    captions = [(caption(1, 1.0).stored,), (caption(3, 2.0).stored,)]
    (text,) = stack_captions(captions, precision="bf16").streams
    assert text.mask_BL.tolist() == [[True, False, False], [True, True, True]]
    assert text.tokens_BLT[:, :, 0].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert text.pooled_BV is not None and text.pooled_BV[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_sample_without_latents_is_a_row_of_zeros(precision: str) -> None:
    found = unpack_sample(
        pack(torch.ones(1, 2, 3, 3), [], [], precision=precision),
        replace(SOURCE, precision=precision),
        SQUARE,
    )
    bits_CHW = found.latents(0).bits_CHW
    stacked_BCHW = stack_arrays([bits_CHW, None, bits_CHW], (2, 3, 3), precision=precision)
    assert stacked_BCHW.float().mean((1, 2, 3)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("empty", [(), (caption(2, 1.0),)])
@pytest.mark.parametrize("source", [SOURCE, replace(SOURCE, aspects=(0.5, 1.0), step=4)])
def test_what_made_a_set_is_read_back(
    tmp_path: Path, source: FeatureSource, empty: tuple[CaptionFeatures, ...]
) -> None:
    FeatureSet(source, empty).save(tmp_path)
    found = load_feature_set(set_file(tmp_path / "x.tar"))
    assert found.source == source and len(found.empty) == len(empty)
    assert all(
        torch.equal(ours.tokens_LT, made.tokens_LT) for ours, made in zip(found.empty, empty, strict=True)
    )


def test_a_set_made_before_features_had_original_sizes_is_refused(tmp_path: Path) -> None:
    told = {
        name: value
        for name, value in asdict(SOURCE).items()
        if name in ("autoencoder", "text", "num_views", "precision")
    }
    metadata = {"source": json.dumps(told | {"latent_shape": [2, 3, 3]})}
    (tmp_path / SET_FILE).write_bytes(safetensors.torch.save({}, metadata=metadata))
    with pytest.raises(
        ValueError,
        match=(
            r"has autoencoder, .*latent_shape; expected .*another version of "
            r"tools/cache_features\.py; make them anew"
        ),
    ):
        load_feature_set(set_file(tmp_path / "x.tar"))


def test_an_image_has_the_size_of_its_picture_s_bucket() -> None:
    assert SOURCE.image_size_of(Size(60, 30)) == SQUARE
    source = replace(SOURCE, aspects=BUCKETS.aspects, step=BUCKETS.step)
    # No more pixels than the square has, in whole steps.
    assert source.image_size_of(Size(60, 30)) == (16, 8) and source.latent_shape(Size(16, 8)) == (2, 4, 2)
    assert source.image_size_of(Size(60, 50)) == SQUARE


def test_sets_of_other_sources_cannot_be_mixed(tmp_path: Path) -> None:
    for name, autoencoder in (("1", "a"), ("2", "b")):
        (tmp_path / name).mkdir()
        FeatureSet(replace(SOURCE, autoencoder=autoencoder)).save(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be mixed: autoencoder 'a' instead of 'b'"):
        find_feature_set([tmp_path / "1" / "x.tar", tmp_path / "2" / "x.tar"])
    (tmp_path / "3").mkdir()
    with pytest.raises(ValueError, match=r"3/features\.safetensors is missing"):
        find_feature_set([tmp_path / "1" / "x.tar", tmp_path / "3" / "x.tar"])
    assert find_feature_set([tmp_path / "3" / "x.tar"]) is None
