"""Where a flow comes from on the mobile node, and what whoever started it wishes for it."""

from __future__ import annotations

from dataclasses import dataclass

from msocks.values.endpoint import Address


@dataclass(frozen=True, slots=True)
class Origin:
    """The program behind a flow, as far as it is known; `None` where it is not.

    `process` is the name the kernel has for the process (its `comm`, at most 15 bytes), `pid` its number, `user` and
    `uid` the account it runs as, `tag` the name that `msocks run --tag` was given. `source` is the address of the other
    host where the flow is one that this host forwards.
    """

    process: str | None = None
    pid: int | None = None
    user: str | None = None
    uid: int | None = None
    tag: str | None = None
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What one invocation of `msocks run` asks of its flows; empty fields ask for nothing.

    `link` is the one link to use, `prefer` are links in the order of preference, `on_loss` is "move", "wait" or
    "reset".
    """

    link: str | None = None
    prefer: tuple[str, ...] = ()
    on_loss: str | None = None
