"""Variants of a model, each trained from several seeds and compared: `python tools/study.py`.

study.py       a study as its command uses it: rows, plan, work, page
variants.py    the variants' trainings and rows (a variant with a seed), with fingerprints
cost.py        operations a picture, which must be equal, and the time a study takes
commands.py    the commands that make a row
teacher.py     a small encoder of the scenes, for variants with representation alignment
work.py        several rows at once; stopped at any time, the same call goes on
process.py     a process that ends with the one that started it
record.py      what is known of a row: typed, as JSON and in results.jsonl
statistics.py  means over seeds and paired differences, with what the seeds allow to claim
tables.py      the final table, differences, costs and commands as text
plots.py       curves with bands over seeds
page.py        the HTML page and its Markdown
"""
