"""Training goes on from a checkpoint of the DiffMoE reference, on experts spread over two ranks."""

import math
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.stored import open_weights
from diffmoe_scale.config.identity import model_settings
from diffmoe_scale.convert.convert import Options, convert
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.model.condition import Condition
from diffmoe_scale.model.networks import build_networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.moe.thresholds import update_routers
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.train.engine import Engine
from diffmoe_scale.train.initialize import begin_from_weights
from tests.convert.reference import reference_state, training_file
from tests.encoders.autoencoder.models import model_of_kind
from tests.ranks import run_on_ranks
from tests.train.runs import CPU, tiny_config

STEPS = 12
NETWORK = [
    "model.num_classes=10",
    "model.image_size=32",
    "model.channels=4",
    "model.patch_size=2",
    "model.depth=4",
    "model.heads=4",
    "diffusion.time_scale=1.0",
    "moe.threshold_bias_correction=false",
    "run.global_batch=8",
    "run.micro_batch=4",
    "optimizer.learning_rate=1.0e-2",
]


def train_on(context: ParallelContext, settings: list[str]) -> tuple[list[float], list[float]]:
    """The loss of each step on one batch, and the thresholds of the first layer before the training."""
    config = tiny_config([*NETWORK, *settings, f"parallel.expert_parallel={context.expert_parallel}"])
    networks = build_networks(config, tokenizer_path=Path("none"), groups=context.megatron_groups, device=CPU)
    engine = Engine(networks.denoiser, config, context)
    identity = model_settings(config, tokenizer=Path("none"), frozen=networks.frozen)
    begin_from_weights(engine, config, context, step=0, settings=identity)
    layers = networks.denoiser.moe_layers()
    before = layers[0].router.predictor.threshold().tolist()
    places = [4 * context.rank + number for number in range(4)]
    uniform_B, noise = sample_noise(0, places, networks.latent_shape, CPU)
    _, x0 = sample_noise(1, places, networks.latent_shape, CPU)
    t_B, objective, losses = networks.objective.sample_time(uniform_B), networks.objective, []
    for step in range(1, STEPS + 1):
        x_t = objective.add_noise(x0, noise, t_B)
        condition = Condition(torch.tensor(places))
        prediction = engine(x_t, objective.embedding_time(t_B), condition, Selection("train", step=step))
        loss = objective.loss(prediction.value_BCHW, x_t, x0, noise, t_B).mean()
        engine.backward(loss)
        engine.step(config.optimizer.learning_rate)
        kth = torch.stack([routing.statistic_X for routing in prediction.routings])
        update_routers(layers, [kth], context.dp_group)
        losses.append(float(loss))
    return losses, before


def test_training_goes_on_from_a_checkpoint_of_the_reference(tmp_path: Path) -> None:
    state = reference_state()
    model_of_kind("sd").save_pretrained(tmp_path / "vae")
    source = training_file(tmp_path / "a.pt", state)
    convert(source, tmp_path / "a.safetensors", Options(settings=["model.heads=4"]))
    assert open_weights(tmp_path / "a.safetensors").families == ["master", "ema", "buffer"]
    settings = [
        "autoencoder.kind=diffusers",
        f"autoencoder.path={tmp_path / 'vae'}",
        f"run.initialize_from={tmp_path / 'a.safetensors'}",
    ]
    for losses, before in run_on_ranks(train_on, 2, settings, expert_parallel=2):
        assert before == state["blocks.1.mlp.expert_threshold"].tolist()
        assert all(map(math.isfinite, losses)) and losses[-1] < 0.9 * losses[0]
