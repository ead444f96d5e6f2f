"""What the benchmarks in tools/ share.

timing.py  contenders in turns, medians and ratios, the JSON file of a result
"""
