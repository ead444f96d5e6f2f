"""Pictures of a folder's pipeline are those of our own sampler, from the same noise."""

import subprocess
import sys
from pathlib import Path
from typing import Any  # pipelines of diffusers

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, FlowMatchHeunDiscreteScheduler
from safetensors.torch import load_file, save_file

from diffmoe_scale.convert.export import write_export
from diffmoe_scale.convert.pipeline_code import Code, digest, read_code
from diffmoe_scale.sampling.batch import generate_batch, number_requests
from diffmoe_scale.sampling.generate import override_sampling
from diffmoe_scale.sampling.loading import load_pipeline
from tests.convert.pipelines import JOINT, TEXT, draw_weights, write_pipeline

SCRIPT = Path(__file__).parents[2] / "docs" / "sample_diffusers.py"
SAME = 1e-4
PROMPTS = ["a red circle", "two blue squares and a café", ""]
SEED = 5
STEPS = ["sampling.steps=5"]
SAMPLE = ["diffusion.prediction=sample", "diffusion.loss=sample"]


@pytest.fixture(autouse=True)
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Code of folders is copied to a place of the test alone."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(cache))
    return cache


def load(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_ours(
    settings: list[str], tokenizer: Path, folder: Path, negative: str = "", **sampling: Any
) -> torch.Tensor:
    """Pictures in [0, 1] by our own sampler, and the folder of the same model beside them."""
    stored = draw_weights(settings, tokenizer)
    write_export(stored, folder / "a.safetensors")
    write_pipeline(stored, folder / "diffusers")
    model = load_pipeline(folder / "a.safetensors")
    chosen = override_sampling(model.config.sampling, sampling)
    prompts = [0, 3, 4] if stored.config.model.conditioning == "class" else PROMPTS
    requests = number_requests(prompts, seed=SEED, negative_prompt=negative)
    return generate_batch(model.networks, requests, chosen).images_BCHW / 2 + 0.5


CASES: dict[str, list[str]] = {
    "classes": STEPS,
    "text": [*TEXT, *STEPS],
    "joint, sizes": [*JOINT, *STEPS, "model.size_conditioning=true", "sampling.guidance_rescale=0.7"],
    "interval of guidance": [*STEPS, "sampling.guidance_start=0.9", "sampling.guidance_end=0.3"],
    "guidance of one channel": [*STEPS, "sampling.guidance_channels=1"],
    "no guidance": [*STEPS, "sampling.guidance=1"],
    "predicted sample": [*SAMPLE, *STEPS],
    "many steps of a predicted sample": [*SAMPLE, "sampling.steps=30"],
    "fresh noise": [*STEPS, "sampling.fresh_noise=0.5"],
    "fresh noise of a predicted sample": [*SAMPLE, *STEPS, "sampling.fresh_noise=1.0"],
    "ddpm": ["diffusion.kind=ddpm", "sampling.steps=8"],
    "ddpm, steps that do not divide 1000": ["diffusion.kind=ddpm", "sampling.steps=7"],
    "ddpm, fresh noise": ["diffusion.kind=ddpm", "sampling.steps=8", "sampling.fresh_noise=0.5"],
    "ddim": ["diffusion.kind=ddpm", *STEPS, "sampling.sampler=ddim"],
    "ddim with noise": ["diffusion.kind=ddpm", *STEPS, "sampling.sampler=ddim", "sampling.fresh_noise=0.5"],
    "shift": [*STEPS, "sampling.shift=constant", "sampling.shift_factor=3"],
    "shift of sd3": [*STEPS, "sampling.shift=sd3", "sampling.shift_factor=4"],
    "shift of flux": [*STEPS, "sampling.shift=flux"],
    "expert choice": [*STEPS, "moe.router=expert_choice"],
    "token choice": [*STEPS, "moe.router=token_choice"],
    "interval": [*STEPS, "sampling.selection=interval", "sampling.gamma=0.4"],
    "static": [*STEPS, "sampling.selection=static", "moe.capacity=1.5"],
}


@pytest.mark.parametrize("name", CASES)
def test_pictures_are_those_of_our_sampler(name: str, tmp_path: Path, tokenizer: Path) -> None:
    expected = draw_ours(CASES[name], tokenizer, tmp_path)
    pipeline = load(tmp_path / "diffusers")
    prompts = [0, 3, 4] if pipeline.transformer.config.num_classes else PROMPTS
    found = pipeline(prompts, seed=SEED, output_type="pt").images
    assert (found - expected).abs().max() < SAME
    assert found.std() > 0.05


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"steps": 3, "guidance": 1.5}, {}),
        ({"height": 8, "width": 24}, {}),
        ({"selection": "threshold_count"}, {}),
        ({"selection": "static"}, {"capacity": 1.0}),
        ({"selection": "interval", "gamma": 0.45}, {}),
    ],
)
def test_a_call_s_settings_replace_those_of_the_folder(
    ours: dict[str, Any], theirs: dict[str, Any], tmp_path: Path, tokenizer: Path
) -> None:
    expected = draw_ours([*TEXT, *STEPS], tokenizer, tmp_path, negative="a square", **ours)
    pipeline = load(tmp_path / "diffusers")
    found = pipeline(PROMPTS, seed=SEED, negative_prompt="a square", output_type="pt", **ours, **theirs)
    assert (found.images - expected).abs().max() < SAME


