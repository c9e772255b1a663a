"""What a verb needs, made of the settings: catalog, a server that was reached, clients, the databases that are meant.

The settings end here and in `cli`: below there are values. What is heavy is imported where it is used, so that a verb
which only reads the catalog imports neither psycopg nor boto3.
"""

import contextlib
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from backupd import log, schedule, scratch, signing, table_pattern
from backupd.catalog import Catalog
from backupd.connection import Server, child_environment, without_libpq, without_secrets
from backupd.encryption import Identities
from backupd.errors import BackupdError, UsageError
from backupd.manifest import Filter
from backupd.selection import Wanted
from backupd.selector import Label
from backupd.settings import Settings
from backupd.store import Store, hint_of_second, open_store

if TYPE_CHECKING:
    from backupd import clients, dump, postgres, status

_log = log.get_logger()

_DROP_INVALID = "DROP DATABASE it: an interrupted one left it, nobody can connect, and it gets no backup"

MAINTENANCE_DATABASE = "postgres"
_DATABASES = "BACKUPD_SOURCE__DATABASES"
_LATE = 12  # a backup may take a twelfth of the time between two: daily ones may be 26 hours old
_DRILL_URL = "BACKUPD_DRILL__URL"


@dataclass(frozen=True)
class Installation:
    """The settings of this process, and what they make."""

    settings: Settings

    def catalog(self) -> Catalog:
        """The backups in the store. Raises UsageError where none is set."""
        return Catalog(self._store, self.keys(), self.identities())

    @cached_property
    def _store(self) -> Store:
        """Opened once: a client of S3 takes a tenth of a second, and with IRSA asks for credentials of its own."""
        return self._paced(open_store(self.settings.store_url(), self.settings.s3_options()))

    def _paced(self, store: Store) -> Store:
        from backupd.store.paced import Paced

        rate = self.settings.store.limit_rate
        return store if rate is None else Paced(store, rate)

    def keys(self) -> signing.Keys:
        """What is signed with, and whose signatures are believed. Raises UsageError where they do not fit."""
        chosen = self.settings.signing
        secret = signing.read_secret_key(chosen.key.get_secret_value()) if chosen.key else None
        return signing.Keys(secret, tuple(map(signing.read_public_key, chosen.public_keys)))

    def second_catalog(self, url: str | None = None) -> Catalog | None:
        """The backups in the second store, at that URL or the setting's; None where neither is given."""
        chosen = url or self.settings.copy.url
        if chosen is None:
            return None
        try:
            store = open_store(chosen, self.settings.copy_s3_options())
            return Catalog(self._paced(store), self.keys(), self.identities())
        except BackupdError as exc:
            exc.hint = exc.hint and hint_of_second(exc.hint)
            raise

    def identities(self) -> Identities:
        """What opens encrypted archives here; the file is read when it is first needed."""
        return Identities(self.settings.encryption.identities_file)

    @contextlib.contextmanager
    def source(self, purpose: str, patience_seconds: float | None = None) -> "Iterator[postgres.Access]":
        """The source's server, reached by the first of its databases that lets us in."""
        named = (*_literal(self.settings.source.databases), self.settings.default_database, MAINTENANCE_DATABASE)
        databases = list(dict.fromkeys(name for name in named if name))
        server = replace(self.settings.source_server(), patience_seconds=patience_seconds)
        with _reached(server, databases, purpose) as access:
            yield access

    @contextlib.contextmanager
    def target(self, purpose: str, database: str) -> "Iterator[postgres.Access]":
        """The server that restores go to, reached by that database."""
        with _reached(self.settings.target_server(), [database], purpose) as access:
            yield access

    @contextlib.contextmanager
    def drill_server(self, archive_major: int) -> "Iterator[postgres.Access]":
        """The server that drills restore into: the setting's, or one that is started for it and gone afterwards."""
        from backupd import drill, postgres

        environment = self.settings.environment
        if self.settings.drill.url is None:
            scratch_folder = self.settings.scratch.directory
            own = drill.own_server(archive_major, scratch_folder, without_libpq(environment))
            with own as server, _reached(server, [MAINTENANCE_DATABASE], "drill") as access:
                yield access
            return
        keywords = postgres.keywords(self.settings.drill.url, _DRILL_URL)
        database = keywords.pop("dbname", MAINTENANCE_DATABASE)
        missing = [name for name in ("host", "user") if not keywords.get(name)]
        if missing:
            hint = "Nothing is taken over from the source, which a drill must never reach by mistake."
            raise UsageError(f"{_DRILL_URL} names no {missing[0]}", hint=hint)
        with _reached(self.settings.drill_server(keywords), [database], "drill") as access:
            yield access

    def clients(self) -> "list[clients.Client]":
        """PostgreSQL's clients on this machine."""
        from backupd import clients

        environment = child_environment(
            Server({}, environment=without_secrets(self.settings.environment)), None, "backupd"
        )
        return clients.find_clients(self.settings.dump.clients, environment)

    def dump_options(self) -> "dump.Options":
        """How dumps are made."""
        from backupd import dump

        chosen = self.settings.dump
        return dump.Options(
            jobs=chosen.job_count,
            compression=chosen.compression,
            include=chosen.include,
            exclude=chosen.exclude,
            lock_wait_seconds=chosen.lock_wait.total_seconds(),
            max_seconds=chosen.max_seconds,
            vacuum_age=chosen.vacuum_age,
            nice=chosen.nice,
        )

    def filter(self) -> Filter | None:
        """The patterns that make this installation's backups filtered ones."""
        chosen = self.settings.dump
        return Filter(chosen.include, chosen.exclude) if chosen.include or chosen.exclude else None

    def databases(self, access: "postgres.Access", names: Sequence[str]) -> list[str]:
        """The databases that `names`, else the settings, mean. Raises UsageError where a pattern matches none."""
        from backupd import facts, postgres

        wanted = self._wanted(names)
        if not any(_is_pattern(name) for name in wanted):
            return wanted
        with postgres.connect(access, access.database) as session:
            there = facts.databases(session)
            for name in facts.invalid_databases(session):
                if any(_is_pattern(each) and _matches(each, [name]) for each in wanted):
                    _log.warning("database.invalid", database=name, action=_DROP_INVALID)
        return choose(wanted, there)

    def databases_unasked(self, names: Sequence[str], known: Sequence[Label]) -> list[str]:
        """As `databases`, where the server cannot be asked: a pattern means those that the store knows, if any."""
        there = [label.database for label in known]
        return list(dict.fromkeys(each for name in self._wanted(names) for each in _matches(name, there)))

    def _wanted(self, names: Sequence[str]) -> list[str]:
        default = self.settings.default_database
        wanted = list(names) or list(self.settings.source.databases) or ([default] if default else [])
        if not wanted:
            raise UsageError("no database is named", hint="Name one, or set BACKUPD_SOURCE__DATABASES or PGDATABASE.")
        if not self.settings.source.services and (one := self.settings.of_index(wanted, _DATABASES)) is not None:
            _refuse_patterns(wanted)
            return [one]
        return list(dict.fromkeys(wanted))

    def databases_of_job(self) -> list[str]:
        """The databases that a Job made from a template names in its environment."""
        text = self.settings.environment.get("BACKUPD_BACKUP_DATABASES", "")
        return [name.strip() for name in text.split(",") if name.strip()]

    def selection_of_job(self) -> Wanted:
        """The tables and schemas that a Job made from a template names in its environment."""
        environment = self.settings.environment
        tables, schemas = (environment.get(f"BACKUPD_RESTORE_{what}", "") for what in ("TABLE", "SCHEMA"))
        return Wanted(table_pattern.split(tables), table_pattern.split(schemas))

    @property
    def names_databases(self) -> bool:
        """Whether the settings say which databases should have backups."""
        return bool(self.settings.source.databases or self.settings.default_database)

    def ask_expected(self) -> tuple[Label, ...]:
        """The labels that should have backups, as the source says. Raises where it cannot be asked."""
        with self.source("check") as access:
            return tuple(Label(self.settings.server_label, name) for name in self.databases(access, ()))

    def expected(self) -> tuple[Label, ...] | None:
        """The labels that should have backups, where the source can be asked; None means those of the catalog."""
        if not self.names_databases:
            return None
        try:
            return self.ask_expected()
        except BackupdError as exc:
            _log.warning("source.unreachable", message=exc.message, action="databases without a backup are not seen")
            return None

    def expectations(self, labels: tuple[Label, ...] | None, now: datetime) -> "status.Expected":
        """What is expected of those labels, or of those of the catalog."""
        from backupd import status

        wanted, chosen = self.settings.expect, self.settings.schedule
        within = wanted.backup_within or self.settings.retention.expect_within
        if within is None and chosen.cron is not None:
            between = schedule.interval(chosen.schedule(chosen.cron), now)
            within = between + max(between / _LATE, chosen.jitter or timedelta(0))
        return status.Expected(
            server=self.settings.known_label or "",
            labels=labels,
            **({} if within is None else {"max_age": within}),
            verified_within=wanted.verify_within,
            drilled_within=wanted.drill_within,
            filter=self.filter(),
            policy=self.settings.retention.policy(),
        )


