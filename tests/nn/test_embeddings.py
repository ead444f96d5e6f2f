import math

import numpy as np
import torch

from diffmoe_scale.nn.embeddings import position_embedding, sinusoidal_embedding
from tests.model.models import REFERENCE, WIDTH


def test_position_embedding_equals_the_reference() -> None:
    expected = np.load(REFERENCE)["state/pos_embed"][0]
    np.testing.assert_allclose(position_embedding(4, 4, WIDTH), expected, atol=1e-6)


def test_position_embedding_tells_rows_from_columns() -> None:
    embedding = position_embedding(3, 5, 8).unflatten(0, (3, 5))
    # The first half is the column's, the second the row's.
    assert torch.equal(embedding[0, 2, :4], embedding[2, 2, :4]) and torch.equal(
        embedding[1, 0, 4:], embedding[1, 4, 4:]
    )
    assert len(embedding.flatten(0, 1).unique(dim=0)) == 15


def test_timestep_sinusoids_fall_from_one_to_the_longest_period() -> None:
    got = sinusoidal_embedding(torch.tensor([0.0, 3.0]), 8)
    frequencies = [10000 ** -(i / 4) for i in range(4)]
    expected = [
        [1.0] * 4 + [0.0] * 4,
        [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies],
    ]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_position_embedding_of_another_resolution_covers_the_same_ground() -> None:
    assert torch.equal(position_embedding(4, 4, WIDTH, base=4), position_embedding(4, 4, WIDTH))
    # Tokens 1 and 2 of 4 have the coordinates 1 and 2; of 8 tokens half as wide, the two halves of token 1
    # lie at 0.75 and 1.25.
    fine = position_embedding(8, 8, 4, base=4).unflatten(0, (8, 8))
    expected = torch.tensor([[math.sin(x), math.cos(x)] for x in (0.75, 1.25)])
    torch.testing.assert_close(fine[0, 2:4, :2], expected)
    wide = position_embedding(2, 8, 4, base=4).unflatten(0, (2, 8))
    torch.testing.assert_close(wide[0, 0, :2], torch.tensor([math.sin(-2.0), math.cos(-2.0)]))
