"""The relay: bytes copied in user space. Needs no privilege, works with any server and any leg."""

from msocks.datapath.relay.conduit import RelayConduit, RelayDatapath

__all__ = ["RelayConduit", "RelayDatapath"]
