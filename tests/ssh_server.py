"""A real sshd on this machine, for the user that runs the tests, with keys of its own.

`ssh board` reaches it through a `ssh` of the tests' in front of PATH, which adds a configuration.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
MISSING = "" if SSHD and shutil.which("ssh") else "Debian: apt-get install openssh-server"
PRIVILEGES = Path("/run/sshd")  # sshd of root wants this folder, which a service would make
SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv TMPDIR={folder}/there
"""
CLIENT = """\
Host stranger
    IdentityFile {folder}/host_key
Host closed
    Port {unused}
Host imposter
    UserKnownHostsFile /dev/null
Host board closed imposter
    IdentityFile {folder}/user_key
Host *
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        bin: The folder of the `ssh` that knows `board`, `stranger` (whose key is not allowed),
            `imposter` (whose host key is not known) and `closed` (no server).
        there: What is the folder for temporary files in a session.
    """

    bin: Path
    there: Path


@contextmanager
def ssh_server(folder: Path) -> Iterator[Server]:
    """Run a server from a new folder."""
    assert SSHD is not None
    port, unused = _free_ports(2)
    names = {"folder": folder, "port": port, "unused": unused, "user": getpass.getuser()}
    for key in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True)
    host = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host}")
    (folder / "sshd_config").write_text(SERVER.format(**names))
    (folder / "ssh_config").write_text(CLIENT.format(**names))
    (folder / "there").mkdir()
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    if os.getuid() == 0:
        PRIVILEGES.mkdir(mode=0o755, exist_ok=True)
    log = (folder / "log").open("w")
    start = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    process = subprocess.Popen(start, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until_it_answers(process, port, folder / "log")
        yield Server(folder / "bin", folder / "there")
    finally:
        process.terminate()
        process.wait()
        log.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [open_socket.getsockname()[1] for open_socket in sockets]
    for open_socket in sockets:
        open_socket.close()
    return ports


def _until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
