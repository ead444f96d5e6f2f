"""What all commands share.

command.py    the wrapper of every `main()`: exit codes, errors as one line, Ctrl-C, logging, `--version`
output.py     paths that a command writes to, and errors of the operating system
arguments.py  the arguments that name a trained model
"""
