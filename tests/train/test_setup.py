"""What a start needs of frozen text encoders."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast  # Any: a stand-in for networks

import pytest

from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.train.setup import load_text_encoders
from tests.model.models import FrozenEncoder
from tests.train.runs import CPU, tiny_config


def reader_of(*, has_text_features: bool) -> Reader:
    source = SimpleNamespace(has_text_features=has_text_features)
    return cast(Reader, SimpleNamespace(source=source))


@pytest.mark.parametrize(
    ("train", "validation", "sample_every", "is_loaded"),
    [
        (True, True, 0, False),
        (True, None, 0, False),
        (False, None, 0, True),
        (True, False, 0, True),
        (True, True, 5, True),
    ],
)
def test_frozen_encoders_are_loaded_only_where_captions_are_encoded(
    train: bool, validation: bool | None, sample_every: int, is_loaded: bool
) -> None:
    encoder = FrozenEncoder()
    networks = cast(Any, SimpleNamespace(text_encoders=TextEncoders((encoder,), ("test",)), device=CPU))
    config = tiny_config([])
    config = replace(config, telemetry=replace(config.telemetry, sample_every=sample_every))
    readers = [None if kind is None else reader_of(has_text_features=kind) for kind in (train, validation)]
    load_text_encoders(readers, cast(Networks, networks), config)
    assert (encoder.tower is not None) == is_loaded
