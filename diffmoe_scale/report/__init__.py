"""RUN/report.html: what a run did, on one page that needs nothing else.

capacity.py  quality and cost by capacity, also as text for the terminal
capacity_plots.py   its figures
data_set.py  a page about a set of shards
health.py    what training logs of the experts' decisions
health_plots.py   its figures
html.py      pieces of a page; all text is escaped here
pictures.py  grids of samples and evaluations
plots.py     figures as SVG text (matplotlib)
report.py    the page: reads a run directory and joins the sections
scores.py    scores and what the experts did, also as text for the terminal
summary.py   how far a run is, and its settings
training.py  the lines of metrics.jsonl as curves
troubles.py  bad samples, bad steps, rollbacks, failed saves, changed shards, warnings

OUTPUT/report.html and report.md of an evaluation of many checkpoints:
evaluation.py           the page and its Markdown
evaluation_tables.py    scores, metrics and paired differences
evaluation_pictures.py  pictures side by side
"""
