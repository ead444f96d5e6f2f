"""Judges: vision-language models that answer questions about pictures.

judge.py           what a judge is, and the record of its answers
build.py           the judge that the settings name
local_model.py     a local model folder of transformers
endpoint.py        a server that speaks OpenAI's protocol
"""
