"""The router of a config."""

from diffmoe_scale.config.moe import MoEConfig
from diffmoe_scale.moe.router import ExpertRouter, RouterPlace
from diffmoe_scale.moe.routers.diffmoe import DiffMoERouter
from diffmoe_scale.moe.routers.dsmoe import DSMoERouter
from diffmoe_scale.moe.routers.expert_choice import ExpertChoiceRouter
from diffmoe_scale.moe.routers.expert_race import ExpertRaceRouter
from diffmoe_scale.moe.routers.expert_threshold import ExpertThresholdRouter
from diffmoe_scale.moe.routers.promoe import ProMoERouter
from diffmoe_scale.moe.routers.token_choice import TokenChoiceRouter


def build_router(config: MoEConfig, place: RouterPlace) -> ExpertRouter:
    """The router that `moe.router` names."""
    match config.router:
        case "diffmoe":
            return DiffMoERouter(config, place)
        case "expert_choice":
            return ExpertChoiceRouter(config, place)
        case "token_choice":
            return TokenChoiceRouter(config, place)
        case "dsmoe":
            return DSMoERouter(config, place)
        case "expert_race":
            return ExpertRaceRouter(config, place)
        case "expert_threshold":
            return ExpertThresholdRouter(config, place)
        case "promoe":
            return ProMoERouter(config, place)
