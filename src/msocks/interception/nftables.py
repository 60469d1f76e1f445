"""libnftables(3), the library that nft(8) is made of, for a table that goes with the process that has made it.

Such a table (``flags owner``) belongs to the netlink socket by which it was made. Only that socket may change it, and
the kernel removes it when the socket is closed, however its process ends. A child process that runs nft would not do.
"""

from __future__ import annotations

import ctypes

from msocks.interception.refusal import CannotIntercept

_LIBRARY = "libnftables.so.1"


class NftablesSocket:
    """One netlink socket, in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """
        Raises:
            CannotIntercept: There is no libnftables.
        """
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise CannotIntercept(
                f"{_LIBRARY} is missing", remedy="install nftables (Debian: apt-get install nftables)"
            ) from None
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_ctx_free.argtypes = library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
        library.nft_ctx_free.restype = None
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context: int | None = library.nft_ctx_new(0)
        if not self._context or library.nft_ctx_buffer_error(self._context) != 0:
            raise CannotIntercept("libnftables cannot be used", remedy="the memory may be full")

    def run(self, commands: str) -> None:
        """Carry out commands of nft(8), all or none.

        Raises:
            CannotIntercept: The kernel refuses them.
        """
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()) == 0:
            return
        text = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace").strip()
        # It repeats the command behind the first line.
        why = text.splitlines()[0].removeprefix("Error: ") if text else "no reason given"
        remedy = "the kernel needs nf_tables, nft_tproxy, nft_socket and nft_fib_inet"
        if "not permitted" in why:
            remedy = "run as root (sudo), or with CAP_NET_ADMIN"
        raise CannotIntercept(f"nftables refuses the table of the router: {why}", remedy=remedy)

    def close(self) -> None:
        """Close the socket; the tables that it owns are gone."""
        context, self._context = self._context, None
        if context is not None:
            self._library.nft_ctx_free(context)
