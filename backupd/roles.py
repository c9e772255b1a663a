"""The roles that a dump needs and a cluster lacks: what would be made of each, made, and gone again after a failure.

A dump has no roles, pg_dumpall asks for a superuser and takes the passwords along: so the roles that a dump refers to
are recorded in its contract, by what their passwords are checked only on demand, and made where they are missing. A
role that is there already is never changed, nor made a member or a group of anything.

A new role cannot log in, and is no superuser, whatever it was: an archive may come from a store that others can write.
What else gives power over others (CREATEDB, CREATEROLE, REPLICATION, BYPASSRLS) is given by a superuser only; an
ordinary role may not. What is left out is named, as the statement that gives it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import LiteralString

from backupd import facts, log
from backupd.errors import AccessRefused, BackupdError, TargetRefused
from backupd.manifest import Contract, Membership, Role
from backupd.postgres import Access, Session, connect

_log = log.get_logger()


@dataclass(frozen=True)
class Planned:
    """A role to make: with which attributes and groups, and which of its own (`withheld`, `left_groups`) it lacks."""

    role: Role
    given: tuple[LiteralString, ...]
    groups: tuple[Membership, ...]
    withheld: tuple[str, ...]
    left_groups: tuple[str, ...]


def plan(session: Session, contract: Contract) -> tuple[Planned, ...]:
    """The missing roles, sorted. Raises AccessRefused where there are any and the session's role may make none."""
    definitions = {role.name: role for role in contract.role_definitions}
    names = facts.missing_roles(session, {*contract.roles, *definitions})
    if not names:
        return ()
    superuser, may_create = session.row("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user")
    if not (superuser or may_create):
        raise AccessRefused(
            f"role may not create the missing roles: {', '.join(names)}",
            hint="ALTER ROLE ... CREATEROLE, have them made, or give --no-owner.",
        )
    return tuple(_planned(definitions.get(name, _unknown(name)), set(names), superuser) for name in names)


def _unknown(name: str) -> Role:
    """A role of which an older archive has the name only."""
    return Role(name, False, False, True, False, False, False, False)


def _planned(role: Role, made: set[str], superuser: bool) -> Planned:
    powers: tuple[tuple[LiteralString, bool], ...] = (
        ("CREATEDB", role.create_database),
        ("CREATEROLE", role.create_role),
        ("REPLICATION", role.replication),
        ("BYPASSRLS", role.bypass_row_security),
    )
    had = tuple(word for word, was in powers if was)
    never = tuple(word for word, was in (("LOGIN", role.login), ("SUPERUSER", role.superuser)) if was)
    given: tuple[LiteralString, ...] = () if role.inherit else ("NOINHERIT",)
    return Planned(
        role=role,
        given=(*given, *had) if superuser else given,
        groups=tuple(each for each in role.member_of if each.role in made),
        withheld=never if superuser else (*never, *had),
        left_groups=tuple(each.role for each in role.member_of if each.role not in made),
    )


def describe(planned: Planned) -> str:
    """What is made, and what is left to a person, in a sentence."""
    name, groups = _quoted(planned.role.name), ", ".join(_quoted(each.role) for each in planned.groups)
    made = " ".join(("NOLOGIN", *planned.given)) + (f", a member of {groups}" if groups else "")
    made += ", with its password" if planned.role.password else ""
    left = [f"ALTER ROLE {name} {' '.join(planned.withheld)};"] if planned.withheld else []
    left += [f"GRANT {_quoted(group)} TO {name};" for group in planned.left_groups]
    return f"role {name} is new: {made}" + (f"; left to you: {' '.join(left)}" if left else "")


def _quoted(name: str) -> str:
    """For people to read and paste; statements that are run are quoted by the session."""
    return '"' + name.replace('"', '""') + '"'


@contextlib.contextmanager
def created(access: Access, database: str, planned: Sequence[Planned], *, keep: bool) -> Iterator[None]:
    """Makes the roles, all or none; when the block raises they are dropped, unless what they own is to be kept.

    Whoever makes them becomes a member of each, unless a superuser: only so it may give them what they own.
    """
    if not planned:
        yield
        return
    with connect(access, database) as session:
        _create(session, access.major, planned)
    try:
        yield
    except BaseException:
        if not keep:
            _drop(access, database, planned)
        raise


def _create(session: Session, major: int, planned: Sequence[Planned]) -> None:
    superuser = session.row("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")[0]
    session.execute("BEGIN")
    for each in planned:
        words: list[LiteralString] = ["CREATE ROLE {} NOLOGIN", *each.given, "CONNECTION LIMIT {}"]
        session.execute(" ".join(words), [each.role.name], [each.role.connection_limit])
        if each.role.password:
            session.execute("ALTER ROLE {} PASSWORD {}", [each.role.name], [each.role.password])
        if not superuser:
            session.execute("GRANT {} TO CURRENT_USER", [each.role.name])
    for each in planned:
        for group in each.groups:
            session.execute(_grant(group, major), [group.role, each.role.name])
    session.execute("COMMIT")
    for each in planned:
        _log.info("role.created", role=each.role.name, what=describe(each))


def _grant(group: Membership, major: int) -> LiteralString:
    words: list[LiteralString] = ["GRANT {} TO {}"]
    if major < 16:
        return " ".join([*words, "WITH ADMIN OPTION"] if group.admin else words)
    options: list[LiteralString] = [
        "ADMIN TRUE" if group.admin else "ADMIN FALSE",
        "INHERIT TRUE" if group.inherit else "INHERIT FALSE",
        "SET TRUE" if group.set else "SET FALSE",
    ]
    return " ".join([*words, "WITH", ", ".join(options)])


def _drop(access: Access, database: str, planned: Sequence[Planned]) -> None:
    try:
        with connect(access, database) as session:
            for each in planned:
                session.execute("DROP ROLE IF EXISTS {}", [each.role.name])
    except BackupdError as exc:  # whatever it is, what made us drop them matters more
        names = [each.role.name for each in planned]
        _log.error("roles.left", roles=names, message=exc.message, action="drop them by hand; none can log in")


def require_role(session: Session, name: str) -> None:
    """Raises TargetRefused or AccessRefused unless the session's role may act as that one."""
    found = session.rows("SELECT pg_has_role(rolname, 'MEMBER') FROM pg_roles WHERE rolname = %s", [name])
    if not found:
        raise TargetRefused(
            f"role {name} does not exist on the target", hint="CREATE ROLE it, or name another in --role."
        )
    if not found[0][0]:
        raise AccessRefused(f"role may not become {name}", hint="GRANT it the role, or name another in --role.")