def test_more_capacity_is_more_experts_a_token(tmp_path: Path, tokenizer: Path) -> None:
    write_pipeline(draw_weights(STEPS, tokenizer), tmp_path / "a")
    pipeline, taken = load(tmp_path / "a"), []
    experts = pipeline.transformer.blocks[1].feed_forward.experts
    experts.register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0])))
    for capacity in (0.5, 1.0, 2.0):
        pipeline([1, 2], steps=1, guidance=1, selection="static", capacity=capacity)
    assert taken == [16, 32, 64]  # of 2 pictures of 16 tokens


def test_the_script_of_the_docs_runs_without_this_package(tmp_path: Path, tokenizer: Path) -> None:
    expected = draw_ours([*TEXT, *SAMPLE, *STEPS, "sampling.fresh_noise=1.0"], tokenizer, tmp_path)
    output = tmp_path / "pictures"
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['megatron', 'deepspeed', 'diffmoe_scale']))\n"
        f"sys.argv = ['', {str(tmp_path / 'diffusers')!r}, {str(output)!r}, *{PROMPTS!r}, '--seed', '5']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    environment = {"HF_MODULES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (torch.load(output / "pictures.pt", weights_only=True) - expected).abs().max() < SAME
    assert sorted(path.name for path in output.glob("*.png")) == ["000.png", "001.png", "002.png"]


def test_auto_model_loads_the_transformer(tmp_path: Path, tokenizer: Path) -> None:
    write_pipeline(draw_weights([], tokenizer), tmp_path / "a")
    model = AutoModel.from_pretrained(str(tmp_path / "a" / "transformer"), trust_remote_code=True)
    x_BCHW = torch.randn(2, 3, 16, 16)
    found = model(x_BCHW, torch.tensor([0.5, 1.0]), class_labels=torch.tensor([0, 5])).sample
    assert found.shape == x_BCHW.shape and found.isfinite().all()


@pytest.mark.parametrize("component", ["transformer", "text_encoder"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_diffusers_refuses_other_weights(
    component: str, is_missing: bool, tmp_path: Path, tokenizer: Path
) -> None:
    """By itself it would draw with random numbers."""
    write_pipeline(draw_weights(TEXT, tokenizer), tmp_path / "a")
    path = tmp_path / "a" / component / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.startswith("blocks.0"))
    others = {name: state.pop(name)} if is_missing else {**state, "more": torch.zeros(2)}
    save_file(state if is_missing else others, path, metadata={"format": "pt"})
    said = f"lacks 1 weights, such as {name}" if is_missing else "has no place for 1 weights, such as more"
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "a")


