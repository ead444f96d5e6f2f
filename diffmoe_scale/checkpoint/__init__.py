"""Checkpoints: `step_00001000/` folders that are complete or ignored.

manifest.py   what a checkpoint holds, check sums of its files; which folders are checkpoints
files.py      torch.distributed.checkpoint's format, read so that no file can run code
folders.py    folders made, named and removed; RUN/saved.json, by which lost checkpoints are noticed
agreement.py  work of all ranks, of which one can fail
store.py      saving and loading of a run by all ranks, in the background, what is kept
weights.py    one family of weights on one process
tensor_file.py   safetensors files, read and written a tensor at a time
convertible.py   weights of other formats, and the command that converts them
tensor_reader.py  tensors of a run's checkpoint one by one, of files whose check sums are right
stored.py     the weights of a run or of an export, by name
"""
