"""A page in the browser that draws pictures from a trained run: `python -m diffmoe_scale.page`.

__main__.py  the command
form.py      what the page asks for, checked
model.py     the loaded model, and what the page must know of it
drawing.py   one drawing as events: each call of the network, then the picture and its cost
worker.py    the thread that draws, one picture after another
server.py    the pages and the stream of events over HTTP

Beside them lie the page's own files (assets/): HTML, style and scripts, which need no other server.
"""
