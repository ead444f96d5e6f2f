"""Many checkpoints by many suites: what is drawn, scored and written.

run.py         the evaluation of a config file, from its targets to results.jsonl
targets.py     the weights that are evaluated
job.py         one cell: weights, suite, settings of sampling
drawing.py     pictures of a job
scoring.py     scores of a job
measuring.py   metrics such as FID of a job's pictures
statistics.py  confidence intervals and paired tests
result.py      what was found, typed, as JSON
records.py     files of JSON lines that are only appended to
"""
