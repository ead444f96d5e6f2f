"""Settings of sampling that contradict each other."""

import pytest

from diffmoe_scale.config.load import load_config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sampling.sampler=hein", "sampling.sampler"),
        ("sampling.sampler=ddim", "sampling.sampler is 'ddim'; expected one of euler, heun, adams_bashforth"),
        ("sampling.sampler=ancestral", "diffusion.kind is 'flow'"),
        ("diffusion.kind=ddpm sampling.sampler=heun", "expected one of euler, ddim, ancestral, dpm_solver"),
        ("diffusion.kind=ddpm sampling.sampler=dopri5", "diffusion.kind is 'ddpm'"),
        ("diffusion.kind=ddpm sampling.sampler=ancestral sampling.steps=1001", "at most 1000"),
        ("diffusion.kind=ddpm sampling.shift=sd3", "sampling.shift is 'sd3'; expected 'none'"),
        ("sampling.sampler=heun sampling.steps=1", "sampling.steps is 1; expected at least 2"),
        ("sampling.sampler=adams_bashforth sampling.steps=2", "expected at least 3"),
        ("sampling.sampler=dpm_solver sampling.steps=3", "at least 4 for sampling.sampler 'dpm_solver'"),
        ("sampling.sampler=heun sampling.fresh_noise=0.5", "sampling.fresh_noise is 0.5; expected 0"),
        ("sampling.guidance=nan", "sampling.guidance is nan"),
        ("sampling.guidance_channels=4", "at most model.channels (3), or 0 for all"),
        ("sampling.guidance_rescale=2", "sampling.guidance_rescale is 2"),
        ("sampling.guidance_start=0.2 sampling.guidance_end=0.5", "at most sampling.guidance_start (0.2)"),
        ("sampling.shift_factor=3", "1 unless sampling.shift is set"),
        ("sampling.sampler=dopri5 sampling.shift=flux", "which finds its own times"),
        ("sampling.tolerance=0", "sampling.tolerance is 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(words: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        load_config(None, words.split())
    assert message in str(refused.value), str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        "sampling.sampler=heun sampling.steps=2",
        "sampling.sampler=dopri5 sampling.steps=1",
        "diffusion.kind=ddpm sampling.sampler=ddim sampling.fresh_noise=1 sampling.steps=1000",
        "diffusion.kind=ddpm sampling.sampler=euler sampling.steps=1500",
        "sampling.shift=sd3 sampling.shift_factor=0.75",
    ],
)
def test_what_fits_is_taken(words: str) -> None:
    load_config(None, words.split())