def choose(wanted: Iterable[str], there: Sequence[str]) -> list[str]:
    """The names that are meant, each once: a pattern's matches among `there`, a plain name as it is."""
    chosen: list[str] = []
    for name in wanted:
        matches = _matches(name, there)
        if not matches:
            hint = f"The server has: {', '.join(there[:20])}."
            raise UsageError(f"no database matches {name!r}", hint=hint)
        chosen += matches
    return list(dict.fromkeys(chosen))


def _matches(name: str, there: Iterable[str]) -> list[str]:
    return [each for each in there if fnmatch.fnmatchcase(each, name)] if _is_pattern(name) else [name]


def _refuse_patterns(wanted: Sequence[str]) -> None:
    """What a pattern matches may change between the pods of an Indexed Job."""
    patterns = [name for name in wanted if _is_pattern(name)]
    if patterns:
        message = f"an Indexed Job needs the names of its databases, and {patterns[0]!r} is a pattern"
        raise UsageError(message, hint=f"List every name in {_DATABASES}.")


def _literal(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _is_pattern(name)]


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


@contextlib.contextmanager
def _reached(server: Server, databases: Sequence[str], purpose: str) -> "Iterator[postgres.Access]":
    """The server, by the first of the databases that answers; the first one's error where none does."""
    from backupd import postgres

    with scratch.open_scratch(None, "access") as folder, contextlib.ExitStack() as stack:
        failures: list[BackupdError] = []
        for database in databases:
            try:
                access = stack.enter_context(postgres.reach(server, database, folder, f"backupd {purpose}"))
            except BackupdError as exc:
                failures.append(exc)
                continue
            yield access
            return
        raise failures[0]
