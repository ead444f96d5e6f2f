"""Cached features: latents, caption features and features for alignment, computed before training.

source.py  what features depend on
locate.py  the file that says what made a set's features
check.py   whether they are those that a run would compute
places.py  where the arrays of a sample lie in its bytes
format.py  the bytes of a sample
stack.py   batches of them
"""
