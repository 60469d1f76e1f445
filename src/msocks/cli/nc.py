"""``msocks nc``: one connection through the agent, on standard input and output. Made for ssh's ProxyCommand.

It starts on every ssh: it imports the standard library alone and little of that, and asks the agent's local port with
an HTTP CONNECT, whose refusal carries the reason in words.
"""

from __future__ import annotations

import _thread
import json
import os
import socket
import sys

from msocks.agent.control_path import find_control_path

HELP = """\
Usage: msocks nc [OPTIONS] HOST PORT

  Open a connection to HOST:PORT through the agent and copy standard input to
  it, and what it sends to standard output. The proxy resolves HOST.

  The end of standard input is passed on (half-close); the command ends when
  both directions have ended. Its purpose is ssh, which then survives a change
  of network. In ~/.ssh/config:

    Host *.example
        ProxyCommand msocks nc %h %p

  or, without a process that copies bytes all the time:

    Host *.example
        ProxyCommand msocks nc --pass-fd %h %p
        ProxyUseFdpass yes

Options:
  --control PATH  The agent's control socket; by default $MSOCKS_CONTROL, else
                  the default place.
  --pass-fd       Pass the open connection on standard output (a Unix socket)
                  and exit: ProxyUseFdpass of ssh_config(5).
  -v              Say on standard error what is done.
  -h, --help      Show this text and exit.

Exit status:
  0    both directions ended in good order
  1    the connection was refused, failed or was reset; the message says why
  2    the command line cannot be understood
  3    no agent runs, or it cannot be asked
  130  interrupted

Examples:
  ssh -o ProxyCommand='msocks nc %h %p' alice@server.example
  printf 'HEAD / HTTP/1.0\\r\\n\\r\\n' | msocks nc server.example 80
"""

# The numbers of msocks.cli.exit_status; `enum` is not imported for them.
_OK, _FAILED, _USAGE, _UNREACHABLE, _INTERRUPTED = 0, 1, 2, 3, 130

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_CHUNK_BYTES = 128 * 1024
_ASK_TIMEOUT_S = 5.0
_MOST_ANSWER_BYTES = 1024 * 1024
_MOST_HEAD_BYTES = 16 * 1024


class _Failure(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    sock: socket.socket | None = None
    try:
        wanted = _Arguments(arguments)
        if wanted.help:
            sys.stdout.write(HELP)
            return _OK
        port_of_agent = _local_port(wanted)
        wanted.say(f"the agent listens on {port_of_agent[0]}:{port_of_agent[1]}")
        sock = _connect(port_of_agent, wanted.destination)
        wanted.say(f"connected to {wanted.destination}")
        if wanted.pass_fd:
            return _pass(sock)
        return _copy(sock)
    except _Failure as failure:
        _print_error(str(failure))
        return failure.status
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        if sock is not None:
            sock.close()


class _Arguments:
    """The command line, read by hand: argparse alone takes longer than all the rest."""

    def __init__(self, arguments: list[str]) -> None:
        self.control: str | None = None
        self.help = self.pass_fd = self.verbose = False
        operands: list[str] = []
        waiting = list(arguments)
        while waiting:
            argument = waiting.pop(0)
            if argument in ("-h", "--help"):
                self.help = True
                return
            if argument in ("-v", "-vv", "--verbose"):
                self.verbose = True
            elif argument == "--pass-fd":
                self.pass_fd = True
            elif argument == "--control":
                if not waiting:
                    raise _usage("--control needs a path")
                self.control = waiting.pop(0)
            elif argument.startswith("--control="):
                self.control = argument.removeprefix("--control=")
            elif argument == "--":
                operands += waiting
                break
            elif argument.startswith("-"):
                raise _usage(f"there is no option {argument}")
            else:
                operands.append(argument)
        if len(operands) != 2:
            raise _usage("give a HOST and a PORT")
        self.destination = _destination(*operands)

    def say(self, text: str) -> None:
        if self.verbose:
            _print_error(text)


def _usage(message: str) -> _Failure:
    return _Failure(_USAGE, f"{message}\n           usage: msocks nc [--control PATH] [--pass-fd] [-v] HOST PORT")


def _destination(host: str, port: str) -> str:
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise _usage(f"{port!r} is not a port number from 1 to 65535")
    host = host.removeprefix("[").removesuffix("]")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            raise _usage(f"{host!r} is not a host name") from None
    if not host or not all(character.isalnum() or character in "-._:" for character in host):
        raise _usage(f"{host!r} is not a host name or an IP address")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _print_error(text: str) -> None:
    os.write(_STDERR, f"msocks nc: {text}\n".encode(errors="replace"))


def _local_port(wanted: _Arguments) -> tuple[str, int]:
    """Where the agent takes connections, asked over its control socket."""
    path = find_control_path(wanted.control)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_ASK_TIMEOUT_S)
            sock.connect(path)
            sock.sendall(b"GET /v1/status HTTP/1.0\r\nHost: agent\r\n\r\n")
            answer = b""
            while len(answer) < _MOST_ANSWER_BYTES and (data := sock.recv(_CHUNK_BYTES)):
                answer += data
    except OSError as error:
        reason = "the answer does not come" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise _Failure(
            _UNREACHABLE,
            f"no agent can be asked at {path}: {reason}\n"
            "           start it: msocks agent --access-file FILE; or say where it is: --control PATH",
        ) from None
    try:
        # The first address is the one that its user named first.
        host, _, port = json.loads(answer.partition(b"\r\n\r\n")[2])["listen"][0].rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), int(port)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Failure(
            _UNREACHABLE, f"what answers at {path} is not an agent of this version; restart the agent"
        ) from None


