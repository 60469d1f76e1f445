"""Errors of the path are told to the end that sent the packet, as a router would."""

from __future__ import annotations

from msocks.datapath.splice.layout import PacketEvent, Session
from msocks.datapath.splice.raw_output import RawOutput


def tell_sender(session: Session, event: PacketEvent, output: RawOutput) -> None:
    """Placeholder until merged"""
