"""What a database has besides its content: the statements that give it settings, limit, comment, grants and owner.

Each is a step with a savepoint of its own: a target may refuse some of them to the role that restores, and what is
refused would else undo all the others.
"""

import re
from collections.abc import Iterable, Mapping
from typing import LiteralString

from backupd import marks
from backupd.errors import AccessRefused, DatabaseError
from backupd.manifest import DatabaseProperties, Setting
from backupd.postgres import Session

Step = tuple[LiteralString, list[str], list[str | int]]
"""A statement with its names and its literals, as `Session.execute` takes them."""


def steps(name: str, like: DatabaseProperties) -> list[Step]:
    """What gives a closed database those settings, limit, comment and grants and, last of all, that owner."""
    return [
        *setting_steps(name, like),
        ("ALTER DATABASE {} CONNECTION LIMIT {}", [name], [like.connection_limit]),
        comment_step(name, like.comment),
        *_grant_steps(name, like),
        ("ALTER DATABASE {} OWNER TO {}", [name, like.owner], []),
    ]


def admission_steps(session: Session, name: str) -> list[Step]:
    """What lets a closed database's owner in again, and takes away what let whoever restored it in instead."""
    query: LiteralString = (
        "SELECT pg_get_userbyid(d.datdba), array(SELECT pg_get_userbyid(a.grantee)::text FROM aclexplode(d.datacl) a"
        " WHERE a.privilege_type = 'CONNECT' AND a.grantee NOT IN (0, d.datdba)) FROM pg_database d WHERE datname = %s"
    )
    owner, others = session.row(query, [name])
    taken: list[Step] = [("REVOKE CONNECT ON DATABASE {} FROM {}", [name, other], []) for other in others]
    return [*taken, ("GRANT CONNECT ON DATABASE {} TO {}", [name, owner], [])]


def setting_steps(name: str, like: DatabaseProperties) -> list[Step]:
    """What gives the database those settings, its own and those of roles in it."""
    return [step for setting in like.settings for step in _setting_steps(name, setting)]


def comment_step(name: str, comment: str | None) -> Step:
    """What gives the database that comment, or none.

    Never a mark of ours, which archives of databases that had one may hold: `undo --drop` would drop the database.
    """
    own = marks.own_comment(comment)
    if own is None:
        return "COMMENT ON DATABASE {} IS NULL", [name], []
    return "COMMENT ON DATABASE {} IS {}", [name], [own]


# settings whose value is a list of names, which quoted as one literal would be one name (variable_is_guc_list_quote)
_LISTS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
_ELEMENT = re.compile(r'"((?:[^"]|"")*)"|([^,\s]+)')


def _setting_steps(name: str, setting: Setting) -> list[Step]:
    names = [setting.role, name, setting.name] if setting.role else [name, setting.name]
    head: LiteralString = "ALTER ROLE {} IN DATABASE {} SET {} " if setting.role else "ALTER DATABASE {} SET {} "
    if setting.name.lower() not in _LISTS:
        return [(head + "TO {}", names, [setting.value])]
    found = _ELEMENT.finditer(setting.value)
    elements: list[str | int] = [each[2] if each[1] is None else each[1].replace('""', '"') for each in found]
    if not elements:  # TO '' would be a list of one empty name, and a library of that name keeps every session out
        return [("SELECT set_config({}, '', true)", [], [setting.name]), (head + "FROM CURRENT", names, [])]
    return [(head + "TO " + ", ".join("{}" for _ in elements), names, elements)]


_GRANTS: Mapping[str, LiteralString] = {
    "CONNECT": "GRANT CONNECT ON DATABASE {} TO ",
    "CREATE": "GRANT CREATE ON DATABASE {} TO ",
    "TEMPORARY": "GRANT TEMPORARY ON DATABASE {} TO ",
}


def _grant_steps(name: str, like: DatabaseProperties) -> list[Step]:
    if like.grants is None:
        return [("GRANT CONNECT ON DATABASE {} TO PUBLIC", [name], [])]
    steps: list[Step] = [("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC", [name], [])]
    for grant in like.grants:
        if grant.privilege not in _GRANTS:
            continue
        option: LiteralString = " WITH GRANT OPTION" if grant.grantable else ""
        who: LiteralString = "{}" if grant.role else "PUBLIC"
        names = [name, grant.role] if grant.role else [name]
        steps.append((_GRANTS[grant.privilege] + who + option, names, []))
    return steps


def try_each(session: Session, steps: Iterable[Step]) -> list[str]:
    """Takes the steps in the session's transaction; those that are refused are left out, and returned as text."""
    refused = []
    for statement, names, literals in steps:
        session.execute("SAVEPOINT step")
        try:
            session.execute(statement, names, literals)
        except (AccessRefused, DatabaseError) as exc:
            session.execute("ROLLBACK TO SAVEPOINT step")
            refused.append(f"{statement.format(*names, *('...' for _ in literals))}: {exc.message}")
    return refused
