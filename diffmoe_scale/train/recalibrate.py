"""Thresholds anew for weights that were not trained with them, such as a mean of checkpoints."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.checkpoint.tensor_file import LazyTensor
from diffmoe_scale.config.load import config_tree, make_config
from diffmoe_scale.config.origin import mark_foreign
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Batch
from diffmoe_scale.data.reading.build import open_reader
from diffmoe_scale.model.networks import Networks, build_networks
from diffmoe_scale.moe.routing import Selection, average_capacity
from diffmoe_scale.sampling.loading import fill_from, join_ranks
from diffmoe_scale.sampling.logit_counts import LogitCounts
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from diffmoe_scale.words import counted


def recalibrate(
    stored: StoredWeights, *, family: str, num_batches: int, settings: Sequence[str] = ()
) -> tuple[StoredWeights, list[str]]:
    """The weights with the thresholds that training's rule has for one family of them, and a line about it.

    Each expert's threshold becomes the one over which it takes as many of the tokens as training's rule gives
    it, counted over the first `num_batches` micro-batches of the training data by this process alone.
    `settings` are the caller's own, which the config has already: no command among other shards is run.

    Raises: ValueError without thresholds, or if the training data cannot be read.
    """
    tree = config_tree(stored.config)
    mark_foreign(tree)
    own = [word for word in settings if word.startswith("data.")]
    config = make_config(tree, [*own, "parallel.expert_parallel=1"])
    if not config.moe.has_thresholds:
        raise ValueError(f"{stored.path} has no thresholds to calibrate; leave out --calibrate")
    networks = _load(stored, config, family=family)
    reader = open_reader(config, config.data.train)
    micro_batch = config.run.micro_batch
    plan = reader.plan(global_batch=micro_batch, micro_batch=micro_batch)
    start = plan.position(step=0, samples=0, by_bucket={})
    batches = list(islice(reader.batches(plan, start, dp_rank=0, dp_size=1), num_batches))
    before = _capacity(networks, config, batches, Selection("threshold"))
    layers = networks.denoiser.moe_layers()
    counts = LogitCounts(layers, device=networks.device)
    with counts.counting():
        wanted = _capacity(networks, config, batches, Selection("train", step=stored.step))
    is_shared = config.moe.router == "expert_race"
    thresholds = counts.quantiles(1 - wanted / config.moe.num_experts, is_shared=is_shared)
    for layer in layers:
        layer.router.calibrate(thresholds[layer.layer_index])
    after = _capacity(networks, config, batches, Selection("threshold"))
    buffers = {
        f"buffer/{name}": LazyTensor.of(buffer.detach().cpu())
        for name, buffer in networks.denoiser.canonical_buffers().items()
    }
    line = (
        f"thresholds calibrated anew by {counted(num_batches, 'micro-batch')} of training data: by them a "
        f"token of these gets {after:.3f} experts on average, by those before {before:.3f}"
    )
    return replace(stored, tensors={**stored.tensors, **buffers}), [line]


def _load(stored: StoredWeights, config: Config, *, family: str) -> Networks:
    context = join_ranks(expert_parallel=1)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.model"
        tokenizer.write_bytes(stored.tokenizer)
        networks = build_networks(
            config, tokenizer_path=tokenizer, groups=context.megatron_groups, device=context.device
        )
    fill_from(stored, networks.denoiser, family)
    return networks


@torch.no_grad()
def _capacity(networks: Networks, config: Config, batches: Sequence[Batch], selection: Selection) -> float:
    """The experts that a token of noisy training samples gets on average."""
    found = [
        average_capacity(
            denoising_loss(
                networks.denoiser,
                networks.objective,
                batch,
                latents_of(batch, networks.autoencoder, networks.device),
                condition_of(batch, networks),
                seed=config.run.seed,
                selection=selection,
            ).routings
        )
        for batch in batches
    ]
    return float(torch.stack(found).mean())
