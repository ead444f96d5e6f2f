"""The stack on several hosts and under a real scheduler, all on this machine: for that, root and some
packages.

hosts.py        hosts of one's own: network namespaces, with ssh between them
slurm.py        a real SLURM of several nodes; why it cannot be had
fault_ranks.py  the ranks of a run on two hosts, and a disk that can be full or read-only
faults.py       what can happen to them
faults_of_a_node.c  what makes a node look broken to its processes
fault_run.py    a command: random faults over one run, which ends as an undisturbed one
slurm_jobs.py   training jobs of that SLURM, and what ends them before their time
processes.py    the end of all that a test started
page.py         the commands of docs/cluster.md
chain_run.py    a command: shards and features by arrays, training, scores, each after the one before
requeue_run.py  a command: jobs that each of those ends go back into the queue, and end as an undisturbed one
"""
