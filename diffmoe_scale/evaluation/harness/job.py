"""One cell of the evaluation: weights, suite and settings of sampling; its name says what was drawn."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any  # settings of any type

from diffmoe_scale.config.sampling import SamplingConfig
from diffmoe_scale.evaluation.harness.targets import Target
from diffmoe_scale.evaluation.suites.suite import Suite
from diffmoe_scale.sampling.batch import Request
from diffmoe_scale.sampling.generate import check_requests, override_sampling
from diffmoe_scale.sampling.metadata import NOT_SEEN


@dataclass(frozen=True)
class Job:
    """The pictures of a suite by some weights. `varied` are the settings that the evaluation names."""

    target: Target
    suite: Suite
    sampling: SamplingConfig
    varied: Mapping[str, Any]
    seed: int

    @property
    def fingerprint(self) -> str:
        """Of everything that a picture depends on. Settings at their default are left out: a setting that a
        later version adds does not make done work undone."""
        defaults = asdict(SamplingConfig())
        settings = {
            name: value
            for name, value in asdict(self.sampling).items()
            if name not in NOT_SEEN and value != defaults[name]
        }
        content = [self.target.identity, self.suite.fingerprint, settings, self.seed]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        suite = re.sub(r"[^A-Za-z0-9.]+", "_", self.suite.name)[:60]
        return f"{suite}-step{self.target.step:08d}-{self.target.weights}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """For progress and errors."""
        varied = "".join(f", {name} {value}" for name, value in self.varied.items())
        return f"{self.suite.name} of step {self.target.step} ({self.target.weights}{varied})"

    def folder(self, output: Path) -> Path:
        return output / self.name

    def request(self, place: int) -> Request:
        return Request(self.suite.prompt_of(place).text, self.seed, self.suite.noise_of(place))


def make_jobs(
    targets: Sequence[Target], suites: Sequence[Suite], sampling: Mapping[str, Any], *, seed: int
) -> list[Job]:
    """All combinations, the weights outermost. Raises: ValueError for settings or prompts that do not fit one
    of the models, naming it."""
    jobs = []
    for target in targets:
        if target.config.model.conditioning != "text":
            raise ValueError(
                f"{target.path} is a class-conditional model (model.conditioning=class), and suites are "
                "captions; leave it out of evaluation.checkpoints"
            )
        for varied in combinations(sampling):
            try:
                settings = override_sampling(target.config.sampling, varied)
                config = replace(target.config, sampling=settings)
                check_requests([Request("", seed)], config, settings)
            except ValueError as error:
                raise ValueError(f"{target.path} cannot be sampled so: {error}") from error
            jobs += [Job(target, suite, settings, varied, seed) for suite in suites]
    return jobs


def combinations(sampling: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The combinations of the values of each setting: one value, or a list."""
    values = [value if isinstance(value, list) else [value] for value in sampling.values()]
    for chosen in itertools.product(*values):
        yield dict(zip(sampling, chosen, strict=True))
