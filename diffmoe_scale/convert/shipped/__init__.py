"""The code that a diffusers folder brings with it: inference in plain torch, without this package, Megatron
or DeepSpeed.

Each file is written into a folder with all that it imports of this package inside (pipeline_code.py), so what
is imported here must itself stand on torch alone.

routers.py       routers at inference
experts.py       experts at inference
checked.py       a model of diffusers that is loaded with all its weights or not at all
transformer.py   the transformer as a model of diffusers
blocks.py        blocks of the transformer
steps.py         from noise to pictures by a scheduler of diffusers
text_encoder.py  the text encoder that was trained along
open_clip.py     a text tower of open_clip and its tokenizer
tokenizer.py     captions to ids
guided.py        the transformer with its condition and guidance
pipeline.py      captions or classes to pictures
"""
