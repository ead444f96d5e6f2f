#!/usr/bin/env bash
# Install what tests/cluster needs beside Python: SLURM, pdsh, an ssh server, iproute2. For root on Debian or
# Ubuntu; elsewhere the tests are left out and say why. Never fails: the other tests need none of it.
names=(slurm-wlm munge pdsh openssh-server iproute2)
missing=()
for name in "${names[@]}"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
done
((${#missing[@]} > 0)) || exit 0
if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "tests of a cluster are left out: they need root and ${missing[*]}"
    exit 0
fi
echo "installing ${missing[*]} for the tests of a cluster"
export DEBIAN_FRONTEND=noninteractive
{ apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
    echo "could not be installed; the tests that need them are left out"
exit 0
