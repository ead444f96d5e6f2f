"""Which sample comes when: pure functions of the seed and the position.

order.py    shuffled, fixed and bucketed orders of one data set
mixture.py  several data sets by weight
buckets.py  shapes of aspect-ratio buckets
size.py     sizes of a data set's pictures, kept beside the shards
plan.py     which samples each step takes
"""
