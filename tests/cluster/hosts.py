"""Hosts of one's own on this machine: network namespaces with an address each, joined by a bridge."""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import kill_all, term_unwinds

NETWORK = "10.77.0"
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
SSHD_CONFIG = """\
ListenAddress {address}
HostKey {folder}/key
PidFile {folder}/{name}.pid
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
"""


@dataclass(frozen=True)
class Host:
    """`name` is what the host calls itself, `namespace` what `ip netns` calls it."""

    name: str
    namespace: str
    address: str
    link: str
    """The end of its cable on this machine."""

    def run(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """Start a program on the host."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *command],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def cut(self) -> None:
        """Nothing reaches the host or leaves it."""
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        ip("link", "set", self.link, "up")

    def processes(self) -> list[int]:
        return [int(word) for word in ip("netns", "pids", self.namespace).split()]

    def listeners(self) -> str:
        """The ports that something listens at."""
        answer = self.run("ss", "-Hltn")
        return answer.communicate()[0].strip()

    def enter(self) -> None:
        """Move this process, which has one thread, to the host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{self.namespace}", "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET) != 0 or libc.unshare(CLONE_NEWUTS) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter {self.namespace}")
        socket.sethostname(self.name)


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, host1, host2, ...: removed at the end, with all that still runs there. Needs root and
    iproute2."""
    tag = os.getpid() % 10**7
    bridge = f"dm{tag}b"
    made = [Host(f"host{n}", f"dm{tag}h{n}", f"{NETWORK}.{n}", f"dm{tag}v{n}") for n in range(1, count + 1)]
    with term_unwinds():
        try:
            ip("link", "add", bridge, "type", "bridge")
            ip("link", "set", bridge, "up")
            for host in made:
                _join(host, bridge)
            yield made
        finally:
            _remove(made, bridge)


def _join(host: Host, bridge: str) -> None:
    ip("netns", "add", host.namespace)
    ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    ip("link", "set", host.link, "master", bridge, "up")
    ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    for device in ("eth0", "lo"):
        ip("-n", host.namespace, "link", "set", device, "up")


def _remove(made: list[Host], bridge: str) -> None:
    for host in made:
        with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
            kill_host(host)
    # The cables first: a namespace that is gone may hold its end a little longer.
    links = [("link", "del", name) for name in (*(host.link for host in made), bridge)]
    for words in [*links, *(("netns", "del", host.namespace) for host in made)]:
        subprocess.run(["ip", *words], capture_output=True, check=False)


def kill_host(host: Host) -> None:
    """Every process there at once, those that they started too."""
    kill_all(host.processes)


@contextlib.contextmanager
def ssh_between(made: list[Host], folder: Path) -> Iterator[Path]:
    """Plain `ssh host2` works on every host; the host file for deepspeed. Needs openssh-server."""
    folder.mkdir(parents=True, exist_ok=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    names = "".join(f"{host.address} {host.name}\n" for host in made)
    servers = []
    try:
        for host in made:
            # `ip netns exec` lays these over /etc, for the programs it starts alone.
            own = Path("/etc/netns") / host.namespace
            (own / "ssh").mkdir(parents=True)
            (own / "ssh" / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
            (own / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            config = folder / f"{host.name}.conf"
            config.write_text(SSHD_CONFIG.format(address=host.address, folder=folder, name=host.name))
            # In a UTS namespace of its own: the host's name is what its programs see.
            words = f'hostname {host.name} && exec /usr/sbin/sshd -D -f "{config}"'
            servers.append(host.run("unshare", "--uts", "sh", "-c", words))
        hostfile = folder / "hostfile"
        hostfile.write_text("".join(f"{host.name} slots=1\n" for host in made))
        yield hostfile
    finally:
        for server in servers:
            server.kill()
            server.communicate()
        for host in made:
            shutil.rmtree(Path("/etc/netns") / host.namespace, ignore_errors=True)


def ip(*words: str) -> str:
    """What `ip` answers. Raises: CalledProcessError."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
