"""What a model costs before it is trained: parameters, operations, memory, time.

build: what is trained, on meta.
parameters: how many parameters.
parts: the parts of a network that counts are told for.
flops: operations a picture, forward and backward.
storages: bytes of tensors as they come and go.
stand_ins: fused attention and grouped products on meta.
fake_ranks: one of many ranks in one process.
trace: what a forward and backward pass keep in memory.
zero_memory: what DeepSpeed's ZeRO keeps in memory.
memory: the two together: memory of a rank.
measure: memory of real steps on this machine.
"""
