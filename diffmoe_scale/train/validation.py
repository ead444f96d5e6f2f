"""Looks at a model in training: the loss on held-out samples, and pictures of fixed captions."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any  # gathered Python objects

import torch
import torch.distributed as dist

from diffmoe_scale.config.run_directory import RunDirectory
from diffmoe_scale.config.schema import Config
from diffmoe_scale.data.reading.batch import Failure
from diffmoe_scale.data.reading.build import open_reader
from diffmoe_scale.data.reading.reader import Reader, iterate_captions
from diffmoe_scale.model.networks import Networks
from diffmoe_scale.moe.routing import Selection
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.parallel.waiting import wait_for_ranks
from diffmoe_scale.sampling.batch import generate_batches, number_requests
from diffmoe_scale.telemetry.picture_grid import GRID_COLUMNS, save_image_grid
from diffmoe_scale.train.fixed_times import FixedTimes, rules_of
from diffmoe_scale.train.loss import condition_of, denoising_loss, latents_of
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

NUM_DRAWN = 16
SEARCHED_CAPTIONS = 1000
NAMED_SAMPLES = 3


class Validation:
    """Both looks use the weights that the networks hold at that moment. Every rank takes part in both."""

    def __init__(
        self,
        config: Config,
        context: ParallelContext,
        directory: RunDirectory,
        networks: Networks,
        train_reader: Reader,
    ) -> None:
        self.config, self.context, self.directory, self.networks = config, context, directory, networks
        self._has_warned = False
        self.reader: Reader | None = None
        if config.data.validation:
            self.reader = open_reader(config, config.data.validation)
        self._train_reader = train_reader
        self.sampling = config.sampling
        if config.sampling.capacity != 0:
            # A calibration holds for one step's weights.
            self.sampling = replace(config.sampling, capacity=0.0)
            if context.is_main and config.telemetry.sample_every:
                logger.info(
                    "sample grids are drawn without sampling.capacity, which sample and evaluate calibrate"
                )

    @cached_property
    def prompts(self) -> list[str] | list[int]:
        """Chosen at the first grid: a run without grids need not read captions for them."""
        return choose_prompts(self.config, self.reader or self._train_reader)

    @torch.no_grad()
    def loss(self, *, has_fixed_times: bool = True) -> dict[str, float]:
        """`loss/validation`: the diffusion loss on the first `telemetry.validation_samples` held-out samples,
        with noise and times that never change; and, with `has_fixed_times`, the losses at fixed times
        (`FixedTimes.metrics`).

        Samples that cannot be used are left out and counted in a warning; {} if there is no other. Collective
        over the world.
        """
        assert self.reader is not None, "checked with the config"
        limit = min(self.config.telemetry.validation_samples, self.reader.num_samples)
        batches = self.reader.validation_batches(
            limit=limit,
            dp_rank=self.context.dp_group.rank(),
            dp_size=self.context.dp_group.size(),
            micro_batch=self.config.run.micro_batch,
        )
        total = torch.zeros(2, device=self.context.device)
        failures: dict[str, Failure] = {}
        for batch in batches:
            failures |= {failure.key: failure for failure in batch.failures}
            latents_BCHW = latents_of(batch, self.networks.autoencoder, self.context.device)
            loss = denoising_loss(
                self.networks.denoiser,
                self.networks.objective,
                batch,
                latents_BCHW,
                condition_of(batch, self.networks),
                seed=self.config.run.seed + 1,
                selection=Selection(rule="train"),
            )
            # The mean counts rows of weight 0; undone here, since their number differs between ranks.
            total += torch.stack(
                [loss.parts["loss/diffusion"] * len(batch.keys), batch.weight_B.sum().to(total)]
            )
        # A rank may have read for longer than parallel.timeout_s.
        wait_for_ranks(self.context.waiting_group)
        dist.all_reduce(total, group=self.context.dp_group)
        num_usable = round(float(total[1]))
        self._report_unusable(limit - num_usable, limit, failures)
        if not num_usable:
            return {}
        mean = {"loss/validation": float(total[0] / total[1])}
        return mean | (self._losses_at_fixed_times() if has_fixed_times else {})

    def _losses_at_fixed_times(self) -> dict[str, float]:
        """Of the first `telemetry.validation_time_samples`, by the rule of training and by that of sampling.
        Collective over the world."""
        assert self.reader is not None
        limit = min(self.config.telemetry.validation_time_samples, self.reader.num_samples)
        if limit == 0:
            return {}
        found = FixedTimes(self.networks, rules_of(self.config), seed=self.config.run.seed + 1)
        for batch in self.reader.validation_batches(
            limit=limit,
            dp_rank=self.context.dp_group.rank(),
            dp_size=self.context.dp_group.size(),
            micro_batch=self.config.run.micro_batch,
        ):
            found.add(batch)
        wait_for_ranks(self.context.waiting_group)
        sums = found.sums()
        dist.all_reduce(sums, group=self.context.dp_group)
        return found.metrics(sums)

    def _report_unusable(self, count: int, limit: int, failures: Mapping[str, Failure]) -> None:
        """Warn of `count` samples; once, unless all are unusable. `failures` are this rank's, by key."""
        if not self.context.is_main or not count or (self._has_warned and count < limit):
            return
        self._has_warned = True
        effect = "loss/validation is the mean over the others"
        if count == limit:
            effect = "there is no loss/validation"
        named = "; ".join(
            f"{key}: {failure.reason}" for key, failure in list(failures.items())[:NAMED_SAMPLES]
        )
        logger.warning(
            "unusable are %d of %s, so %s%s; repair the shards of data.validation",
            count,
            counted(limit, "validation sample"),
            effect,
            f" ({named})" if named else "",
        )

    def draw(self, step: int) -> Path:
        """Pictures of the run's captions as `samples/step_N.png`, each rank a share of them. Collective over
        the world."""
        ranks = self.context.dp_group.size()
        prompts = self.prompts
        # A rank may have searched for captions, and then drawn and written, for longer than
        # parallel.timeout_s.
        wait_for_ranks(self.context.waiting_group)
        share = math.ceil(len(prompts) / ranks)
        # Expert-parallel ranks step together, so each draws equally many; the repeated last ones are dropped.
        padded = (prompts * ranks)[: share * ranks]
        first = share * self.context.dp_group.rank()
        mine = padded[first : first + share]
        requests = number_requests(mine, seed=self.config.run.seed, first_index=first)
        batches = generate_batches(self.networks, requests, self.sampling, has_progress=False)
        images_BCHW = torch.cat([batch.images_BCHW.cpu() for batch in batches])
        wait_for_ranks(self.context.waiting_group)
        parts: list[Any] = [None] * ranks
        dist.all_gather_object(parts, images_BCHW, group=self.context.control_group)
        path = self.directory.samples / f"step_{step:08d}.png"
        if self.context.is_main:
            try:
                path.parent.mkdir(exist_ok=True)
                save_image_grid(
                    torch.cat(parts)[: len(prompts)],
                    [str(prompt) for prompt in prompts],
                    path,
                    columns=GRID_COLUMNS,
                )
            except OSError as error:  # a full disk must not end the run for a picture's sake
                logger.warning("%s was not written: %s", path, error)
        wait_for_ranks(self.context.waiting_group)
        return path


def choose_prompts(config: Config, reader: Reader) -> list[str] | list[int]:
    """`telemetry.sample_prompts`, else captions spread over the reader's shards; in class mode the first
    labels."""
    if config.model.conditioning == "class":
        return list(range(min(NUM_DRAWN, config.model.num_classes)))
    if config.telemetry.sample_prompts:
        return list(config.telemetry.sample_prompts)
    found = list(iterate_captions(reader, SEARCHED_CAPTIONS))
    return found[:: max(1, len(found) // NUM_DRAWN)][:NUM_DRAWN] or [""]
