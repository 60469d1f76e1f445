"""Which datapath the proxy has: the splice where this host allows it, or what the operator insists on."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import structlog

from msocks.datapath.interface import Datapath
from msocks.datapath.relay import RelayDatapath
from msocks.datapath.splice.ports import PortRange
from msocks.datapath.splice.refusal import SpliceRefused
from msocks.errors import ConfigurationError, MsocksError
from msocks.protocol.leg import DatapathReason
from msocks.proxy.config import DatapathChoice, ProxyConfig
from msocks.transport.reactor import Reactor

_log = structlog.get_logger("msocks.proxy")

_BPF_FILE_SYSTEM = Path("/sys/fs/bpf")
# Ended sessions keep their place for TIME-WAIT, unless it is needed; then the one that ended first gives its up.
_SLOTS_PER_SESSION = 2


def open_datapath(config: ProxyConfig, reactor: Reactor) -> Datapath:
    """The datapath for a proxy.

    Raises:
        ConfigurationError: The splice was asked for and cannot be had.
    """
    if config.datapath is DatapathChoice.RELAY:
        return _open_relay(config, reactor, DatapathReason.CHOSEN_BY_OPERATOR)
    try:
        return _open_splice(config, reactor)
    except (MsocksError, OSError, ImportError) as error:
        refusal = _refusal(error, config)
        if config.datapath is DatapathChoice.SPLICE:
            raise ConfigurationError(
                f"the splice cannot be had: {refusal}",
                remedy="`msocks doctor` shows all that it needs; --datapath relay does without",
            ) from error
        _log.warning("relaying", reason=str(refusal), remedy="`msocks doctor` shows all that the splice needs")
        return _open_relay(config, reactor, refusal.reason)


def _open_relay(config: ProxyConfig, reactor: Reactor, reason: DatapathReason) -> Datapath:
    """The relay, beside what a proxy that spliced may have left in the kernel."""
    mark = 0
    with contextlib.suppress(MsocksError, OSError, ImportError):
        from msocks.datapath.splice.layout import MARK_OF_DAEMON
        from msocks.datapath.splice.loader import leave_alone

        if leave_alone(pin_directory(config.state)):
            mark = MARK_OF_DAEMON
            _log.info("splice_left_alone", remedy="what it carries runs to its end; `msocks doctor` can discard it")
    return RelayDatapath(reactor, reason, mark=mark)


def _refusal(error: Exception, config: ProxyConfig) -> SpliceRefused:
    """Why there is no splice, and what to do about it.

    What the kernel answers, an EPERM or a page of the verifier's, says neither: it is what is missing that does.
    """
    if isinstance(error, SpliceRefused):
        return error
    from msocks.datapath.splice.feature_probe import probe

    for check in probe(PortRange(*config.splice_ports)):
        if check.ok is False:
            return SpliceRefused(check.finding, remedy=check.remedy, reason=check.reason)
    return SpliceRefused(str(error), remedy="", reason=DatapathReason.NO_KERNEL_SUPPORT)


def pin_directory(state: Path) -> Path:
    """Where the splice of the proxy with this state directory lives on when the proxy dies."""
    return _BPF_FILE_SYSTEM / "msocks" / hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:16]


def _open_splice(config: ProxyConfig, reactor: Reactor) -> Datapath:
    # Loaded here, so that a host without its compiled parts can relay.
    from msocks.datapath.splice import open_splice

    return open_splice(
        reactor,
        pin_directory=pin_directory(config.state),
        ports=PortRange(*config.splice_ports),
        slots=_SLOTS_PER_SESSION * config.limits.sessions,
        half_closed_s=config.half_closed_s,
    )
