"""What a run says of itself while it goes on, and where that is kept.

log.py           log lines: the console, and RUN/log.txt
appended_file.py a file of lines that a full disk takes later
metrics.py       RUN/metrics.jsonl: one JSON object a logged step
meter.py         means of values that lie on the device, between two log steps
phases.py        seconds of the parts of a step
progress.py      how far a run is: a bar on a terminal, a line now and then elsewhere
trackers.py      TensorBoard, Weights & Biases, Prometheus
prometheus.py    figures for Prometheus to fetch
profiler.py      a trace of a few steps, whenever a file asks for it
stacks.py        where a rank stands that makes no step
code_version.py  which code a run is trained by
hardware.py      what GPUs can do at most
picture_grid.py  grids of pictures with their captions
"""
