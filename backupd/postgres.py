"""PostgreSQL: sessions and the exported snapshot. The only user of psycopg.

Hides how a server is reached (libpq's variables, our overrides, a passfile of our own because libpq ignores one that
a group may read, as on every Secret volume), which server of several it was (everything later is pinned to it), and
what SQLSTATEs mean. Above this door there are `Access` and `Session`, backupd's errors, and rows as tuples.

A pooler in between is refused: in transaction mode two runs got the same advisory lock, and it stayed after both left
(postgres.md 8). It shows itself: the protocol's backend pid is then not that of the backend.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
from psycopg import conninfo, sql
from psycopg.abc import RV, PQGen

from backupd import connection, scratch, sqlstate
from backupd.errors import (
    BackupdError,
    DatabaseError,
    UsageError,
)

CONNECT_TIMEOUT_SECONDS = "15"

_TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)


@dataclass(frozen=True)
class Access:
    """How to reach one server: keywords pinned to the one that answered first, through `database`; children's needs."""

    server: connection.Server
    database: str
    passfile: Path | None
    environment: Mapping[str, str] = field(repr=False)
    version_num: int
    version: str
    standby: bool
    started_at: float

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.version_num // 10000

    def conninfo(self, database: str) -> str:
        """A connection string for children's command lines: without the password."""
        return str(conninfo.make_conninfo(**self.server.keywords, dbname=database))


class _Link(psycopg.Connection[tuple[Any, ...]]):
    """A connection that may give its server up: one that hangs keeps its connections, and answers nothing.

    Keepalives are its kernel's to answer, and `statement_timeout` its own to keep.
    """

    patience_seconds: float | None = None

    def wait(self, gen: PQGen[RV], *arguments: Any, **keywords: Any) -> RV:  # noqa: ANN401  # a minor version's own
        """As psycopg's, through which every answer comes. Raises DatabaseError where none comes in time."""
        if self.patience_seconds is None:
            return super().wait(gen, *arguments, **keywords)
        try:
            return super().wait(_within(self.patience_seconds, gen, _place(self)), *arguments, **keywords)
        except DatabaseError:
            self.close()
            raise


def _within(seconds: float, answer: PQGen[RV], place: str) -> PQGen[RV]:
    """The same steps to an answer. Raises DatabaseError where it is not whole by then, however it trickles in."""
    deadline = time.monotonic() + seconds
    try:
        wanted = next(answer)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline:
                raise DatabaseError(
                    f"{place}: the server has not answered for {seconds:.0f} s",
                    detail="That is the longest that BACKUPD_DUMP__MAX_SECONDS allows.",
                    hint="Look whether it hangs: it still holds the connection. Then run the backup again.",
                )
            wanted = answer.send(ready)
    except StopIteration as exc:
        return cast("RV", exc.value)


