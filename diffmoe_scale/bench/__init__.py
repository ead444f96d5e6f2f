"""The library behind tools/bench_*.py.

options.py          arguments of the benchmarks; imports nothing slow
timing.py           contenders in turns, medians and ratios, the JSON file of a result
contenders.py       what an MoE layer and a step are measured against
layer.py            the MoE layer against the dense network and its expert GEMMs
pool.py             the selection of experts in a pool over several ranks
micro_step.py       forward and backward of a config: eager, compiled, as a CUDA graph
gpu_report.py       parts with a time limit each, and a report of what they did
gpu_parts.py        what is measured on a GPU, and the same small on a CPU
gpu_smoke.py        whether what a GPU run stands on works
step.py             a training step of a whole model
settings.py         steps of one run under several settings
reference.py        a layer and a step against a checkout of the DiffMoE reference
reference_modules.py  that checkout's modules, with our weights
sampling.py         whole pictures at several capacities, by thresholds and by the top K
picture_time.py     wall time of pictures at the points of a sweep of capacities
data.py             samples a second and CPU time a sample of reading
data_contenders.py  readers of the same files: this one, webdataset, torchvision
data_files.py       shards of pictures and of features, made to be read
checkpoint.py       how long a checkpoint stops training
work_folder.py      a folder that is removed again
conversion.py       time and memory of a conversion, and what the disk can do
metrics.py          time and memory of FID and other metrics from features
telemetry.py        what telemetry costs within a run's steps
resume.py           the start of reading deep in an epoch
"""
