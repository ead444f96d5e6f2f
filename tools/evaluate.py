"""`python tools/evaluate.py`: the same as `python -m diffmoe_scale.evaluate`."""

import sys

from diffmoe_scale.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
