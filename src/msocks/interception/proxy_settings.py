"""Ways that need no privilege: the program, or a library in front of it, is told of the agent's SOCKS port."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from pathlib import Path

from msocks.values.endpoint import Endpoint

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_NEAR = "localhost,127.0.0.1,::1"
_ELF, _INTERPRETER = b"\x7fELF\x02", 3  # of 64 bits; PT_INTERP
_HEADER_BYTES = 64
_BYTE_ORDERS = {1: "<", 2: ">"}


def reachable(listen: Endpoint) -> Endpoint:
    """Where a program of this host reaches what listens there."""
    host = str(listen.host)
    return Endpoint.of(_WILDCARDS.get(host, host), listen.port)


def proxy_variables(agent: Endpoint) -> dict[str, str]:
    """Environment variables that curl, git, Python's and Go's libraries and many others read.

    Both spellings, since each has programs that know it alone. HTTPS goes by CONNECT, which every HTTP library speaks;
    the agent's port has no plain HTTP proxy, so the rest goes by SOCKS, and names are resolved by the proxy. Go, which
    looks at HTTP_PROXY first and curl never, does so without the h, which it did not always know.
    """
    socks, connect = f"socks5h://{agent}", f"http://{agent}"
    values = {"all_proxy": socks, "http_proxy": socks, "https_proxy": connect, "no_proxy": _NEAR}
    return values | {name.upper(): value for name, value in values.items()} | {"HTTP_PROXY": f"socks5://{agent}"}


def proxychains() -> str | None:
    """The installed proxychains, if there is one."""
    return next((found for name in ("proxychains4", "proxychains") if (found := shutil.which(name))), None)


def is_static(program: str) -> bool:
    """Whether no library can be put before a program, looked up in PATH: an ELF file without interpreter (elf(5))."""
    try:
        with Path(shutil.which(program) or program).open("rb") as file:
            head = file.read(_HEADER_BYTES)
            if len(head) < _HEADER_BYTES or not head.startswith(_ELF):
                return False
            order = _BYTE_ORDERS[head[5]]
            (place,) = struct.unpack_from(f"{order}Q", head, 32)
            size, count = struct.unpack_from(f"{order}HH", head, 54)
            file.seek(place)
            segments = [file.read(size) for _ in range(count)]
        return all(struct.unpack_from(f"{order}I", segment)[0] != _INTERPRETER for segment in segments)
    except (OSError, KeyError, struct.error):
        return False  # what it is shows when it is started


def proxychains_configuration(agent: Endpoint, directory: Path) -> Path:
    """A configuration file for proxychains-ng with the agent as the one proxy; names are resolved by the proxy.

    It stays: a program's children read it whenever they start. For one agent there is one file, in `directory` or,
    where that cannot be written to, in the directory for temporary files.
    """
    text = (
        "strict_chain\nquiet_mode\nproxy_dns\nremote_dns_subnet 224\n"
        "localnet 127.0.0.0/255.0.0.0\nlocalnet ::1/128\n"
        f"[ProxyList]\nsocks5 {agent.host} {agent.port}\n"
    )
    name = f"msocks-proxychains-{os.geteuid()}-{agent.port}.conf"
    for place in (directory, Path(tempfile.gettempdir())):
        path = place / name
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
            unfinished.replace(path)
        except OSError:
            continue
        return path
    raise OSError("no place for a configuration file")
