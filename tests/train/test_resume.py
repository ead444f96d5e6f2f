from pathlib import Path

import pytest

from diffmoe_scale.checkpoint.manifest import Manifest
from diffmoe_scale.train.resume import refuse_other_optimizer
from tests.train.runs import tiny_config


@pytest.mark.parametrize(("stored", "kind"), [("momentum", "adamw"), ("exp_avg", "muon")])
def test_checkpoint_of_another_optimizer_is_refused_with_what_to_do(stored: str, kind: str) -> None:
    shapes = {"master/w": [4, 4], f"{stored}/w": [4, 4]}
    manifest = Manifest(step=1, samples=8, optimizer_steps=1, shapes=shapes)
    other = {"adamw": "muon", "muon": "adamw"}[kind]
    expected = f"optimizer.kind is '{kind}' but checkpoint c holds .* '{other}'; set optimizer.kind={other}"
    with pytest.raises(ValueError, match=expected):
        refuse_other_optimizer(Path("c"), manifest, tiny_config([f"optimizer.kind={kind}"]))
    refuse_other_optimizer(Path("c"), manifest, tiny_config([f"optimizer.kind={other}"]))