def test_two_folders_of_other_code_each_run_their_own(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = draw_weights(STEPS, tokenizer)
    write_pipeline(stored, tmp_path / "a")
    own = read_code("transformer")
    text = own.text.replace("sample = unpatchify(", "sample = -unpatchify(")
    other = Code(f"diffmoe_transformer_{digest(text)}", text)
    monkeypatch.setattr(
        "diffmoe_scale.convert.pipeline.read_code",
        lambda name: other if name == "transformer" else read_code(name),
    )
    write_pipeline(stored, tmp_path / "b")
    first, second = load(tmp_path / "a"), load(tmp_path / "b")
    call: dict[str, Any] = {"class_labels": torch.tensor([1]), "return_dict": False}
    inputs = torch.randn(1, 3, 16, 16), torch.tensor([0.5])
    assert torch.equal(first.transformer(*inputs, **call)[0], -second.transformer(*inputs, **call)[0])


def test_experts_apart_draw_the_same_pictures(tmp_path: Path, tokenizer: Path) -> None:
    stored = draw_weights(STEPS, tokenizer)
    for layout in ("stacked", "separate"):
        write_pipeline(stored, tmp_path / layout, layout=layout)
    apart = load(tmp_path / "separate")
    experts = apart.transformer.blocks[1].feed_forward.experts
    assert isinstance(experts[3].w_in, torch.nn.Linear)
    pictures = [pipeline([1, 2], output_type="pt").images for pipeline in (apart, load(tmp_path / "stacked"))]
    assert (pictures[0] - pictures[1]).abs().max() < SAME


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"prompt": "a circle"}, "'a circle' is no prompt of this model; expected classes, 0 to 4"),
        ({"prompt": [1, 5]}, "5 is no prompt"),
        ({"prompt": 1, "negative_prompt": "x"}, "has no effect: the model is one of classes"),
        ({"prompt": 1, "height": 18}, "pictures are 18 x 16 pixels; expected multiples of 4"),
        ({"prompt": 1, "latents": torch.zeros(2, 3, 16, 16)}, r"latents are \(2, 3, 16, 16\); expected"),
        ({"prompt": 1, "guidance_scale": 2.0}, "guidance_scale: expected settings of steps, guidance"),
        ({"prompt": 1, "selection": "best"}, "selection is 'best'; expected one of threshold"),
        ({"prompt": 1, "gamma": 2.0}, "gamma is 2.0; expected 0 to 1"),
        ({"prompt": 1, "capacity": 2.0}, "capacity is 2.0 but selection is 'threshold'"),
        ({"prompt": 1, "capacity": 0.01, "selection": "static"}, "0 tokens an expert"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    call: dict[str, Any], said: str, tmp_path: Path, tokenizer: Path
) -> None:
    write_pipeline(draw_weights([], tokenizer), tmp_path / "a")
    pipeline = load(tmp_path / "a")
    with pytest.raises(ValueError, match=said):
        pipeline(**call)


MEAN, DEVIATION = 0.1, 0.2


def gaussian_velocity(x_BCHW: torch.Tensor, t_B: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
    """Of the flow to data of this mean and deviation; it takes noise z to mean + deviation * z."""
    t, variance = t_B[:, None, None, None], DEVIATION**2
    slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
    return (slope * (x_BCHW - (1 - t) * MEAN) - MEAN,)


def test_another_scheduler_of_diffusers_samples(tmp_path: Path, tokenizer: Path) -> None:
    """Heun's steps come nearer to where the flow leads than twice as many of Euler's."""
    write_pipeline(draw_weights([], tokenizer), tmp_path / "a")
    pipeline = load(tmp_path / "a")
    pipeline.transformer.forward = gaussian_velocity
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = ((MEAN + DEVIATION * noise) / 2 + 0.5).clamp(0, 1)
    call: dict[str, Any] = {"latents": noise, "guidance": 1.0, "output_type": "pt"}
    euler = pipeline([1], steps=80, **call).images
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    heun = pipeline([1], steps=40, **call).images
    assert (heun - exact).abs().max() < (euler - exact).abs().max() / 4 < 0.01
