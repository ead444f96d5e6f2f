#!/usr/bin/env bash
# Compare the nodes of a cluster before a job finds out: bash launch/doctor.sh --help
# Works without torch and with a broken environment; needs Python 3.11.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for python in "$root/.venv/bin/python" python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m diffmoe_scale.doctor "$@"
    fi
done
echo "error: no Python of at least 3.11 in $root/.venv or on PATH; install one, then run 'make setup'" >&2
exit 1
