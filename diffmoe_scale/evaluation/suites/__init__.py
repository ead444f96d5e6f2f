"""Suites of prompts: what is drawn, where the pictures go, how they are scored.

suite.py          what a suite is
build.py          the suite that the settings name
scenes.py         the embedded scenes with their exact rule
prompt_list.py    prompts of a file of yours
"""
