"""Cached features: latents and caption features computed before training.

source.py  what features depend on
locate.py  the file that says what made a set's features
check.py   whether they are those that a run would compute
format.py  the bytes of a sample
stack.py   batches of them
"""
