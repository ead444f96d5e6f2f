#!/usr/bin/env bash
""":"
# Train, or continue a run that stopped: one file for bash and for Python. All four take the same arguments:
#
#   bash launch/pretrain_t2i.sh --config FILE [key.sub=value ...]
#   deepspeed [--num_gpus N] [--hostfile FILE] launch/pretrain_t2i.sh --config FILE ...
#   torchrun --nproc-per-node N launch/pretrain_t2i.sh --config FILE ...
#   python launch/pretrain_t2i.sh --config FILE ...       one process
#
# Python takes this part for a docstring, and bash takes the Python part for a here-document.
# A 0 from the bash form, torchrun or python means that the run ended well. deepspeed 0.19.8 itself answers
# 0 also when its launcher was killed (for memory, say).
# A signal (TERM, USR1, USR2, INT, or HUP of a closed terminal) to the bash form makes the ranks write a
# checkpoint and end; exit code 75, or 130 after INT. Under a host list deepspeed gives them 30 seconds for
# it, and the exit code is 1.
# Environment of the bash form:
#   NPROC             processes on this machine; default: one a GPU, one where there is no GPU
#   DEEPSPEED_ARGS    further options of deepspeed: '--hostfile launch/hostfile', or '--master_port 29501'
#                     for a second run on a machine
set -euo pipefail
script=${BASH_SOURCE[0]}
root=$(cd "$(dirname "$script")/.." && pwd)
if [[ -x $root/.venv/bin/deepspeed ]]; then
    # The whole folder, since deepspeed also looks for ninja there.
    export PATH=$root/.venv/bin:$PATH
elif ! command -v deepspeed >/dev/null; then
    echo "error: no deepspeed in $root/.venv or on PATH; run 'make setup' in $root or activate an" \
        "environment that has it" >&2
    exit 1
fi
python=$(command -v python || command -v python3)
for word in "$@"; do
    case $word in -h | --help | --version | --dry-run) exec "$python" "$script" "$@" ;; esac
done
# Wrong settings are answered here, in a second and before the launcher's own lines.
directory=$("$python" "$script" --check "$@") || exit
# deepspeed 0.19.8 answers 0 when one of its own processes was killed: 0 needs this word from the main rank,
# in RUN/ended.
start=$(date +%s)-$$-$RANDOM
device='([0-9]+|GPU-.+|MIG-.+)'
if ! nvidia-smi -L >/dev/null 2>&1; then
    unset CUDA_VISIBLE_DEVICES  # deepspeed would look for these devices all the same
elif [[ -n ${CUDA_VISIBLE_DEVICES+set} && ! $CUDA_VISIBLE_DEVICES =~ ^$device(,$device)*$ ]]; then
    echo "error: CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES', which hides the GPUs of this machine;" \
        "expected numbers such as 0,1; unset it" >&2
    exit 2
fi
read -ra options <<<"${DEEPSPEED_ARGS:-}"
[[ -z ${NPROC:-} ]] || options+=(--num_gpus "$NPROC")
# Without a GPU deepspeed 0.19.8 would start one process a NUMA node, unless this says otherwise; with GPUs
# it is ignored.
export LOCAL_SIZE=${NPROC:-1}
# deepspeed 0.19.8 dies of SIGTERM and SIGHUP without its ranks, and its launcher gives them 30 seconds. So
# both are made to ignore HUP, USR1 and USR2, and the ranks, which answer USR1 again, get that. A process
# group of its own keeps the signal, and Ctrl-C, from everyone else.
set -m
(trap '' USR1 USR2 HUP && exec deepspeed "${options[@]}" "$script" "$@" --start-id "$start") </dev/null &
group=$!
set +m
interrupted=
ask() {
    if [[ ${DEEPSPEED_ARGS:-} == *--hostfile* ]]; then
        kill -TERM "$group"  # deepspeed passes this on to the other machines
    else
        # Again and again: ranks that are only starting still ignore it.
        while kill -USR1 -- "-$group" 2>/dev/null; do sleep 5; done &
    fi
}
trap ask TERM USR1 USR2 HUP
trap '[[ -z $interrupted ]] || kill -KILL -- "-$group"; interrupted=yes; ask' INT
# A trapped signal ends `wait`, not what is waited for; the last `wait` is of a process that has ended.
while kill -0 "$group" 2>/dev/null; do
    wait "$group" || true
done
wait "$group" && code=0 || code=$?
((code != 75)) || [[ -z $interrupted ]] || code=130
if ((code == 0)) && [[ $(cat "$directory/ended" 2>/dev/null) != "$start" ]]; then
    echo "error: deepspeed ended, but the run did not say that it trained to its end: one of deepspeed's" \
        "processes was killed, perhaps for memory; what is left of it is asked to end; the same command" \
        "continues from the newest complete checkpoint" >&2
    kill -TERM -- "-$group" 2>/dev/null || true
    code=1
fi
exit "$code"
: <<'# end of the Python part'
"""

import sys
from pathlib import Path

# A data worker loads this file again under another name, and gets sys.path from its parent.
if __name__ == "__main__":
    # Python puts launch/ there, which holds no package.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    from diffmoe_scale.pretrain import leave, main

    leave(main())
# end of the Python part
