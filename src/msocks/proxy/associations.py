"""Associations: the keys that a client and this proxy share, and the control channels over which the client listens."""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

from msocks.protocol.control import KEY_BYTES, ControlMessage
from msocks.protocol.probe import probe_key
from msocks.protocol.replay import ReplayWindow
from msocks.protocol.udp_flow import udp_flow_key
from msocks.transport.deadlines import Deadlines
from msocks.values.ids import AssociationId


class Channel(Protocol):
    """What an association needs of a control channel."""

    def say(self, message: ControlMessage) -> None:
        """Send a message; a channel that cannot take it is closed."""

    def part(self, last_word: ControlMessage) -> None:
        """Send a last message and close."""

    def dismiss(self) -> None:
        """The association is gone: close, telling the client that its user was removed."""


class AssociationListener(Protocol):
    """What an association needs of a listener of its client."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""

    def say_state(self, channel: Channel) -> None:
        """Say where it is open, if it is."""

    def say_untaken(self, channel: Channel) -> None:
        """Say which connections wait for their first leg."""

    def close(self) -> None:
        """The client is gone, or wants it no more."""


class Association:
    """Keys and channels of one client process.

    Attributes:
        id: Chosen by the client.
        user: Whose it is.
        key_up: Authenticates what the client sends.
        key_down: Authenticates what the proxy sends.
        probe_key_up: The same for probes.
        probe_key_down: The same for probes.
        udp_key_up: The same for UDP flows.
        udp_key_down: The same for UDP flows.
        smallest_mtu: In bytes, of all the client's links; None where it has told none.
        leg_numbers: Those that were used.
        udp_flows: The numbers of UDP flows that were used.
        channels: The open control channels, one per link of the client.
        listeners: By number, those that the client has asked for.
    """

    __slots__ = (
        "channels",
        "id",
        "key_down",
        "key_up",
        "leg_numbers",
        "listeners",
        "probe_key_down",
        "probe_key_up",
        "smallest_mtu",
        "udp_flows",
        "udp_key_down",
        "udp_key_up",
        "user",
    )  # fmt: skip

    def __init__(self, association: AssociationId, user: str) -> None:
        self.id = association
        self.user = user
        self.key_up = secrets.token_bytes(KEY_BYTES)
        self.key_down = secrets.token_bytes(KEY_BYTES)
        self.probe_key_up = probe_key(self.key_up)
        self.probe_key_down = probe_key(self.key_down)
        self.udp_key_up = udp_flow_key(self.key_up)
        self.udp_key_down = udp_flow_key(self.key_down)
        self.smallest_mtu: int | None = None
        self.leg_numbers = ReplayWindow()
        self.udp_flows = ReplayWindow()
        self.channels: set[Channel] = set()
        self.listeners: dict[int, AssociationListener] = {}

    def told_mtu(self, mtu: int) -> None:
        """A HELLO told the smallest MTU of the links that its sender knew; 0 where it did not."""
        if mtu:
            self.smallest_mtu = min(mtu, self.smallest_mtu or mtu)

    def announce(self, message: ControlMessage) -> None:
        """Say `message` on every channel."""
        for channel in tuple(self.channels):
            channel.say(message)


class AssociationTaken(Exception):
    """The id belongs to another user."""


class AssociationLimit(Exception):
    """The user has as many channels, or associations with channels, as are allowed."""


class AssociationRegistry:
    """All associations. One without channels is kept for the detach grace: legs may come back before channels."""

    def __init__(self, loop: asyncio.AbstractEventLoop, grace_s: float, per_user: int) -> None:
        self._per_user = per_user
        self._associations: dict[AssociationId, Association] = {}
        self._of_user: dict[str, list[Association]] = {}
        self._channels_of_user: dict[str, int] = {}
        self._idle: Deadlines[Association] = Deadlines(loop, grace_s, self._drop)

    def find(self, association: AssociationId) -> Association | None:
        """The association of that id."""
        return self._associations.get(association)

    def users(self) -> list[str]:
        """The users who have associations."""
        return list(self._of_user)

    def open_channel(self, association: AssociationId, user: str, channel: Channel, max_channels: int) -> Association:
        """Let an authenticated channel into its association, which is made where it is new.

        Raises:
            AssociationTaken: The id belongs to another user.
            AssociationLimit: The user has too many channels or associations.
        """
        if self._channels_of_user.get(user, 0) >= max_channels:
            raise AssociationLimit(f"{max_channels} control channels are open")
        found = self._associations.get(association)
        if found is None:
            found = self._create(association, user)
        elif found.user != user:
            raise AssociationTaken
        self._idle.discard(found)
        found.channels.add(channel)
        self._channels_of_user[user] = self._channels_of_user.get(user, 0) + 1
        return found

    def expect(self, association: AssociationId, user: str) -> Association:
        """The association that the client of an adopted session will come back to, with new keys.

        Raises:
            AssociationTaken: The id belongs to another user.
            AssociationLimit: The user has too many associations.
        """
        found = self._associations.get(association)
        if found is None:
            found = self._create(association, user)
            self._idle.add(found)
        elif found.user != user:
            raise AssociationTaken
        return found

    def channel_closed(self, association: Association, channel: Channel) -> None:
        """A channel is gone."""
        if channel not in association.channels:
            return
        association.channels.discard(channel)
        left = self._channels_of_user[association.user] - 1
        if left:
            self._channels_of_user[association.user] = left
        else:
            del self._channels_of_user[association.user]
        if not association.channels and association.id in self._associations:
            self._idle.add(association)

    def remove_user(self, user: str) -> None:
        """Forget all keys of a user and close the channels."""
        for association in tuple(self._of_user.get(user, ())):
            self._drop(association)

    def channels(self) -> list[Channel]:
        """All open channels."""
        return [channel for each in self._associations.values() for channel in each.channels]

    def close(self) -> None:
        """Forget everything; channels are closed by their owner."""
        self._idle.take_all()
        self._associations.clear()
        self._of_user.clear()

    def _create(self, association: AssociationId, user: str) -> Association:
        others = self._of_user.setdefault(user, [])
        if len(others) >= self._per_user:
            idle = next((each for each in others if not each.channels), None)
            if idle is None:
                raise AssociationLimit(f"{self._per_user} associations are open")
            self._drop(idle)
            others = self._of_user.setdefault(user, [])
        created = Association(association, user)
        self._associations[association] = created
        others.append(created)
        return created

    def _drop(self, association: Association) -> None:
        self._idle.discard(association)
        self._associations.pop(association.id, None)
        others = self._of_user.get(association.user, [])
        if association in others:
            others.remove(association)
            if not others:
                del self._of_user[association.user]
        for listener in tuple(association.listeners.values()):
            listener.close()
        for channel in tuple(association.channels):
            channel.dismiss()
