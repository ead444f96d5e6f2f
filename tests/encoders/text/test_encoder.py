"""What every text encoder promises."""

import torch

from tests.encoders.text.texts import CLOSE, LONG, SHORT, encode


def test_features_have_the_promised_shapes(any_encoder):
    tokens_BL = any_encoder.tokenize([SHORT, "", LONG])
    features = any_encoder(tokens_BL)
    assert tokens_BL.dtype == torch.int64
    assert features.tokens_BLT.shape == (*tokens_BL.shape, any_encoder.token_width)
    assert features.mask_BL.shape == tokens_BL.shape and features.mask_BL.dtype == torch.bool
    pooled_width = 0 if features.pooled_BV is None else features.pooled_BV.shape[1]
    assert pooled_width == any_encoder.pooled_width
    assert features.tokens_BLT.dtype == torch.float32


def test_padding_changes_no_feature_of_a_valid_token(any_encoder):
    alone, padded = encode(any_encoder, [SHORT]), encode(any_encoder, [SHORT, LONG])
    length = alone.mask_BL.shape[1]
    assert padded.mask_BL.shape[1] > length
    assert alone.mask_BL.all() and padded.mask_BL[0].sum() == length
    torch.testing.assert_close(padded.tokens_BLT[:1, :length], alone.tokens_BLT, **CLOSE)
    if padded.pooled_BV is not None:
        torch.testing.assert_close(padded.pooled_BV[:1], alone.pooled_BV, **CLOSE)


def test_long_captions_are_cut_before_their_end_token_and_counted(any_encoder):
    tokenizer = any_encoder.tokenizer
    captions, cut = tokenizer.num_captions, tokenizer.num_cut
    tokens_BL = any_encoder.tokenize([SHORT, " ".join([LONG] * 9)])
    assert tokens_BL.shape[1] == tokenizer.max_tokens
    assert tokens_BL[1, tokenizer.max_tokens - len(tokenizer.end) :].tolist() == tokenizer.end
    assert (tokenizer.num_captions - captions, tokenizer.num_cut - cut) == (2, 1)


def test_a_caption_that_just_fits_is_not_cut(any_encoder):
    tokenizer = any_encoder.tokenizer
    cut = tokenizer.num_cut
    tokenizer.split, split = (
        lambda captions: [[7] * (tokenizer.max_tokens - len(tokenizer.start) - len(tokenizer.end))],
        tokenizer.split,
    )
    assert any_encoder.tokenize(["x"]).shape[1] == tokenizer.max_tokens
    tokenizer.split = split
    assert tokenizer.num_cut == cut
