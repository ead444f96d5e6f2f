"""Checkpoints of other programs to ours and back, and ours to files of weights alone.

Every direction is a function from named tensors to named tensors, which are read when they are written.

pipeline.py          a model as a folder that diffusers loads by itself
pipeline_code.py     the code of a folder, each module in one file
pipeline_config.py   the JSON files of a folder
pipeline_import.py   a folder as weights of ours
pipeline_parts.py    the frozen networks of a folder
pipeline_readme.py   the README of a folder
pipeline_tensors.py  the tensors of a folder
pipeline_verify.py   what a folder answers to a fixed input
shipped/       the code that a folder brings with it

convert.py     a conversion from one path to another, with its proof
upcycle.py     weights for another model, which begins as the source answers
upcycle_plan.py  how experts are made for it, and whether they answer the same
grow_layer.py  the tensors of layers with experts, by that plan
grow_experts.py  a feed-forward network: pieces, noise, means
grow_depth.py  more blocks, which add nothing at first
export.py      the weights of a run as safetensors files
foreign.py     models of the DiT family as files
diffusers.py   transformers of diffusers from their folders
reference.py   the DiT family's tensors to ours and back
dit.py         the names of the DiT family, and what shapes say of a model
dit_config.py  the settings of a model that is one of the DiT family
megatron.py    a distributed checkpoint of Megatron, there and back
megatron_reader.py  tensors of such a folder, a piece at a time
rules.py       how one tensor is made of others, and back
time.py        a flow whose time runs the other way, as weights of ours
torch_file.py  files of torch.save, read so that they run no code
torch_archive.py  such files, written a tensor at a time
plain.py       the networks of the DiT family in plain torch, for comparison
verify.py      what a model answers to a fixed input, block by block
inspect.py     what a checkpoint is, and how two differ
place.py       a target that is complete or not there
"""
