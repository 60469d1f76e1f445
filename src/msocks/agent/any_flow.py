"""What the agent carries for programs: connections, and UDP associations."""

from __future__ import annotations

from typing import TypeAlias

from msocks.agent.flow import Flow
from msocks.agent.udp_flow import UdpFlow

AnyFlow: TypeAlias = Flow | UdpFlow
