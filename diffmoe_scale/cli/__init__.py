"""What all commands share.

command.py    the wrapper of every `main()`: exit codes, errors as one line, Ctrl-C, logging, `--version`
arguments.py  the arguments that name a trained model
"""