def _connect(agent: tuple[str, int], destination: str) -> socket.socket:
    """Ask the agent for a connection; what is read next from the socket comes from the destination."""
    try:
        sock = socket.create_connection(agent)
    except OSError as error:
        raise _Failure(_UNREACHABLE, f"the agent's port {agent[0]}:{agent[1]}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(f"CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\n".encode("ascii"))
        head = _read_head(sock)
        if head.partition(b"\r\n")[0].split(b" ")[1:2] == [b"200"]:
            return sock
        reason = sock.recv(_MOST_HEAD_BYTES, socket.MSG_WAITALL).decode(errors="replace").strip()
    except OSError as error:
        sock.close()
        raise _Failure(_FAILED, f"{destination}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise
    sock.close()
    first_line = head.partition(b"\r\n")[0].decode(errors="replace")
    raise _Failure(
        _FAILED, reason.removeprefix("msocks: ") or f"{destination}: the agent gave no connection ({first_line})"
    )


def _read_head(sock: socket.socket) -> bytes:
    """An HTTP head and not one byte more: what follows is the destination's, perhaps for another process to read."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte or len(head) > _MOST_HEAD_BYTES:
            raise _Failure(_FAILED, "the agent closed the connection without an answer; its log may say why")
        head += byte
    return bytes(head)


def _pass(sock: socket.socket) -> int:
    try:
        with socket.socket(fileno=os.dup(_STDOUT)) as receiver:
            socket.send_fds(receiver, [b"\0"], [sock.fileno()])
    except OSError as error:
        raise _Failure(
            _USAGE, f"--pass-fd: standard output takes no descriptor ({error.strerror}); it has to be a Unix socket"
        ) from None
    return _OK


def _copy(sock: socket.socket) -> int:
    """Copy both ways until both have ended. Blocking calls in two threads: no flag of a shared descriptor changes."""
    delivered = _thread.allocate_lock()
    delivered.acquire()

    def down() -> None:
        try:
            while data := sock.recv(_CHUNK_BYTES):
                _write(data)
            # The reader sees the end; the number 1 stays taken.
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, _STDOUT)
            os.close(nothing)
            delivered.release()
        except BrokenPipeError:
            os._exit(_FAILED)  # nobody reads any more
        except OSError as error:
            _print_error(f"the connection failed: {error.strerror}")
            os._exit(_FAILED)

    _thread.start_new_thread(down, ())
    try:
        while data := os.read(_STDIN, _CHUNK_BYTES):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        # The kernel tells of a reset once: the other thread may see a mere end now, after what is still to be read.
        delivered.acquire()
        raise _Failure(_FAILED, f"not all of the input was taken: {error.strerror}") from None
    delivered.acquire()
    return _OK


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_STDOUT, view) :]
