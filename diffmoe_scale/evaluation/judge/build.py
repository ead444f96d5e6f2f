"""The judge that the settings name."""

import torch

from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.evaluation.judge.judge import Judge


def build_judge(config: JudgeConfig, device: torch.device) -> Judge | None:
    """None for kinds that ask nobody. Raises: ValueError for a folder or an address that is none."""
    match config.kind:
        case "none" | "stored":
            return None
        case _:
            raise AssertionError(config.kind)
