"""What a job's name depends on, and which settings and suites go together."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffmoe_scale.config.evaluation import SuiteConfig
from diffmoe_scale.config.load import load_config
from diffmoe_scale.evaluation.harness.drawing import DrawnPicture, Part
from diffmoe_scale.evaluation.harness.job import Job, combinations, make_jobs
from diffmoe_scale.evaluation.harness.result import make_result
from diffmoe_scale.evaluation.harness.targets import Target
from diffmoe_scale.evaluation.suites.build import build_suite

CLASSES = ["model.conditioning=class", "model.num_classes=5"]


def target_of(*settings: str, identity: str = "weights") -> Target:
    config = load_config(None, ["sampling.steps=4", *settings])
    return Target(Path("run/checkpoints/step_00000007"), "run", 7, "ema", identity, config)


def job_of(*settings: str, **changes: object) -> Job:
    target = target_of(*settings)
    suite = build_suite(SuiteConfig(kind="scenes", prompts=2), seed=0)
    job = Job(target, suite, target.config.sampling, {}, 0)
    return replace(job, **changes)  # type: ignore[arg-type]  # fields of a Job


def test_a_job_s_name_tells_apart_what_a_picture_depends_on() -> None:
    job = job_of()
    sampling = job.sampling
    assert job.fingerprint == job_of().fingerprint and job.name.startswith("scenes-step00000007-ema-")
    assert replace(job, sampling=replace(sampling, batch=99)).fingerprint == job.fingerprint
    static = replace(job, sampling=replace(sampling, selection="static"))
    others = [
        static,
        replace(job, sampling=replace(static.sampling, batch=99)),  # top K of a batch
        replace(job, sampling=replace(sampling, steps=5)),
        replace(job, seed=1),
        replace(job, target=target_of(identity="others")),
        replace(job, suite=build_suite(SuiteConfig(kind="scenes", prompts=3), seed=0)),
    ]
    assert len({job.fingerprint, *(other.fingerprint for other in others)}) == 7
    long = replace(job, suite=replace(job.suite, name="x /" * 90))
    assert long.name.startswith("x_" * 30 + "-step")


def test_a_picture_is_asked_for_with_its_noise_and_a_label_as_a_number() -> None:
    job = job_of()
    requests = [job.request(place) for place in range(12)]
    assert [request.prompt for request in requests] == [prompt.text for prompt in job.suite.prompts]
    labels = build_suite(SuiteConfig(kind="labels", classes=5, pictures=2), seed=0)
    assert replace(job_of(*CLASSES), suite=labels, seed=3).request(9).prompt == 4


def test_settings_are_combined_each_with_each() -> None:
    assert list(combinations({"steps": [1, 2], "gamma": 0.5, "sampler": ["a", "b"]})) == [
        {"steps": steps, "gamma": 0.5, "sampler": sampler} for steps in (1, 2) for sampler in ("a", "b")
    ]
    assert list(combinations({})) == [{}]


@pytest.mark.parametrize(
    ("settings", "suite", "message"),
    [
        (CLASSES, SuiteConfig(kind="scenes", prompts=1), "is a class-conditional model"),
        ([], SuiteConfig(kind="labels", classes=5), "is a model of captions"),
        (
            CLASSES,
            SuiteConfig(kind="labels", classes=6),
            r"has 6 classes, but .* has 5; set suites\.N\.classes",
        ),
    ],
)
def test_captions_and_labels_go_to_models_of_theirs(
    settings: list[str], suite: SuiteConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_jobs([target_of(*settings)], [build_suite(suite, seed=0)], {}, seed=0)


def test_parts_of_a_job_array_take_turns() -> None:
    places = [0, 1, 2, 5, 6, 7]
    assert [Part(index, 3).of(places) for index in range(3)] == [[0, 6], [1, 7], [2, 5]]


def test_a_result_has_means_over_pictures_of_one_calibration() -> None:
    job = job_of(suite=build_suite(SuiteConfig(kind="labels", classes=2), seed=0))
    first = DrawnPicture("a", None, 1.0, 4.0, 2e9, 0.5, "gamma 0.5")
    second = DrawnPicture("b", None, 3.0, 8.0, 4e9, 1.5, "gamma 0.5")
    result = make_result(job, {0: first, 1: second}, {}, [], "wait")
    assert (result.capacity, result.calls, result.flops, result.seconds) == (2.0, 6.0, 3e9, 1.0)
    with pytest.raises(ValueError, match="were drawn with thresholds of different calibrations"):
        make_result(job, {0: first, 1: replace(second, thresholds="gamma 0.6")}, {}, [], "")
