"""Takes out of this host what a proxy has left in the kernel, when nobody wants to go on with it."""

from __future__ import annotations

import os
from pathlib import Path

from msocks.datapath.splice import hooks, libbpf, loader
from msocks.datapath.splice.firewall import Firewall, table_name


def is_there(pin_directory: Path) -> bool:
    """Whether a proxy has left something there."""
    return pin_directory.exists()


def discard(pin_directory: Path) -> None:
    """Detach and remove programs, tables and the firewall's table of a proxy that does not run.

    Sessions that were still carried end without a word; with the firewall goes what kept the kernel from answering
    their packets, so that both ends get an RST as soon as they speak. Another proxy's are not touched.

    Raises:
        BpfError: The privilege is missing.
        SpliceRefused: nft is missing or refuses.
        OSError: There is no NETLINK_ROUTE here.
    """
    programs = set()
    for pin in (pin_directory / "programs").glob("*"):
        program = libbpf.open_pin(pin)
        try:
            programs.add(libbpf.program_id(program))
        finally:
            os.close(program)
    hooks.remove_filters(pin_directory, programs)
    loader.discard(pin_directory)
    # Without a mark: the table is only taken away.
    Firewall(table_name(pin_directory.name), 0).remove()
