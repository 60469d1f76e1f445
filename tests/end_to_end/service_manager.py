"""A service manager, as far as an agent needs one: holds its descriptors, and hands them to the next process."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from tests.end_to_end.conftest import MSOCKS, PORT, Field

from msocks_lab import LabProcess

# What systemd does between fork and exec: the descriptors from 3 on, and three variables.
_LAUNCH = """
import os, sys
given, names = sys.argv[1].split(), sys.argv[2]
free = max([200, *map(int, given)]) + 1
kept = [os.dup2(int(each), free + turn) for turn, each in enumerate(given)]
for turn, each in enumerate(kept):
    os.dup2(each, 3 + turn)
if kept:
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept)), "LISTEN_FDNAMES": names}
os.closerange(3 + len(kept), 4096)
os.execv(sys.argv[3], sys.argv[3:])
"""


class ServiceManager:
    """See the module. Of sd_notify(3) it knows `FDSTORE=1`, `FDSTOREREMOVE=1` and `FDNAME=`."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.address = str(field.directory / "notify.sock")
        Path(self.address).unlink(missing_ok=True)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._held: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(self, *_: object) -> None:
        if self._field.agent is not None:
            self._field.agent.stop()
            self._field.agent = None
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()
        for _name, descriptor in self._held:
            os.close(descriptor)

    @property
    def names(self) -> list[str]:
        """Of all that is held."""
        with self._lock:
            return [name for name, _ in self._held]

    def lose(self, beginning: str) -> None:
        """Close what is held under names that begin so."""
        with self._lock:
            for name, descriptor in self._held:
                if name.startswith(beginning):
                    os.close(descriptor)
            self._held = [each for each in self._held if not each[0].startswith(beginning)]

    def start_agent(self, *links: str) -> LabProcess:
        """Start the agent as its service, with all that is held."""
        field = self._field
        with self._lock:
            held = list(self._held)
        argv = [MSOCKS, "agent", "--access-file", str(field.access), "--control", str(field.control)]
        argv += ["--listen", f"127.0.0.1:{PORT}", *[word for link in links for word in ("--link", link)]]
        descriptors = [descriptor for _, descriptor in held]
        launch = [sys.executable, "-c", _LAUNCH, " ".join(map(str, descriptors)), ":".join(name for name, _ in held)]
        agent = field.lab.mobile.popen(
            [*launch, *argv],
            stdout=subprocess.PIPE,
            unprivileged=True,
            env={"NOTIFY_SOCKET": self.address, "FDSTORE": "16384"},
            pass_fds=descriptors,
        )
        assert agent.stdout is not None
        line = agent.stdout.readline()
        assert line == b"ready\n", agent.tail()
        field.agent = agent
        return agent

    def _serve(self) -> None:
        while True:
            message, rights, _, _ = self._sock.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
            if not message:
                return
            received = array.array("i")
            for _, _, data in rights:
                received.frombytes(data)
            fields = dict(line.split("=", 1) for line in message.decode().splitlines())
            name = fields.get("FDNAME", "stored")
            with self._lock:
                if "FDSTORE" in fields:
                    assert fields.get("FDPOLL") == "0"
                    self._held += [(name, descriptor) for descriptor in received]
                elif "FDSTOREREMOVE" in fields:
                    for _, descriptor in [each for each in self._held if each[0] == name]:
                        os.close(descriptor)
                    self._held = [each for each in self._held if each[0] != name]
