"""How a server is reached, as values: keywords, password, and the environment of the children that talk to it.

Hides libpq's rules: a keyword wins over PGSERVICE's file, which wins over the environment; an empty `hostaddr` or
`password` is a value that keeps PGHOSTADDR or PGPASSWORD out; a password file is ignored where others may read it,
as on a Secret volume, and has escapes of its own. Every libpq variable of the process keeps working for the source:
`keywords` hold only what must win.

Not a connection URI: a password in it would be readable in every child's command line, and what a URI leaves out comes
from variables that may be meant for another server. Nothing here connects: `postgres` does, and `dump` starts children.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backupd.errors import UsageError

CHILD_OPTIONS = "-c TimeZone=UTC -c bytea_output=hex -c lc_monetary=C -c statement_timeout=0 -c synchronous_commit=off"
"""Session settings of every client: the first three make a row's text the same wherever it is written, and pg_dump sets
none of them; a database's own timeout, of a millisecond, can end a client before it has lifted it. pg_restore's
commits, one or more a table, wait for no disk: a restore's last commit is ours, and waits for all before it."""

_SECRET_PREFIXES = ("BACKUPD_", "AWS_")
_SECRET_NAMES = frozenset({"PGPASSWORD", "PGPASSFILE"})
_SERVER_NAMES = frozenset(
    {"PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE", "PGTARGETSESSIONATTRS"}
)


@dataclass(frozen=True)
class Server:
    """One server, as source or target.

    `keywords` are libpq's, without the database and never with a secret (an empty `password` keeps PGPASSWORD out).
    `passfile` is the text of the user's PGPASSFILE. `environment` is what children get: the process's own without any
    secret. An answer to a session of ours may take `patience_seconds`, or for ever.
    """

    keywords: Mapping[str, str]
    password: str | None = field(default=None, repr=False)
    passfile: str | None = field(default=None, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    patience_seconds: float | None = None


def passfile_text(server: Server) -> str | None:
    """What a 0600 password file for children must hold; None leaves libpq to its own default, `~/.pgpass`."""
    if server.password is None:
        return server.passfile
    if not can_be_in_passfile(server.password):
        raise UsageError(
            "the database password contains a line break",
            detail="A password file has one line an entry, so children could not be given this password.",
            hint="If it comes from a file, leave at most one line break at its end.",
        )
    return f"*:*:*:*:{_escaped(server.password)}\n"


def names_host(server: Server) -> bool:
    """Whether anything says where the server is; else libpq looks for one on this machine."""
    keywords = ("host", "hostaddr", "service")
    variables = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
    return any(map(server.keywords.get, keywords)) or any(map(server.environment.get, variables))


def can_be_in_passfile(password: str) -> bool:
    """Whether a password file, which has one line an entry, can hold the password."""
    return not any(character in password for character in "\n\r\0")


def passfile_passwords(text: str) -> tuple[str, ...]:
    """The passwords in a password file's text, unescaped. Only a line feed ends a line, as for libpq."""
    entries = (_fields(line.rstrip("\r")) for line in text.split("\n") if not line.startswith("#"))
    return tuple(fields[4] for fields in entries if len(fields) > 4 and fields[4])


def child_environment(server: Server, passfile_path: Path | None, application_name: str) -> dict[str, str]:
    """The whole environment of a child that talks to the server; `passfile_path` holds `passfile_text`, if any.

    The user's PGOPTIONS stay and come first, so that ours win: without them rows could not be compared.
    """
    environment = dict(server.environment)
    environment["PGAPPNAME"] = application_name
    environment["PGOPTIONS"] = f"{environment.get('PGOPTIONS', '')} {CHILD_OPTIONS}".strip()
    environment |= {"PG_COLOR": "never", "LC_ALL": "C", "LC_MESSAGES": "C"}
    if passfile_path is not None:
        environment["PGPASSFILE"] = str(passfile_path)
    return environment


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without its secrets and without what only backupd and S3 read."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _SECRET_NAMES and not name.startswith(_SECRET_PREFIXES)
    }


def without_server(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the libpq variables that say which server and user; for children of another server."""
    return {name: value for name, value in environment.items() if name not in _SERVER_NAMES}


def without_libpq(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without secrets and without any libpq variable; for children of a server of our own."""
    return {name: value for name, value in without_secrets(environment).items() if not name.startswith("PG")}


def _escaped(password: str) -> str:
    return password.replace("\\", "\\\\").replace(":", "\\:")


def _fields(line: str) -> list[str]:
    fields, escaped = [""], False
    for character in line:
        if character == ":" and not escaped:
            fields.append("")
        elif character == "\\" and not escaped:
            escaped = True
            continue
        else:
            fields[-1] += character
        escaped = False
    return fields
