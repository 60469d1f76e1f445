"""What an earlier process of this proxy has left: sessions that the datapath went on carrying, and records of them.

The datapath knows the bytes, the records know whose the session is; their `identity` brings them together. A session
without a record goes on to its end, but nobody can reconnect it: that is a plain SOCKS5 client's, one whose record was
not written yet, or any where records are kept in memory. A record without a session is of one that ended meanwhile.
"""

from __future__ import annotations

import random
import time
from typing import Protocol

import structlog

from msocks.datapath.interface import Datapath, Survivor
from msocks.errors import EndReason
from msocks.proxy.associations import Association, AssociationLimit, AssociationTaken
from msocks.proxy.config import StoreChoice
from msocks.proxy.proxied_session import ProxiedSession
from msocks.proxy.socks_connection import ANYBODY
from msocks.session.record import SessionRecord, SessionState
from msocks.store.sessions import MemorySessions, SessionStore, SqliteSessions, StoredSession
from msocks.store.state_directory import StateDirectory, StoreError
from msocks.values.ids import ID_BYTES, AssociationId, SessionId

_log = structlog.get_logger("msocks.proxy")


def open_session_store(choice: StoreChoice, state: StateDirectory) -> SessionStore:
    """Where the records are kept.

    Raises:
        StoreError: The file is damaged, locked, or of another version.
    """
    if choice is StoreChoice.MEMORY:
        return MemorySessions()
    return SqliteSessions(state.sessions, _on_trouble)


def _on_trouble(trouble: StoreError | None) -> None:
    if trouble is None:
        _log.info("session_records_written_again")
    else:
        _log.error("session_records_unwritten", reason=trouble.what, remedy=trouble.remedy)


class Users(Protocol):
    """Who the users are."""

    def recognise(self, user: str, fingerprint: bytes) -> bool:
        """Whether the user is the one who had this fingerprint; if so, he counts as logged in."""


class Associations(Protocol):
    """Who keeps the associations."""

    def expect(self, association: AssociationId, user: str) -> Association:
        """The association that a client will come back to."""


class Sessions(Protocol):
    """Who keeps the sessions."""

    def now(self) -> float:
        """Monotonic seconds."""

    def adopt(self, record: SessionRecord, survivor: Survivor, association: Association | None) -> ProxiedSession:
        """Go on with a session."""

    def bury(self, record: SessionRecord) -> None:
        """Remember how a session has ended."""


def adopt_sessions(
    datapath: Datapath, store: SessionStore, users: Users, associations: Associations, sessions: Sessions
) -> None:
    """Go on with all that survives. In one turn of the event loop, before anybody is served.

    Raises:
        StoreError: The records cannot be read.
    """
    stored = {each.identity: each for each in store.load()}
    recognised: dict[tuple[str, bytes], bool] = {}
    resumable = others = ended = 0
    for survivor in datapath.survivors():
        known = stored.get(survivor.identity)
        if known is not None and not _belong(known, survivor):
            known = None
        record = _record(survivor, known, sessions.now())
        if survivor.end is not None:
            ended += 1
            if known is not None:
                record.finish(survivor.end, down_fin=survivor.down_fin if survivor.end is EndReason.CLOSED else None)
                sessions.bury(record)
            continue
        if known is None:
            others += 1
            sessions.adopt(record, survivor, None)
            continue
        del stored[survivor.identity]
        resumable += 1
        user = known.user, known.user_fingerprint
        if user not in recognised:
            recognised[user] = users.recognise(*user)
        if recognised[user]:
            sessions.adopt(record, survivor, _association(associations, known))
        else:
            sessions.adopt(record, survivor, None).end(EndReason.USER_REMOVED)
    for known in stored.values():
        store.forget(known.key)
    if resumable or others or ended:
        _log.info("sessions_adopted", resumable=resumable, not_resumable=others, ended_meanwhile=ended)


def _belong(known: StoredSession, survivor: Survivor) -> bool:
    """The record's leg may have come to nothing before it carried; one that came after the record was written has a
    higher generation. Either begins elsewhere than the one that carried last.
    """
    if not survivor.resumable:
        return False
    return survivor.generation != known.generation or survivor.up_from == known.up_from


def _record(survivor: Survivor, known: StoredSession | None, now: float) -> SessionRecord:
    if known is None:
        # Nobody can name it, so its id need not be unguessable.
        session, user, destination, age_s = SessionId(random.randbytes(ID_BYTES)), ANYBODY, survivor.server, 0.0
    else:
        session, user, destination = known.session, known.user, known.destination
        age_s = max(0.0, time.time() - known.opened_at)
    parked = survivor.parked and known is not None
    return SessionRecord(
        session,
        user,
        destination,
        now - age_s,
        resumable=known is not None,
        state=SessionState.PARKED if parked else SessionState.LIVE,
        generation=survivor.generation,
        detached_at=now if parked else None,
    )


def _association(associations: Associations, known: StoredSession) -> Association | None:
    try:
        return associations.expect(known.association, known.user)
    except (AssociationTaken, AssociationLimit):
        return None
