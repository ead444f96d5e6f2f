"""The transformer as a pipeline calls it: with its condition, and with guidance.

B samples, C H W latents.
"""

from collections.abc import Sequence
from typing import Any  # pipelines of diffusers, which carry no types

import torch
from torch import Tensor

from diffmoe_scale.sampling.guidance import guide, is_within


class Guided:
    """The network's output [B, C, H, W] for x and t, led away from the negative prompt (or from no class)
    at times between `guidance_end` and `guidance_start`."""

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str | int],
        negative: str,
        size: tuple[int, int],
        chosen: dict[str, Any],
    ) -> None:
        self.network, self.chosen = pipeline.transformer, chosen
        device, classes = pipeline._execution_device, pipeline.transformer.config.num_classes
        kind, what = (int, f"classes, 0 to {classes - 1}") if classes else (str, "captions")
        for prompt in prompts:
            is_odd = isinstance(prompt, bool) or not isinstance(prompt, kind)
            if is_odd or (isinstance(prompt, int) and not 0 <= prompt < classes):
                raise ValueError(f"{prompt!r:.80} is no prompt of this model; expected {what}")
        if negative and (classes or chosen["guidance"] == 1):
            why = "the model is one of classes" if classes else "guidance is 1"
            raise ValueError(f"a negative prompt has no effect: {why}")
        # An original of just this size, not cropped; also for the unconditional half, as in SDXL.
        sizes_BZ = torch.tensor([[*size, 0, 0, *size]] * len(prompts), dtype=torch.float32, device=device)
        given: dict[str, Any] = {"sizes": sizes_BZ}
        if classes:
            labels_B = torch.tensor(prompts, device=device)
            self.condition = given | {"class_labels": labels_B}
            self.unconditional = given | {"class_labels": torch.full_like(labels_B, classes)}
            return
        self.condition = given | self._text(pipeline, [str(prompt) for prompt in prompts], device)
        self.unconditional = given | self._text(pipeline, [negative] * len(prompts), device)

    def _text(self, pipeline: Any, prompts: list[str], device: torch.device) -> dict[str, Any]:
        dropped_B = torch.tensor([not prompt for prompt in prompts], device=device)
        return {"text": pipeline.encode(prompts), "dropped": dropped_B}

    def __call__(self, x_BCHW: Tensor, t: float) -> Tensor:
        value_BCHW = self._call(x_BCHW, t, self.condition)
        chosen = self.chosen
        channels = chosen["guidance_channels"] or x_BCHW.shape[1]
        start, end = chosen["guidance_start"], chosen["guidance_end"]
        if chosen["guidance"] == 1 or not is_within(t, start=start, end=end):
            return value_BCHW
        # A call of its own: rules that count over a batch must not mix the two halves.
        baseline_BCHW = self._call(x_BCHW, t, self.unconditional)
        guided_BCHW = guide(
            value_BCHW[:, :channels],
            baseline_BCHW[:, :channels],
            chosen["guidance"],
            rescale=chosen["guidance_rescale"],
        )
        return torch.cat([guided_BCHW, value_BCHW[:, channels:]], dim=1)

    def _call(self, x_BCHW: Tensor, t: float, condition: dict[str, Any]) -> Tensor:
        t_B = torch.full((x_BCHW.shape[0],), t, device=x_BCHW.device)
        rule = {key: self.chosen[key] for key in ("selection", "gamma", "capacity")}
        value_BCHW: Tensor = self.network(x_BCHW, t_B, **condition, **rule, return_dict=False)[0]
        return value_BCHW
