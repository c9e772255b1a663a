"""What a server's SQLSTATEs mean, and its words where it gives none: which of our errors, and what helps. Pure.

`postgres` is the door; here is the table behind it, as `store.answers` is for S3.
"""

from collections.abc import Mapping, Sequence

from backupd.errors import (
    AccessRefused,
    BackupdError,
    DatabaseError,
    LocksExhausted,
    NoRoom,
    ReplicaConflict,
    TargetRefused,
    UsageError,
)

REPLICA_HINT = "Set hot_standby_feedback = on, or raise max_standby_streaming_delay, on the standby."

_CLASSES: Mapping[str, type[BackupdError]] = {
    "28": AccessRefused,  # invalid authorization
    "42501": AccessRefused,  # insufficient privilege
    "3D000": UsageError,  # no such database
    "55006": TargetRefused,  # a database to rename or drop has sessions
    "53100": NoRoom,  # disk full
    "53200": LocksExhausted,  # "out of shared memory", and seldom of all memory
    "40001": ReplicaConflict,  # on a standby: a recovery conflict
}

# libpq gives no SQLSTATE for a connection that was refused, only the server's words (untranslated on most servers)
_CONNECT_WORDS: Sequence[tuple[str, type[BackupdError]]] = (
    ("too many connections for ", DatabaseError),  # of a database or a role: it passes
    ("max_locks_per_transaction", LocksExhausted),  # in the server's hint, and a name, so never translated
    ("password authentication failed", AccessRefused),
    ("no password supplied", AccessRefused),
    ("no pg_hba.conf entry", AccessRefused),
    ("pg_hba.conf rejects", AccessRefused),
    ("authentication failed", AccessRefused),
    ("certificate", AccessRefused),
    ('role "', AccessRefused),
    ("permission denied for database", AccessRefused),
    ('database "', UsageError),
)

_HINTS: Mapping[type[BackupdError], str] = {
    AccessRefused: "`backupd doctor` tries every permission that is needed, and says which is missing.",
    UsageError: "Check BACKUPD_SOURCE__DATABASES; `psql -l` lists the server's databases.",
    ReplicaConflict: REPLICA_HINT,
    LocksExhausted: "Raise max_locks_per_transaction on the server, or run with BACKUPD_DUMP__JOBS=1.",
    DatabaseError: "`backupd doctor` tries the connection step by step.",
}


def error(state: str, text: str, said: str | None, place: str) -> BackupdError:
    """What the error of the server at that place is to us: by its SQLSTATE, or where that is empty by its text.

    `said` is the server's own detail, with which ours begins.
    """
    kind = _CLASSES.get(state) or _CLASSES.get(state[:2])
    if kind is None and not state:
        kind = next((kind for words, kind in _CONNECT_WORDS if words in text), None)
    kind = kind or DatabaseError
    detail = " ".join(filter(None, (said, f"SQLSTATE {state}." if state else None)))
    return kind(f"{place}: {text}", detail=detail or None, hint=_HINTS.get(kind))
