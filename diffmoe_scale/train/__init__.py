"""Training: from settings to a run that stands at its last step.

run.py           the run: steps, what happens between them, going back, the end
start.py         what the main rank does in a run directory before anything else
cautions.py      what costs quality or a run without an error, a line each
places.py        where a run reads and writes, looked at before anything is made
overview.py      what is said before the first step: network, data, memory, places
setup.py         from settings to a run at its newest checkpoint or at its start
resume.py        a run goes on from its newest checkpoint
recalibrate.py   thresholds anew for weights that were not trained with them
initialize.py    run.initialize_from: a new run that begins with the weights of another
trainer.py       one training step, and what it works on
engine.py        forward, backward and optimizer step of a rank, with the weight average
graph.py         forward and backward of the network as CUDA graphs
zero.py          DeepSpeed's ZeRO optimizer; the only file with its private names
zero_settings.py DeepSpeed's configuration of a run
optim.py         the optimizer, its parameter groups and its learning rate
muon.py          Muon for the matrices of hidden layers, with AdamW for the rest
muon_shares.py   whole matrices from the slices that ZeRO leaves each rank
alignment.py     a block's tokens aligned with features of a frozen encoder: loss, projector, its steps
ema.py           the moving average of the weights
loss.py          the loss of a micro-batch, and what a step wants to know of it
fixed_times.py   the loss at fixed times, by several rules of choosing experts
guard.py         which steps were bad, what was in them, when to go back
loss_history.py  how unusual a step's loss is among those before it
sample_metrics.py  FID and other metrics of drawn pictures
validation.py    the loss on held-out samples, and pictures of fixed captions
speed.py         operations a second and MFU
expert_health.py loads, overlap, entropy of experts, and what the rule of inference would decide
alarms.py        which figures are wrong, and what to try
reporter.py      what a run says of itself: metrics.jsonl, trackers, progress
explain.py       why a rank stopped, and its exit code
temporary.py     temporary files of packages, which a kill does not leave behind for good
stop.py          signals that ask a run to end
watch.py         what an operator asks of a run by a file; what is kept of a run that hangs
"""