class Session:
    """One connection in autocommit mode. Every failure is one of backupd's errors."""

    def __init__(self, link: "psycopg.Connection[tuple[Any, ...]]", place: str) -> None:
        self._link = link
        self.place = place

    @property
    def pid(self) -> int:
        """The server's process, as the protocol said."""
        return self._link.info.backend_pid

    def rows(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The query's rows."""
        with _translated(self.place):
            return self._link.execute(query, parameters or None).fetchall()

    def row(self, query: LiteralString, parameters: Sequence[object] = ()) -> tuple[Any, ...]:
        """The query's one row."""
        found = self.rows(query, parameters)
        if not found:
            raise _strange(self.place)
        return found[0]

    def analyze(self, tables: Sequence[tuple[str, str]]) -> None:
        """Gives the planner statistics of the tables (schema, name), each in a transaction of its own."""
        names = sql.SQL(", ").join(sql.Identifier(*name) for name in tables)
        with _translated(self.place):
            self._link.execute(sql.SQL("ANALYZE {}").format(names))

    def execute(self, statement: LiteralString, names: Sequence[str] = (), literals: Sequence[str | int] = ()) -> None:
        """Runs a statement in which each `{}` is a name, quoted, and then each further one a literal, quoted."""
        parts = [*(sql.Identifier(name) for name in names), *(sql.Literal(value) for value in literals)]
        with _translated(self.place):
            self._link.execute(sql.SQL(statement).format(*parts))

    def counts(self, tables: Sequence[tuple[str, str, bool]]) -> list[int]:
        """The rows of each table (schema, name, and whether with its partitions and children), by one statement."""
        each = [
            sql.SQL("(SELECT count(*) FROM {})" if descendants else "(SELECT count(*) FROM ONLY {})").format(
                sql.Identifier(schema, table)
            )
            for schema, table, descendants in tables
        ]
        with _translated(self.place):
            row = self._link.execute(sql.SQL("SELECT {}").format(sql.SQL(", ").join(each))).fetchone() or ()
        if len(row) != len(tables) or not all(isinstance(count, int) for count in row):
            raise _strange(self.place)
        return list(row)

    def copy_rows(
        self, table: Sequence[str], columns: Sequence[str], encoding: str, *, descendants: bool
    ) -> Iterator[bytes]:
        """COPY's text of those columns, a row at a time with its line break, in that encoding.

        Only the table's own rows, or those of its partitions too. Nothing may run on the session until it is at its
        end, or closed.
        """
        selection = sql.SQL(", ").join(map(sql.Identifier, columns))
        names = {"table": sql.Identifier(*table), "columns": selection, "encoding": sql.Literal(encoding)}
        query: LiteralString = "COPY {table} TO STDOUT (ENCODING {encoding})"
        if descendants:
            query = "COPY (SELECT {columns} FROM {table}) TO STDOUT (ENCODING {encoding})"
        elif columns:
            query = "COPY {table} ({columns}) TO STDOUT (ENCODING {encoding})"
        with (
            _translated(self.place),
            self._link.cursor() as cursor,
            cursor.copy(sql.SQL(query).format(**names)) as copy,
        ):
            for row in copy:
                yield bytes(row)

    def script(self, text: str) -> None:
        """Runs somebody's SQL, all of it in one transaction unless it says otherwise; an error names its line."""
        try:
            self._link.execute(text.encode())
        except psycopg.Error as exc:
            error = _translate(exc, self.place)
            if (position := exc.diag.statement_position) is not None:
                error.message = f"line {text.count(chr(10), 0, int(position) - 1) + 1}: {error.message}"
            raise error from exc

    def cancel(self) -> None:
        """Asks the server to cancel what another thread runs on this session."""
        with contextlib.suppress(psycopg.Error):
            self._link.cancel_safe(timeout=5)


@contextlib.contextmanager
def reach(server: connection.Server, database: str, folder: Path, application: str) -> Iterator[Access]:
    """Reaches a server for the first time and pins it; a passfile of our own lives in `folder` while the block runs.

    Its session does not: each is a slot of the server's that somebody else lacks. Raises UsageError, AccessRefused or
    DatabaseError where that fails or a pooler answers.
    """
    text = connection.passfile_text(server)
    passfile = _write_passfile(folder, text) if text is not None else None
    environment = connection.child_environment(server, passfile, application)
    try:
        with _connect(server, passfile, database, application) as link:
            access = _pinned(link, server, passfile, environment)
        yield access
    finally:
        if passfile is not None:
            with contextlib.suppress(OSError):  # what was done is done; the folder goes too, now or by the next run
                passfile.unlink()


def _pinned(
    link: "psycopg.Connection[Any]", server: connection.Server, passfile: Path | None, environment: Mapping[str, str]
) -> Access:
    session = Session(link, _place(link))
    refuse_pooler(session)
    version_num, version, standby, started_at = _looked_at(session)
    info = link.info
    pins = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port), "user": info.user}
    pinned = {**server.keywords, **{name: value for name, value in pins.items() if value}}
    return Access(
        server=replace(server, keywords=pinned),
        database=info.dbname,
        passfile=passfile,
        environment=environment,
        version_num=version_num,
        version=str(version).split()[0],
        standby=standby,
        started_at=started_at,
    )


def _looked_at(session: Session) -> tuple[int, str, bool, float]:
    """The server's version, as a number and in words, whether it is a standby, and when it was started."""
    found = session.row(
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
        " pg_is_in_recovery(), extract(epoch FROM pg_postmaster_start_time())::float8"
    )
    match found:
        case (int(number), str(version), bool(standby), float(started_at)) if number > 0 and version.strip():
            return number, version, standby, started_at
    raise _strange(session.place)


def _strange(place: str) -> DatabaseError:
    hint = "Check that PostgreSQL itself listens there: TLS with `verify-full` proves who answers."
    return DatabaseError(f"{place}: what answers there does not answer as PostgreSQL does", hint=hint)


