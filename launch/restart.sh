#!/usr/bin/env bash
# Start a launcher again when it fails, where no scheduler does: at most so often, and later each time.
#
#   bash launch/restart.sh bash launch/pretrain_t2i.sh --config FILE
#   bash launch/restart.sh torchrun --nnodes 2 ... -m diffmoe_scale.pretrain --config FILE     on every node
#
# Ends with the command's exit code when that is 0 (done), 2 (a wrong setting: another start would fail too),
# 75 or 130 (somebody asked for the end), or when this script got a signal, which it passes on.
#   RESTARTS      starts after the first (10); a start that lasted RESET_AFTER_S is no failure in a row
#   BACKOFF_S     before the first restart (10), doubled each time up to BACKOFF_MAX_S (600)
set -uo pipefail
RESTARTS=${RESTARTS:-10}
BACKOFF_S=${BACKOFF_S:-10}
BACKOFF_MAX_S=${BACKOFF_MAX_S:-600}
RESET_AFTER_S=${RESET_AFTER_S:-3600}
if (($# == 0)); then
    echo "error: no command; expected: bash launch/restart.sh COMMAND [ARGUMENTS]" >&2
    exit 2
fi
child='' is_asked='' failures=0 wait_s=$BACKOFF_S
pass_on() {
    is_asked=yes
    [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null
}
for name in TERM INT HUP USR1 USR2; do
    trap "pass_on $name" "$name"
done
while true; do
    began=$SECONDS code=0
    "$@" <&0 &
    child=$!
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends `wait`, not what is waited for
        code=0
        wait "$child" || code=$?
    done
    child=''
    case $code in 0 | 2 | 75 | 130) exit "$code" ;; esac
    [[ -z $is_asked ]] || exit "$code"
    if ((SECONDS - began >= RESET_AFTER_S)); then
        failures=0 wait_s=$BACKOFF_S
    fi
    if ((failures == RESTARTS)); then
        echo "error: exit code $code, and $RESTARTS restarts are used up (RESTARTS)" >&2
        exit "$code"
    fi
    failures=$((failures + 1))
    echo "exit code $code; restart $failures of $RESTARTS in $wait_s s" >&2
    sleep "$wait_s" &
    wait $! || true
    [[ -z $is_asked ]] || exit "$code"
    wait_s=$((wait_s * 2 < BACKOFF_MAX_S ? wait_s * 2 : BACKOFF_MAX_S))
done
