"""What a model costs before it is trained: parameters, operations, memory, time.

build: what is trained, on meta.
parameters: how many parameters.
parts: the parts of a network that counts are told for.
flops: operations a picture, forward and backward.
"""
