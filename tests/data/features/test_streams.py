"""Features of several text encoders in one member, and sets that were made before there could be several."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffmoe_scale.data.features.format import pack_sample, unpack_sample
from diffmoe_scale.data.features.locate import find_feature_set, load_feature_set, set_file
from diffmoe_scale.data.features.source import SET_FILE, CaptionFeatures, FeatureSet
from diffmoe_scale.data.features.stack import stack_captions
from diffmoe_scale.data.reading.decoder import FeatureDecoder
from diffmoe_scale.data.reading.pictures import Size
from tests.data.features.test_source import SOURCE, SQUARE, values

SEVERAL = replace(SOURCE, text="clip0 t5")
LATENTS = torch.ones(1, 2, 3, 3)


def by_clip(length: int, value: float) -> CaptionFeatures:
    return CaptionFeatures(torch.full((length, 4), value).bfloat16(), torch.full((5,), value).bfloat16())


def by_t5(length: int, value: float) -> CaptionFeatures:
    """Without pooled features."""
    return CaptionFeatures(torch.full((length, 7), value).bfloat16(), None)


def pack(captions: list[tuple[CaptionFeatures, ...]], weights: list[float]) -> bytes:
    return pack_sample(LATENTS, captions, weights, original=Size(60, 90), crop=(0, 0), precision="bf16")


def test_each_caption_comes_back_by_each_encoder_cut_to_its_tokens() -> None:
    data = pack([(by_clip(3, 0.5), by_t5(6, 1.0)), (by_clip(1, 2.0), by_t5(2, 4.0))], [1.0, 3.0])
    found = unpack_sample(data, SEVERAL, SQUARE)
    assert found.caption_weights() == [1, 3]
    for number, (lengths, numbers) in enumerate([((3, 6), (0.5, 1.0)), ((1, 2), (2.0, 4.0))]):
        clip, t5 = found.caption(number)
        assert torch.equal(values(clip.tokens_LT), torch.full((lengths[0], 4), numbers[0]))
        assert torch.equal(values(t5.tokens_LT), torch.full((lengths[1], 7), numbers[1]))
        assert clip.pooled_P is not None and t5.pooled_P is None
        assert (clip.widths, t5.widths) == ((4, 5), (7, 0))


def test_each_stream_of_a_batch_is_padded_to_its_own_longest() -> None:
    captions = [
        (by_clip(3, 1.0).stored, by_t5(1, 1.0).stored),
        (by_clip(1, 2.0).stored, by_t5(5, 2.0).stored),
    ]
    clip, t5 = stack_captions(captions, precision="bf16").streams
    assert clip.tokens_BLT.shape == (2, 3, 4) and t5.tokens_BLT.shape == (2, 5, 7)
    assert clip.mask_BL.sum(1).tolist() == [3, 1] and t5.mask_BL.sum(1).tolist() == [1, 5]
    assert clip.pooled_BV is not None and t5.pooled_BV is None


def test_a_member_of_one_encoder_has_the_names_that_it_always_had() -> None:
    data = pack([(by_clip(3, 0.5),), (by_clip(1, 2.0),)], [1.0, 3.0])
    names = {"latents_VCHW", "origin_Z", "tokens_LT", "pooled_KP", "lengths_K", "weights_K"}
    assert set(safetensors.torch.load(data)) == names


def test_a_set_that_was_made_before_there_were_several_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote it, by safetensors alone."""
    tensors = {"tokens_LT": torch.ones(2, 4).bfloat16(), "pooled_P": torch.ones(5).bfloat16()}
    metadata = {"source": json.dumps(asdict(SOURCE))}
    (tmp_path / SET_FILE).write_bytes(safetensors.torch.save(tensors, metadata=metadata))
    found = load_feature_set(set_file(tmp_path / "x.tar"))
    member = {
        "latents_VCHW": LATENTS.bfloat16(),
        "origin_Z": torch.tensor([60, 90, 0, 0], dtype=torch.int32),
        "tokens_LT": torch.full((3, 4), 0.5).bfloat16(),
        "pooled_KP": torch.ones(1, 5).bfloat16(),
        "lengths_K": torch.tensor([3], dtype=torch.int32),
    }
    decoded = FeatureDecoder(found).decode(
        safetensors.torch.save(member), SQUARE, is_flipped=False, oddities=set()
    )
    (caption,) = decoded.caption(0)
    assert torch.equal(values(caption.tokens_LT), torch.full((3, 4), 0.5)) and decoded.weights == (1.0,)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([(by_clip(3, 0.5),)], "captions by 1 encoders; expected 2"),
        ([(by_clip(3, 0.5), by_t5(1, 1.0), by_t5(1, 1.0))], "captions by 3 encoders; expected 2"),
        ([(by_t5(3, 0.5), by_t5(1, 1.0))], r"widths \(7, 0\); expected \(4, 5\)"),
        ([(by_clip(3, 0.5), by_clip(1, 1.0))], r"widths \(4, 5\); expected \(7, 0\)"),
    ],
)
def test_a_member_of_other_encoders_than_the_set_s_is_refused(
    captions: list[tuple[CaptionFeatures, ...]], message: str
) -> None:
    decoder = FeatureDecoder(FeatureSet(SEVERAL, (by_clip(1, 0.0), by_t5(1, 0.0))))
    with pytest.raises(ValueError, match=message):
        decoder.decode(pack(captions, [1.0]), SQUARE, is_flipped=False, oddities=set())


def test_streams_of_different_numbers_of_captions_are_refused() -> None:
    tensors = safetensors.torch.load(pack([(by_clip(3, 0.5), by_t5(6, 1.0))], [1.0]))
    tensors["lengths_K.1"] = torch.tensor([2, 4], dtype=torch.int32)
    found = unpack_sample(safetensors.torch.save(tensors), SEVERAL, SQUARE)
    with pytest.raises(ValueError, match="of 2 captions; expected"):
        found.caption_weights()


def test_sets_of_other_encoders_cannot_be_mixed_and_the_difference_is_named(tmp_path: Path) -> None:
    for name, source in (("a", SEVERAL), ("b", replace(SEVERAL, text="clip0 t5b"))):
        (tmp_path / name).mkdir()
        FeatureSet(source, (by_clip(1, 0.0), by_t5(1, 0.0))).save(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be mixed: text encoder 1 't5' instead of 't5b'"):
        find_feature_set([tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"])
    FeatureSet(SOURCE, (by_clip(1, 0.0),)).save(tmp_path / "b")
    with pytest.raises(ValueError, match="cannot be mixed: text '2 encoders' instead of 't'"):
        find_feature_set([tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"])


def test_a_set_file_of_other_encoders_than_it_says_is_refused(tmp_path: Path) -> None:
    FeatureSet(SEVERAL, (by_clip(1, 0.0),)).save(tmp_path)
    with pytest.raises(ValueError, match="holds the empty caption of 1 text encoders; expected 2"):
        load_feature_set(set_file(tmp_path / "x.tar"))
