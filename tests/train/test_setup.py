"""What a start needs of frozen text encoders."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast  # Any: a stand-in for networks

import pytest

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.data.reading.reader import Reader
from diffmoe_scale.encoders.text.streams import TextEncoders
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.train.setup import load_text_encoders, refuse_other_optimizer
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


@pytest.mark.parametrize(("stored", "kind"), [("momentum", "adamw"), ("exp_avg", "muon")])
def test_checkpoint_of_another_optimizer_is_refused_with_what_to_do(stored: str, kind: str) -> None:
    shapes = {"master/w": [4, 4], f"{stored}/w": [4, 4]}
    manifest = Manifest(step=1, samples=8, optimizer_steps=1, shapes=shapes)
    other = {"adamw": "muon", "muon": "adamw"}[kind]
    expected = f"optimizer.kind is '{kind}' but checkpoint c holds .* '{other}'; set optimizer.kind={other}"
    with pytest.raises(ValueError, match=expected):
        refuse_other_optimizer(Path("c"), manifest, tiny_config([f"optimizer.kind={kind}"]))
    refuse_other_optimizer(Path("c"), manifest, tiny_config([f"optimizer.kind={other}"]))
