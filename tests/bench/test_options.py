import argparse
import math

import pytest

from diffmoe_scale.bench.options import (
    CheckpointOptions,
    DataOptions,
    LayerOptions,
    LayerShape,
    ResumeOptions,
    StepOptions,
)

COUNTS = [
    (LayerOptions, ["rounds", "threads", "ranks"]),
    (StepOptions, ["width", "depth", "experts", "every", "batch", "latent_size", "rounds", "threads"]),
    (DataOptions, ["image_size", "samples", "batch", "rounds"]),
    (CheckpointOptions, ["width", "saves", "steps", "threads", "parameters"]),
    (ResumeOptions, ["shards", "samples", "shuffle_block"]),
]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in COUNTS for name in names])
def test_counts_below_one_are_refused_by_the_name_of_the_option(kind, name):
    kind()
    kind(**{name: 1})
    with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} is 0; expected .*at least 1$"):
        kind(**{name: 0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e6])
def test_a_model_has_a_finite_size(value):
    with pytest.raises(ValueError, match="--parameters is"):
        CheckpointOptions(parameters=value)


def test_a_shape_is_read_as_it_is_written():
    assert LayerShape.parse("384x16x8192") == LayerShape(384, 16, 8192)
    assert str(LayerShape(384, 16, 8192)) == "384x16x8192"
    narrow = LayerShape.parse("1024x64x8192x0.5")
    assert narrow == LayerShape(1024, 64, 8192, 0.5) and narrow.experts_per_token == 8
    assert str(narrow) == "1024x64x8192x0.5"


@pytest.mark.parametrize("text", ["16x4x64x3", "16x4x64x0", "16x4x64xnan", "16x4x64x0.5"])
def test_experts_that_together_are_not_as_wide_as_the_dense_network_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text}: expected an expert's width over WIDTH"):
        LayerShape.parse(text)


@pytest.mark.parametrize("text", ["16x4x6", "12x4x64", "16x4x4", "16x4x260", "16x0x64", "0x4x64", "16x-4x64"])
def test_shapes_that_cannot_be_measured_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"{text}: expected a width that 8 divides"):
        LayerShape.parse(text)


@pytest.mark.parametrize("text", ["", "16x4", "16x4x64x2x1", "16x4x64xwide", "axbxc"])
def test_words_that_are_no_shape_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected WIDTHxEXPERTSxTOKENS"):
        LayerShape.parse(text)
