"""`python tools/report.py RUN`: write RUN/report.html anew, at any time of a run."""

import argparse
import sys
from pathlib import Path

from diffmoe_scale.report.report import write_report


def main() -> int:
    parser = argparse.ArgumentParser(description="Write RUN/report.html from what the run directory holds.")
    parser.add_argument("run", type=Path, help="run directory")
    parsed = parser.parse_args()
    try:
        report = write_report(parsed.run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
