import time
from random import Random

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from diffmoe_scale.config.text import TextConfig
from diffmoe_scale.encoders.text.build import build_text_encoder
from diffmoe_scale.encoders.text.tokenizer import (
    END,
    LONGEST_PIECE,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from tests.encoders.text.texts import CAPTIONS


def test_tokenizer_has_t5_ids_and_bytes_for_unseen_characters(tokenizer_path):
    processor = load_tokenizer(tokenizer_path, vocabulary=512)
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    ids = processor.encode("ein Schloß 城")
    assert 2 not in ids
    assert processor.decode(ids) == "ein Schloß 城"


def test_same_captions_give_the_same_tokenizer_file(tokenizer_path, tmp_path):
    train_tokenizer(iter(CAPTIONS), vocabulary=512, path=tmp_path / "deeper" / "tokenizer.model")
    assert (tmp_path / "deeper" / "tokenizer.model").read_bytes() == tokenizer_path.read_bytes()
    assert [file.name for file in (tmp_path / "deeper").iterdir()] == ["tokenizer.model"]


@pytest.mark.parametrize("captions", [[], ["", "  "]])
def test_tokenizer_without_captions_is_an_error(captions, tmp_path):
    with pytest.raises(ValueError, match="no captions"):
        train_tokenizer(captions, vocabulary=512, path=tmp_path / "tokenizer.model")
    assert not list(tmp_path.iterdir())


def test_too_small_a_vocabulary_is_an_error_that_names_the_smallest_possible(tmp_path):
    # 256 bytes, pad, end, unknown, and the captions' characters: a, b and the word boundary.
    with pytest.raises(ValueError, match=r"text\.vocabulary is 100; expected at least 262"):
        train_tokenizer(["ab ba"], vocabulary=100, path=tmp_path / "tokenizer.model")
    train_tokenizer(["ab ba"], vocabulary=262, path=tmp_path / "tokenizer.model")


def test_missing_tokenizer_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path / "tokenizer.model")):
        build_text_encoder(TextConfig(), tokenizer_path=tmp_path / "tokenizer.model")


def test_tokenizer_with_more_pieces_than_the_vocabulary_is_an_error(tokenizer_path):
    with pytest.raises(ValueError, match=r"text\.vocabulary is 257"):
        build_text_encoder(TextConfig(vocabulary=257), tokenizer_path=tokenizer_path)


STRANGE = ["\ud800 red", "red \udfff", "\ud83d\ude00", "a\0b", "\x1b[31m\u2028\ufeff", ""]


@pytest.mark.parametrize("caption", STRANGE)
def test_text_that_is_no_unicode_is_tokenized_and_encoded(any_encoder, caption):
    tokens_BL = any_encoder.tokenize([caption, "two red circles"])
    assert tokens_BL.shape[0] == 2 and any_encoder(tokens_BL).tokens_BLT.isfinite().all()


def test_a_tokenizer_is_trained_on_text_that_is_no_unicode(tmp_path):
    train_tokenizer(STRANGE, vocabulary=300, path=tmp_path / "tokenizer.model")
    processor = load_tokenizer(tmp_path / "tokenizer.model", vocabulary=300)
    tokenizer = Tokenizer(processor.encode, start=[], end=[END], max_tokens=8)
    assert tokenizer(STRANGE).shape[0] == len(STRANGE)


@pytest.mark.parametrize("text", ["abcdefgh", "a b ", " ", "\n\t", "\U0001f600", "&amp;", "\ud800"])
def test_a_text_of_a_million_characters_is_cut_and_takes_no_longer(any_encoder, text):
    start = time.process_time()
    tokens_BL = any_encoder.tokenize([text * (1_000_000 // len(text))])
    assert tokens_BL.shape[1] <= any_encoder.tokenizer.max_tokens
    assert time.process_time() - start < 10  # a second; open_clip alone would take hours


def test_tokens_of_a_long_caption_are_those_of_its_start(any_encoder):
    tokenizer = any_encoder.tokenizer
    caption = "\n\n" + "  ".join(CAPTIONS) * 20
    assert len(caption) > LONGEST_PIECE * tokenizer.max_tokens
    expected = tokenizer.split([caption])[0][
        : tokenizer.max_tokens - len(tokenizer.start) - len(tokenizer.end)
    ]
    assert tokenizer([caption]).tolist() == [[*tokenizer.start, *expected, *tokenizer.end]]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@seed(0)
@given(captions=st.lists(st.text(st.characters(), max_size=60), min_size=1, max_size=4))
def test_any_text_is_tokenized_to_ids_that_the_encoder_takes(any_encoder, captions):
    """Half surrogate pairs, controls and unassigned characters among them."""
    tokenizer = any_encoder.tokenizer
    tokens_BL = any_encoder.tokenize(captions)
    assert tokens_BL.shape[0] == len(captions) and 1 <= tokens_BL.shape[1] <= tokenizer.max_tokens
    mask_BL = any_encoder.mask_of(tokens_BL)
    assert mask_BL[:, 0].all() and (tokens_BL[mask_BL] >= 0).all()
    if tokenizer.end:
        assert (tokens_BL == tokenizer.end[0]).sum(dim=1).ge(1).all()
    assert any_encoder(tokens_BL).tokens_BLT.isfinite().all()


def test_a_damaged_tokenizer_is_an_error_that_names_the_file(tokenizer_path, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"tokenizer {tmp_path}/tokenizer.model cannot be read .* restore"):
        load_tokenizer(tmp_path / "tokenizer.model", vocabulary=512)


@pytest.mark.slow
def test_any_damage_to_the_tokenizer_is_a_value_error_or_changes_pieces(tokenizer_path, tmp_path):
    good, random, refused = tokenizer_path.read_bytes(), Random(0), 0
    for _ in range(300):
        damaged = bytearray(good)
        place = random.randrange(len(damaged))
        match random.randrange(4):
            case 0:
                damaged[place] ^= 1 << random.randrange(8)
            case 1:
                del damaged[place:]
            case 2:
                damaged[place:place] = random.randbytes(4)
            case 3:
                damaged = bytearray(random.randbytes(random.randrange(2000)))
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        try:
            load_tokenizer(tmp_path / "tokenizer.model", vocabulary=512).encode(CAPTIONS)
        except ValueError:
            refused += 1
    assert refused > 150


def test_captions_longer_than_a_line_of_sentencepiece_are_learned_from(tmp_path):
    train_tokenizer(["word cat house " * 1000] * 2, vocabulary=320, path=tmp_path / "words.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "words.model"))
    pieces = {model.id_to_piece(number) for number in range(model.get_piece_size())}
    assert {"\u2581word", "\u2581cat", "\u2581house"} <= pieces
    # One word that no space cuts.
    train_tokenizer(["x" * 50_000], vocabulary=320, path=tmp_path / "letters.model")
