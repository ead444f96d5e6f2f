"""The evaluation of a config file, from its targets to results.jsonl. It can be stopped at any time."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from diffmoe_scale.config.check import RunError
from diffmoe_scale.config.evaluation import HarnessConfig
from diffmoe_scale.evaluation.harness.drawing import Part, draw, missing_places
from diffmoe_scale.evaluation.harness.job import Job, make_jobs
from diffmoe_scale.evaluation.harness.measuring import MetricsKeeper
from diffmoe_scale.evaluation.harness.result import JobResult, write_results
from diffmoe_scale.evaluation.harness.scoring import ask, describe_judge, score, unasked_places
from diffmoe_scale.evaluation.harness.targets import Target, find_targets, is_there, unfinished_runs
from diffmoe_scale.evaluation.judge.build import build_judge
from diffmoe_scale.evaluation.judge.judge import Judge
from diffmoe_scale.evaluation.suites.build import build_suite
from diffmoe_scale.evaluation.suites.suite import Suite
from diffmoe_scale.parallel.context import ParallelContext
from diffmoe_scale.sampling.loading import Pipeline, join_ranks, load_pipeline
from diffmoe_scale.sampling.ranks import Ranks
from diffmoe_scale.words import counted

logger = logging.getLogger(__name__)

Report = Callable[[Sequence[JobResult]], None]


@dataclass
class Harness:
    """What all targets share. Its methods are collective over the ranks."""

    config: HarnessConfig
    part: Part
    context: ParallelContext
    suites: Sequence[Suite]
    judge: Judge | None
    metrics: MetricsKeeper
    report: Report
    """Called on the main rank with all results at first and whenever there are new ones."""
    gone: dict[Path, str] = field(default_factory=dict)
    """Checkpoints that were removed before their pictures were there."""
    _reported: Sequence[JobResult] | None = None

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.context)

    @property
    def output(self) -> Path:
        return Path(self.config.evaluation.output)

    def pass_over(self, *, may_be_empty: bool) -> None:
        """Do what is not there yet, checkpoint by checkpoint."""
        settings = self.config.evaluation
        jobs = self.ranks.of_main(
            lambda: make_jobs(
                find_targets(settings.checkpoints, settings.weights, may_be_empty=may_be_empty),
                self.suites,
                self.config.sampling,
                seed=settings.seed,
            )
        )
        self.ranks.of_main(lambda: self._check(jobs))
        for target, group in groupby(jobs, key=lambda job: job.target):
            self.evaluate(target, list(group))
            self.ranks.of_main(self._report)
        self.ranks.of_main(self._report)  # also without a checkpoint

    def _check(self, jobs: Sequence[Job]) -> None:
        """Before hours of drawing. Raises: ValueError for what metrics or calibrations lack, OSError."""
        self.metrics.check(jobs)
        for job in jobs:
            if missing_places(job, job.folder(self.output), self.part):
                job.check_calibration()

    def _report(self) -> None:
        """On the main rank; at first, and where results are new: a watch looks many times."""
        results = write_results(self.output)
        if results != self._reported:
            self.report(results)
            self._reported = results

    def evaluate(self, target: Target, jobs: Sequence[Job]) -> None:
        """Draw, judge and score what is missing of one checkpoint's weights."""
        missing = self.ranks.of_main(
            lambda: [missing_places(job, self._folder(job), self.part) for job in jobs]
        )
        count = sum(map(len, missing))
        if count:
            pipeline = self._load(target)
            if pipeline is None:
                return
            logger.info("%s (%s): %s to draw", target.path, target.weights, counted(count, "picture"))
            for job, places in zip(jobs, missing, strict=True):
                if places:
                    draw(pipeline, job, self._folder(job), places, self.part, self.ranks)
        self.ranks.gather(None)  # all pictures are on the disk
        self._judge(jobs)
        # Scores are made anew from the records: results of a benchmark's own code may have come.
        self.ranks.of_main(lambda: self._score(jobs))

    def _folder(self, job: Job) -> Path:
        folder = job.folder(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _load(self, target: Target) -> Pipeline | None:
        """None if the checkpoint was removed. Raises: ValueError if it is damaged."""
        pipeline, problem = None, None
        try:
            pipeline = load_pipeline(
                target.path,
                weights=target.weights,
                settings=[f"parallel.expert_parallel={self.config.evaluation.expert_parallel}"],
                context=self.context,
            )
        except (ValueError, RunError, OSError) as error:
            problem = error
        has_problem = any(self.ranks.gather(problem is not None))
        if self.ranks.of_main(lambda: is_there(target)):
            if problem is not None:
                raise problem
            if has_problem:
                raise RunError(f"{target.path} could not be loaded on another rank; its error says why")
            return pipeline
        sentence = f"{target.path} was removed before it was evaluated; what was drawn of it is kept"
        logger.warning("%s", sentence)
        self.gone[target.path] = sentence
        return None

    def _judge(self, jobs: Sequence[Job]) -> None:
        judge = self.judge
        if judge is None:
            return
        unasked = self.ranks.of_main(
            lambda: [unasked_places(job, self._folder(job), judge.fingerprint, self.part) for job in jobs]
        )
        if any(unasked):
            self.ranks.of_main(lambda: describe_judge(self.output, judge))
        for job, places in zip(jobs, unasked, strict=True):
            if places:
                logger.info("%s: %s to judge", job.title, counted(len(places), "picture"))
                rank = self.context.rank
                ask(judge, job, self._folder(job), places, self.part, ranks=self.ranks, rank=rank)
        self.ranks.gather(None)  # all answers are on the disk

    def _score(self, jobs: Sequence[Job]) -> None:
        """On the main rank."""
        judge = self.judge.fingerprint if self.judge else self.config.judge.fingerprint
        for job in jobs:
            folder = self._folder(job)
            if missing_places(job, folder, Part()):
                logger.info("%s waits for other parts", job.title)
            else:
                score(job, folder, judge=judge, metrics=self.metrics.measure(job, folder))


def run_evaluation(config: HarnessConfig, *, part: Part, watch: bool, report: Report) -> list[str]:
    """Evaluate all that the config names; with `watch` go on until the runs have ended. What is said of
    checkpoints that were removed meanwhile. Collective over the ranks that the launcher started.

    Raises: ValueError for settings, suites or checkpoints that do not fit, RunError, OSError.
    """
    context = join_ranks(config.evaluation.expert_parallel)
    ranks = Ranks(context)
    suites = ranks.of_main(lambda: _suites(config))
    has_questions = any(suite.questions(prompt) for suite in suites for prompt in range(len(suite.prompts)))
    judge = build_judge(config.judge, context.device) if has_questions else None
    harness = Harness(
        config, part, context, suites, judge, MetricsKeeper(config.metrics, context.device), report
    )
    ranks.of_main(lambda: harness.output.mkdir(parents=True, exist_ok=True))
    while True:
        unfinished = ranks.of_main(lambda: unfinished_runs(config.evaluation.checkpoints)) if watch else []
        harness.pass_over(may_be_empty=watch)
        if not unfinished:
            return list(harness.gone.values())
        time.sleep(config.evaluation.poll_s)


def _suites(config: HarnessConfig) -> list[Suite]:
    suites = [build_suite(suite, seed=config.evaluation.seed) for suite in config.suites]
    names = [suite.name for suite in suites]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"two suites are called {name!r}; give one of them a suites.{number}.name")
        if not suites[number].prompts:
            raise ValueError(f"suites.{number}: {config.suites[number].file} holds no prompt")
    return suites
