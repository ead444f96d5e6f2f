"""What a model costs before it is trained: parameters, operations, memory, time.

build: what is trained, on meta.
alignment: what representation alignment costs beside the network.
assumed: shapes of frozen networks whose folder is not there.
frozen: bytes of frozen networks.
parameters: how many parameters.
parameter_list: the parameters of a rank, each with its kind for the optimizer.
parts: the parts of a network, each of which is counted by itself.
flops: operations a picture, forward and backward.
picture: operations of a picture, for what its experts did.
storages: bytes of tensors as they come and go.
stand_ins: fused attention and grouped products on meta.
fake_ranks: one of many ranks in one process.
trace: what a forward and backward pass keep in memory.
trace_line: traces of micro-batches that were not traced.
zero_memory: what DeepSpeed's ZeRO keeps in memory.
memory: the two together: memory of a rank.
network: bytes that a rank sends, and their time.
step_time: time of a training step, an estimate.
search: layouts of a run, and the fastest that fits.
fit: the nearest batch and layout that a number of GPUs can run.
epochs: how many steps the samples of a data set give.
summary: a whole plan of a run.
text: a plan as text.
measure: memory of real steps on a rank.
measure_ranks: the plan of a layout beside real steps of it.
measure_table: many layouts, planned and measured.
__main__: the command.
"""
