"""Suites of prompts: what is drawn, where the pictures go, how they are scored. Benchmarks are read from the
user's own copies.

suite.py          what a suite is
build.py          the suite that the settings name
scenes.py         the embedded scenes with their exact rule
prompt_list.py    prompts of a file of yours
label_list.py     labels of a class-conditional model
geneval.py        GenEval: folders out, results in
geneval2.py       GenEval 2: Soft-TIFA by a judge
dpg_bench.py      DPG-Bench: questions that depend on others
t2i_compbench.py  T2I-CompBench++: results in
oneig.py          OneIG-Bench: alignment
longtext.py       LongText-Bench: words that a judge reads
copies.py         reading the user's copies of benchmarks
tiles.py          pictures of a prompt as the tiles of one
"""
