"""Pictures from captions or classes, as a pipeline of diffusers.

B samples, C H W latents or pictures, L text tokens, T text width, V pooled width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar  # components of diffusers and transformers, which carry no types

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from diffmoe_scale.convert.shipped.guided import Guided
from diffmoe_scale.convert.shipped.steps import Steps
from diffmoe_scale.diffusion.noise import sample_noise
from diffmoe_scale.sampling.batch import STEP_SEED

Text = tuple[Tensor, Tensor, Tensor | None]
"""Tokens [B, L, T] of one encoder, their mask [B, L], and the pooled feature [B, V] or None."""
SAMPLING = {
    "steps": 20,
    "guidance": 3.0,
    "guidance_start": 1.0,
    "guidance_end": 0.0,
    "guidance_rescale": 0.0,
    "guidance_channels": 0,
    "fresh_noise": 0.0,
    "eta": 0.0,
    "spacing": "even",
    "shift": "none",
    "shift_factor": 1.0,
    "selection": "",
    "gamma": 0.5,
    "capacity": 0.0,
}
LATENTS = {"factor": 1, "shift": [0.0], "scale": [1.0], "patch": 1, "is_video": False, "precision": "fp32"}


class DiffMoEPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers carries no types
    """`sampling` are the values of what a call leaves out; `encoders` say how each text encoder is called
    (`layer`, 0 for one with code of this folder; `precision`); latents are (z - shift) * scale."""

    _optional_components: ClassVar[list[str]] = [
        "vae",
        *(f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3", "_4")),
    ]
    config: Any
    transformer: Any
    scheduler: Any
    vae: Any
    progress_bar: Any
    register_modules: Any
    register_to_config: Any
    maybe_free_model_hooks: Any
    _execution_device: torch.device

    # diffusers loads only what has no default.
    def __init__(
        self,
        transformer: Any,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        text_encoder_3: Any,
        tokenizer_3: Any,
        text_encoder_4: Any,
        tokenizer_4: Any,
        sampling: dict[str, Any] | None = None,
        encoders: list[dict[str, Any]] | None = None,
        latents: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
            text_encoder_4=text_encoder_4,
            tokenizer_4=tokenizer_4,
        )
        self.register_to_config(
            sampling={**SAMPLING, **(sampling or {})},
            encoders=list(encoders or []),
            latents={**LATENTS, **(latents or {})},
        )
        for number, encoder in enumerate(self.config.encoders):
            if encoder["precision"] == "bf16":  # as in training, where its features come from
                network = getattr(self, _name("text_encoder", number))
                # Not the buffers of transformers' networks: rotary frequencies would lose places.
                for weight in network.parameters():
                    weight.data = weight.data.to(torch.bfloat16)
        if self.config.latents["precision"] == "bf16":
            vae.to(torch.bfloat16)
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | int | Sequence[str | int],
        *,
        negative_prompt: str = "",
        seed: int = 0,
        latents: Tensor | None = None,
        height: int = 0,
        width: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Pictures of captions, or of classes by their numbers.

        Picture i starts from the noise of (seed, i) alone, as `diffmoe_scale.sample` draws it, or from
        `latents` [B, C, H, W]. `sampling` are steps, guidance, guidance_start, guidance_end (times, 1 is
        noise), guidance_rescale, guidance_channels (how many are guided; 0 is all), fresh_noise, eta and
        spacing (of DDIM), shift, shift_factor, and selection (`threshold`, `threshold_count`, `interval` by
        `gamma`, `static` by `capacity`). `output_type` is pil, np or pt.

        Raises: ValueError for what the model cannot draw.
        """
        if unknown := sampling.keys() - SAMPLING.keys():
            raise ValueError(f"{', '.join(sorted(unknown))}: expected settings of {', '.join(SAMPLING)}")
        chosen = {**self.config.sampling, **sampling}
        prompts = [prompt] if isinstance(prompt, str | int) else list(prompt)
        count, device = len(prompts), self._execution_device
        size = self._size(height, width)
        call = Guided(self, prompts, negative_prompt, size, chosen)
        factor = self.config.latents["factor"]
        shape = (self.transformer.config.in_channels, size[0] // factor, size[1] // factor)

        def noise(step: int) -> Tensor:
            return sample_noise(seed + step * STEP_SEED, range(count), shape, device)[1]

        x_BCHW = noise(0) if latents is None else latents.to(device, torch.float32)
        if x_BCHW.shape != (count, *shape):
            raise ValueError(f"latents are {tuple(x_BCHW.shape)}; expected {(count, *shape)}")
        num_tokens = shape[1] * shape[2] // self.transformer.config.patch_size**2
        steps = Steps(self.scheduler, self.transformer.config.diffusion, chosen, num_tokens, device)
        for step in self.progress_bar(range(len(steps))):
            value_BCHW = call(x_BCHW, steps.times[step])
            x_BCHW = steps.move(step, value_BCHW, x_BCHW, noise)
        images_BCHW = self._decode(x_BCHW)
        self.maybe_free_model_hooks()
        images = self.image_processor.postprocess(images_BCHW, output_type=output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Of pictures in pixels. Raises: ValueError for one that cannot be cut into patches."""
        config = self.transformer.config
        multiple = self.config.latents["factor"] * config.patch_size
        size = (height or config.image_size, width or config.image_size)
        if min(size) < 1 or size[0] % multiple or size[1] % multiple:
            raise ValueError(f"pictures are {size[0]} x {size[1]} pixels; expected multiples of {multiple}")
        return size

    def encode(self, captions: Sequence[str]) -> list[Text]:
        """What each text encoder makes of captions."""
        texts: list[Text] = []
        for number, settings in enumerate(self.config.encoders):
            encoder = getattr(self, _name("text_encoder", number))
            tokens_BL, mask_BL = getattr(self, _name("tokenizer", number))(captions)
            tokens_BL, mask_BL = tokens_BL.to(encoder.device), mask_BL.to(encoder.device)
            if not settings["layer"]:
                features_BLT, pooled_BV = encoder(tokens_BL, mask_BL)
                texts.append((features_BLT, mask_BL, pooled_BV))
                continue
            output = encoder(input_ids=tokens_BL, attention_mask=mask_BL.long(), output_hidden_states=True)
            texts.append((output.hidden_states[settings["layer"]].float(), mask_BL, None))
        return texts

    def _decode(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] of latents."""
        if self.vae is None:
            return x_BCHW
        latents = self.config.latents
        shift_C11 = x_BCHW.new_tensor(latents["shift"])[:, None, None]
        z_BCHW = x_BCHW / x_BCHW.new_tensor(latents["scale"])[:, None, None] + shift_C11
        if latents["patch"] > 1:  # AutoencoderKLFlux2
            z_BCHW = F.pixel_shuffle(z_BCHW, latents["patch"])
        if latents["is_video"]:
            return self.vae.decode(z_BCHW.unsqueeze(2).to(self.vae.dtype)).sample.squeeze(2).float()
        return self.vae.decode(z_BCHW.to(self.vae.dtype)).sample.float()


def _name(kind: str, number: int) -> str:
    return kind if number == 0 else f"{kind}_{number + 1}"
