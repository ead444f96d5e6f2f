"""Run directories with everything that a report shows, and what a page refers to."""

import html.parser
import json
from pathlib import Path

import numpy as np
import torch

from diffmoe_scale.config.load import dump_config, load_config
from diffmoe_scale.telemetry.metrics import MetricsWriter
from diffmoe_scale.telemetry.picture_grid import save_image_grid

LAYERS, EXPERTS, TIMES = (1, 3, 5, 7), 8, 20


def make_evaluation(step: int) -> dict:
    generator = np.random.default_rng(0)
    time_T = np.linspace(1, 0, TIMES, endpoint=False)
    load_TLE = np.clip(
        generator.normal(0.95, 0.25, (1, len(LAYERS), EXPERTS))
        + 0.5 * generator.normal(0, 1, (1, len(LAYERS), EXPERTS)) * (time_T[:, None, None] - 0.5),
        0,
        5,
    )
    scores = {
        "single_object": (0.92, 0.17),
        "two_objects": (0.4, 0.04),
        "counting": (0.33, 0.0),
        "colors": (0.77, 0.03),
        "position": (0.12, 0.02),
        "color_attribution": (0.06, 0.0),
    }
    return {
        "checkpoint": "runs/demo/checkpoints/step_00002000",
        "step": step,
        "prompts_per_suite": 96,
        "sampling": {"steps": TIMES, "guidance": 3.0, "selection": "threshold"},
        "scores": {
            name: {"score": score, "shuffled": shuffled, "prompts": 96}
            for name, (score, shuffled) in scores.items()
        },
        "capacity": {
            "average": float(load_TLE.mean()),
            "times": time_T.tolist(),
            "by_time": load_TLE.mean((1, 2)).tolist(),
            "layers": list(LAYERS),
            "load_TLE": load_TLE.tolist(),
        },
    }


def write_metrics(directory: Path, *, steps: int, every: int) -> None:
    generator = np.random.default_rng(1)
    with MetricsWriter(directory / "metrics.jsonl", resume_step=0) as writer:
        for step in range(every, steps + 1, every):
            metrics: dict[str, float | list[float]] = {
                "loss/diffusion": float(0.15 + 0.8 * np.exp(-step / 300) + generator.normal(0, 0.02)),
                "loss/predictor": float(0.25 + 0.4 * np.exp(-step / 200) + generator.normal(0, 0.01)),
                "optimizer/learning_rate": 1e-3 * min(1, step / 200) * min(1, (steps - step) / (0.3 * steps)),
                "optimizer/gradient_norm": float(generator.lognormal(-1, 0.3)),
                "throughput/images_per_s": float(300 + generator.normal(0, 8)),
                "time/step_s": 0.2,
                "time/data_s": 0.005,
                "memory/peak_gib": 1.25,
                "data/bad_samples": float(step == 10 * every),
                "data/lost/broken_header": 3.0,
            }
            metrics |= {
                f"loss/by_time/{decile}": float(
                    0.1 + 0.05 * decile + np.exp(-step / 250) + generator.normal(0, 0.02)
                )
                for decile in range(10)
            }
            metrics |= {
                f"moe/threshold/{layer}": [0.3 * (1 - np.exp(-step / 150)) + 0.01 * layer] * EXPERTS
                for layer in LAYERS
            }
            metrics |= {f"moe/load/{layer}": [1.0] * EXPERTS for layer in LAYERS}
            metrics |= {
                f"moe/health/{figure}": [0.1 * layer for layer in LAYERS]
                for figure in ("effective_experts", "overlap", "uncovered", "deployed_capacity")
            }
            metrics |= {
                **{f"moe/health/capacity_by_time/{tenth}": 0.9 for tenth in range(9)},
                **{f"moe/health/calibration/{tenth}": 0.1 * tenth for tenth in range(10)},
                "moe/health/capacity_conditional": 1.25,
            }
            if step == 10 * every:
                metrics |= {"data/bad/corrupt": 1.0}
            if step in (every, 2 * every):
                metrics |= {"data/note/cmyk": 1000.0}
            if step % (10 * every) == 0:
                metrics["loss/validation"] = float(0.16 + 0.8 * np.exp(-step / 300))
            writer.write(step, step * 64, metrics)


def make_run(directory: Path, *, steps: int = 400, every: int = 10) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(dump_config(load_config(None, [f"run.steps={steps}"])))
    write_metrics(directory, steps=steps, every=every)
    (directory / "log.txt").write_text(
        "2026-11-24 10:00:00 INFO a: fine\n"
        "2026-11-24 10:00:01 WARNING b: shard-0.tar/<17> cannot be decoded\n"
    )
    together = {str(layer): {"together": np.eye(EXPERTS).flatten().tolist()} for layer in LAYERS}
    (directory / "experts.json").write_text(json.dumps({"step": steps, "blocks": together}))
    (directory / "evaluation.json").write_text(json.dumps(make_evaluation(steps)))
    samples = directory / "samples"
    samples.mkdir()
    images_BCHW = torch.nn.functional.interpolate(
        torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, size=(32, 32)
    )
    save_image_grid(
        images_BCHW,
        [f"a red circle left of square {n}" for n in range(8)],
        samples / f"step_{steps:08d}.png",
        columns=8,
    )
    save_image_grid(
        images_BCHW,
        ["three green triangles"] * 8,
        samples / "evaluation-counting.png",
        columns=8,
        passed=[True, False] * 4,
    )
    return directory


class PageChecker(html.parser.HTMLParser):
    """Open tags, and every address that the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag


def check_page(text: str) -> PageChecker:
    checker = PageChecker()
    checker.feed(text)
    assert checker.open_tags == []
    return checker