def keywords(text: str, name: str) -> dict[str, str]:
    """The keywords of a connection string, which the variable of that `name` holds. Raises UsageError, without it."""
    try:
        found = conninfo.conninfo_to_dict(text)
    except psycopg.Error:
        raise UsageError(f"{name} is not a connection string that libpq takes") from None
    if "password" in found:
        raise UsageError(f"{name} has a password in it", hint=f"Set {name.removesuffix('URL')}PASSWORD_FILE instead.")
    return {keyword: str(value) for keyword, value in found.items() if value is not None}


def libpq_version() -> str:
    """The libpq that this process itself uses, which has security fixes of its own."""
    number = psycopg.pq.version()
    return f"{number // 10000}.{number % 10000}"


def refuse_pooler(session: Session) -> None:
    """Raises DatabaseError where something between us and PostgreSQL answered the connection."""
    if session.row("SELECT pg_backend_pid()")[0] != session.pid:
        raise DatabaseError(
            f"a connection pooler answers at {session.place}",
            detail="Locks and snapshots belong to sessions, and a pooler gives its sessions to others.",
            hint="Set PGHOST and PGPORT (or BACKUPD_SOURCE__HOST and __PORT) to PostgreSQL's own direct port.",
        )


@contextlib.contextmanager
def connect(access: Access, database: str) -> Iterator[Session]:
    """A session on the pinned server: no timeouts, UTC, row security off (an error, not a filter).

    Its search_path is empty, as that of every session of ours: only pg_catalog's own functions and operators are found.

    Raises DatabaseError where another server, or the same one after a restart, answers.
    """
    with _connect(access.server, access.passfile, database, access.environment["PGAPPNAME"]) as link:
        session = Session(link, _place(link))
        refuse_pooler(session)
        started_at = session.row("SELECT extract(epoch FROM pg_postmaster_start_time())::float8")[0]
        if started_at != access.started_at:
            detail = "Connections must reach one server: this one was started at another time than the first."
            raise DatabaseError(f"{session.place} is another server, or was restarted", detail=detail)
        _quieten(session)
        yield session


def _quieten(session: Session) -> None:
    session.rows("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY(%s)", [list(_TIMEOUTS)])
    session.execute("SET row_security = off")
    session.execute("SET synchronize_seqscans = off")
    session.execute("SET standard_conforming_strings = on")  # the queries' backslashes are themselves
    session.execute("SET DateStyle = 'ISO'")  # the only one that psycopg reads
    session.execute("SET TimeZone = 'UTC'")


@contextlib.contextmanager
def _connect(
    server: connection.Server, passfile: Path | None, database: str, application: str
) -> "Iterator[psycopg.Connection[tuple[Any, ...]]]":
    keywords = {
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        **server.keywords,
        **({"passfile": str(passfile)} if passfile else {}),
        **({"password": server.password} if server.password is not None else {}),
        "dbname": database,
        "application_name": application,
        "client_encoding": "utf8",
    }
    place = server.keywords.get("host") or "the configured host"
    try:
        with _translated(f"{place}, database {database}"):
            link = _Link.connect(conninfo.make_conninfo(**keywords), autocommit=True)
    except DatabaseError as exc:
        if not connection.names_host(server):
            exc.hint = "No host is set, so this machine was tried: set PGHOST or BACKUPD_SOURCE__HOST."
        raise
    link.patience_seconds = server.patience_seconds
    with contextlib.closing(link):
        # First of all: a database's owner may put a schema with a pg_backend_pid() of his own before pg_catalog.
        with _translated(_place(link)):
            link.execute("SET statement_timeout = 0")  # his may be a millisecond
            link.execute("SET search_path = ''")
        yield link


def _place(link: "psycopg.Connection[Any]") -> str:
    return f"{link.info.host}:{link.info.port}, database {link.info.dbname}"


@contextlib.contextmanager
def snapshot(access: Access, database: str) -> Iterator[tuple[Session, str]]:
    """A session in a read-only transaction, and the name of its exported snapshot; both end with the block."""
    with connect(access, database) as session:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield session, str(session.row("SELECT pg_export_snapshot()")[0])


def _write_passfile(folder: Path, text: str) -> Path:
    path = folder / "pgpass"
    with scratch.errors(path):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text, encoding="utf-8")
    return path


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as exc:
        raise _translate(exc, place) from exc
    except (ValueError, ArithmeticError, RecursionError) as exc:  # what came is of no type that it says to be
        raise _strange(place) from exc


def _translate(exc: psycopg.Error, place: str) -> BackupdError:
    text = (exc.diag.message_primary or str(exc).strip()).replace("\n", " ")
    return sqlstate.error(exc.sqlstate or "", text, exc.diag.message_detail, place)
