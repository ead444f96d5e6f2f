"""What is wrong with the nodes of a cluster, before a job finds out. Needs Python alone: it must work where
the environment is broken.

facts.py     what a node finds out about itself
judge.py     which nodes differ from the others or lack something, and what to do
bandwidth.py how fast the GPUs of all nodes send to each other; needs torch
reach.py     the same command on all nodes: srun, ssh, or here
__main__.py  the command
"""
