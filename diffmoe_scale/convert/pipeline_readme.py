"""The README of a diffusers folder: how to load it, and what it needs."""

from diffmoe_scale.checkpoint.stored import StoredWeights
from diffmoe_scale.words import counted

TEXT = """# A DiffMoE model for diffusers

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True, use_safetensors=True)
pipeline({prompt}, seed=0).images[0].save("picture.png")
```

It needs torch, diffusers, transformers, safetensors{sentencepiece}: no Megatron, no DeepSpeed.
`trust_remote_code` runs the Python files of this folder; diffusers copies them to HF_MODULES_CACHE, which
must be a folder that can be written to.

{what}, step {step}. Settings of a call, with this folder's own as defaults
(`pipeline.config.sampling`): steps, guidance between the times guidance_start and guidance_end (1 is noise,
0 is the picture), guidance_rescale, guidance_channels (how many are guided, 0 for all), fresh_noise,
shift, shift_factor, height, width, seed or latents.
{experts}
Without the package accelerate, loading takes twice the memory of the weights.{links}
"""
EXPERTS = """
How experts choose: `selection="threshold"`, by thresholds learned in training; `"interval"`, by one
threshold `gamma` (more experts a token for a smaller one); `"static"`, each the best tokens for `capacity`
experts a token.
"""
STATIC = """
Experts choose their best tokens for `capacity` experts a token (`selection="static"`).
"""


def readme(stored: StoredWeights, *, links: bool) -> str:
    model, moe = stored.config.model, stored.config.moe
    experts = f", {counted(moe.num_experts, 'expert')} ({moe.router})" if moe.num_experts else ""
    choices = {
        "diffmoe": EXPERTS,
        "expert_choice": STATIC,
        "expert_race": EXPERTS,
        "expert_threshold": EXPERTS,
    }
    is_text = model.conditioning == "text"
    return TEXT.format(
        name="FOLDER",
        prompt='"a red circle"' if is_text else "3",
        sentencepiece=" and sentencepiece" if is_text else "",
        what=f"{model.depth} blocks, {model.width} wide{experts}",
        step=stored.step,
        experts=choices.get(moe.router, "") if moe.num_experts else "",
        links="\n\nWeights of frozen networks are links to files elsewhere on this machine." if links else "",
    )
