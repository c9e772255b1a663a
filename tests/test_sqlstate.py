"""What a server's SQLSTATEs and words mean, without a server."""

import pytest

from backupd import sqlstate
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

PLACE = "db:5432, database app"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("28P01", AccessRefused),
        ("28000", AccessRefused),
        ("42501", AccessRefused),
        ("42P01", DatabaseError),
        ("3D000", UsageError),
        ("55006", TargetRefused),
        ("53100", NoRoom),
        ("53200", LocksExhausted),
        ("53300", DatabaseError),
        ("40001", ReplicaConflict),
        ("57P01", DatabaseError),
    ],
)
def test_an_sqlstate_decides_and_is_in_the_detail(state: str, kind: type[BackupdError]) -> None:
    found = sqlstate.error(state, 'role "x" is not what decides', "The server's own words.", PLACE)

    assert type(found) is kind
    assert found.message == f'{PLACE}: role "x" is not what decides'
    assert found.detail == f"The server's own words. SQLSTATE {state}."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('FATAL:  password authentication failed for user "app"', AccessRefused),
        ("fe_sendauth: no password supplied", AccessRefused),
        ('FATAL:  role "app" does not exist', AccessRefused),
        ('FATAL:  database "app" does not exist', UsageError),
        ('FATAL:  too many connections for database "app"', DatabaseError),
        ('FATAL:  too many connections for role "app"', DatabaseError),
        ("connection refused", DatabaseError),
    ],
)
def test_without_one_the_words_do_but_not_those_of_the_place(text: str, kind: type[BackupdError]) -> None:
    found = sqlstate.error("", text, None, 'db:5432, database "role "')

    assert type(found) is kind
    assert found.detail is None


def test_every_class_but_those_of_room_and_targets_has_a_hint() -> None:
    for state in ("28000", "3D000", "40001", "53200", "57P01"):
        assert sqlstate.error(state, "x", None, PLACE).hint
