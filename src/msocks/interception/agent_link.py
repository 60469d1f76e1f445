"""The keeper's connection to the agent: registers the run or router, and does so again after a restart of the agent."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Sequence

from msocks.errors import AgentUnavailable, ConfigurationError, MsocksError
from msocks.interception import messages
from msocks.interception.messages import Connect, Reach, Ready, Refuse, Refused, Router, Run
from msocks.interception.network_namespace import own_netns_cookie

_PATIENCE_S = 5.0
# Where the agent says `Reach` again and again, every second, so much silence means that it hangs.
_SILENCE_S = 5.0
_SO_SNDBUFFORCE = 32
_QUEUE_BYTES = 4 * 1024 * 1024


class RunRefused(ConfigurationError):
    """The agent does not serve this run, or router; the text is its own."""


def _nothing() -> Sequence[socket.socket]:
    return ()


class AgentLink:
    """One registration. `ready` is what the agent has said last."""

    def __init__(
        self, path: str, greeting: Run | Router, sockets: Callable[[], Sequence[socket.socket]] = _nothing
    ) -> None:
        """Register.

        Args:
            path: The agent's socket for runs.
            greeting: What is registered.
            sockets: Asked, at every registration, for what goes with the greeting; closed here when it was sent.

        Raises:
            AgentUnavailable: No agent is there, or it is of another version.
            RunRefused: It does not serve this.
        """
        self._path = path
        self._greeting = greeting
        self._sockets = sockets
        self._socket: socket.socket | None = None
        self._heard_at = 0.0
        self.ready = self._register()

    @property
    def is_connected(self) -> bool:
        """Whether the agent is there, as far as is known."""
        return self._socket is not None

    @property
    def hangs(self) -> bool:
        """Whether the agent lives and does nothing, be it stopped or stuck; known where it was asked for `Reach`."""
        silent = time.monotonic() - self._heard_at > _SILENCE_S
        return silent and self._greeting.reach and self._socket is not None

    def fileno(self) -> int | None:
        """To be watched for reading; None where the agent is gone."""
        return None if self._socket is None else self._socket.fileno()

    def reconnect(self) -> bool:
        """Register anew where the agent is gone; returns whether it is there."""
        if self._socket is None:
            try:
                self.ready = self._register()
            except MsocksError:
                return False
        return True

    def ask(self, connect: Connect) -> bool:
        """Ask for a connection; False where the agent is too busy to be asked now. It may be gone after this."""
        try:
            if self._socket is not None:
                self._socket.send(messages.encode(connect))
        except BlockingIOError:
            return False
        except OSError:
            self.close()
        return True

    def hear(self) -> list[Refuse | Reach]:
        """What the agent has said. It is not connected any more where it has ended, or speaks nonsense."""
        heard: list[Refuse | Reach] = []
        while self._socket is not None:
            try:
                packet = self._socket.recv(messages.MAX_BYTES)
                if not packet:
                    raise ConnectionResetError
                self._heard_at = time.monotonic()
                said = messages.decode(packet, Refuse, Reach)
                assert isinstance(said, Refuse | Reach)
                heard.append(said)
            except BlockingIOError:
                break
            except (OSError, ConfigurationError):
                self.close()
        return heard

    def close(self) -> None:
        """End the registration."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _register(self) -> Ready:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(_PATIENCE_S)
            sock.connect(self._path)
            self._greet(sock)
            packet = sock.recv(messages.MAX_BYTES)
            answer = messages.decode(packet, Ready, Refused)
            if isinstance(answer, Refused):
                raise RunRefused(answer.what, remedy=answer.remedy)
            assert isinstance(answer, Ready)
            if answer.netns != own_netns_cookie():
                raise RunRefused(
                    f"the agent at {self._path} runs in another network namespace, and has another loopback interface",
                    remedy="run an agent in this one, and say where it is: --control PATH",
                )
            with contextlib.suppress(OSError):  # hundreds of connect() at once shall not have to wait
                sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _QUEUE_BYTES)
            sock.setblocking(False)
            self._heard_at = time.monotonic()
            self._socket = sock
            return answer
        except OSError as error:
            raise self._unavailable(error) from None
        finally:
            if self._socket is not sock:
                sock.close()

    def _greet(self, sock: socket.socket) -> None:
        given = self._sockets()
        try:
            packet, descriptors = messages.encode(self._greeting), [each.fileno() for each in given]
            socket.send_fds(sock, [packet], descriptors) if descriptors else sock.send(packet)
        finally:
            for each in given:
                each.close()

    def _unavailable(self, error: OSError) -> AgentUnavailable:
        if isinstance(error, PermissionError):
            return AgentUnavailable(
                f"the agent at {self._path} belongs to another user", remedy="run the command as that user, or as root"
            )
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
            return AgentUnavailable(
                f"no agent runs at {self._path}",
                remedy="start it: msocks agent --access-file FILE; or say where it is: --control PATH",
            )
        reason = os.strerror(error.errno) if error.errno else "it does not answer"
        return AgentUnavailable(f"the agent at {self._path} cannot be asked: {reason}", remedy="see its log")
