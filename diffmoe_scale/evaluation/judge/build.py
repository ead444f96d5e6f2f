"""The judge that the settings name."""

import torch

from diffmoe_scale.config.evaluation import JudgeConfig
from diffmoe_scale.evaluation.judge.endpoint import EndpointJudge
from diffmoe_scale.evaluation.judge.judge import Judge
from diffmoe_scale.evaluation.judge.local_model import LocalJudge


def build_judge(config: JudgeConfig, device: torch.device) -> Judge | None:
    """None for kinds that ask nobody. Raises: ValueError for a folder or an address that is none."""
    match config.kind:
        case "transformers":
            return LocalJudge(config, device)
        case "endpoint":
            return EndpointJudge(config)
        case "none" | "stored":
            return None
