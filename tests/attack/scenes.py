"""What a run was about to do when it was struck, the state that it began from, and what must be true afterwards.

A scene knows nothing of faults. `judge` asserts every promise, whatever the moment was: what is listed verifies;
nothing is lost that was listed before; the live database is one whole database under its name, which accepts
connections; the next run succeeds; what the struck run left is gone after it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyrage
from attack.ground import LARGER, STOCKED, TINY, Ground
from attack.traced import BACKUPD, CLIENT
from fix_tools import LABEL, Ended, Site
from psycopg import sql

from backupd import errors, verify
from backupd.catalog import Catalog
from backupd.manifest import Backup
from backupd.marks import Mark
from backupd.progress import Progress

LIVE, OTHER = "live", "other"
"""The database that is replaced, and one with other rows, of which it is a copy before."""

RESTORE = ("restore", f"{LABEL}/{TINY}@latest", "--replace", LIVE, "--yes-replace", LIVE)

CODES = {0, *(kind.exit_code for kind in errors.BackupdError.__subclasses__()), 130, 143}
"""How a run may end; 1 is a bug."""


@dataclass(frozen=True)
class State:
    """An installation, and the ids that it listed before, newest first: ids of one second are in no order."""

    ground: Ground
    site: Site
    catalog: Catalog
    before: Sequence[str] = ()

    def listed(self) -> list[str]:
        """The ids of what is listed; nothing listed may be broken."""
        listing = self.catalog.backups()
        assert listing.broken == (), f"listed, and broken: {listing.broken}"
        return [each.id for each in listing.backups]


@dataclass(frozen=True)
class Scene:
    """A command line, the state before it, and what is asked afterwards (in a few words: what it found)."""

    name: str
    arguments: Sequence[str]
    fresh: Callable[[Ground], State]
    judge: Callable[[State, Ended], str]
    share: int
    """How many of a hundred attacks are on it."""
    victims: Sequence[str] = (BACKUPD, CLIENT)
    every: Sequence[str] = ()
    """The calls of backupd that decide: a kill at every one of them is tried before any other."""


def scenes() -> list[Scene]:
    """All of them."""
    backup, prune = ("backup", TINY), ("prune", "--yes")
    return [
        Scene("backup to a directory", backup, _store(s3=False), _judge_store, 22, every=("link", "fsync")),
        Scene("backup to S3", backup, _store(s3=True), _judge_store, 15),
        Scene("backup to S3 in parts", ("backup", LARGER), _store(s3=True), _judge_parts, 6),
        Scene("prune in a directory", prune, _store(s3=False, keep=1), _judge_prune, 7, (BACKUPD,), ("unlink",)),
        Scene("prune in S3", prune, _store(s3=True, keep=1), _judge_prune, 7, (BACKUPD,), ("sendto",)),
        Scene("restore --replace from a directory", RESTORE, _live(s3=False), _judge_replace, 13),
        Scene("restore --replace from S3", RESTORE, _live(s3=True), _judge_replace, 5),
        Scene("rekey", ("rekey", f"{LABEL}/{TINY}@latest"), _keyed, _judge_rekey, 8, (BACKUPD,), ("link",)),
        Scene("undo", ("undo", LIVE), _swapped, _judge_undo, 25, (BACKUPD,), ("sendto",)),
    ]


# --- stores


def _store(*, s3: bool, keep: int = STOCKED) -> Callable[[Ground], State]:
    def fresh(ground: Ground) -> State:
        site = ground.stocked(s3=s3)
        site.settings |= {"BACKUPD_RETENTION__KEEP_LAST": str(keep), "BACKUPD_RETENTION__FLOOR": str(keep)}
        catalog = site.catalog
        return State(ground, site, catalog, [each.id for each in catalog.backups().backups])

    return fresh


def _judge_store(state: State, ended: Ended) -> str:
    new = _judge_new(state, ended)
    return _judge_backup(state, ended, TINY, [*new, *state.before][:STOCKED])


def _judge_parts(state: State, ended: Ended) -> str:
    new = _judge_new(state, ended)
    return _judge_backup(state, ended, LARGER, [*state.before, *new])


def _judge_new(state: State, ended: Ended) -> list[str]:
    new = [each.id for each in _listed(state) if each.id not in state.before]
    assert len(new) <= 1
    assert new or ended.code, "the run ended well, and no backup is listed"
    return new


def _judge_backup(state: State, ended: Ended, database: str, promised: Sequence[str]) -> str:
    listed = state.listed()
    lost = {*promised} - {*listed}
    assert not lost, f"lost {sorted(lost)}"
    _judge_next_backup(state, database)
    return f"{_told(ended)}, {len({*listed} - {*state.before})} new of {len(listed)}"


def _judge_prune(state: State, ended: Ended) -> str:
    newest = state.before[0]
    listed = [each.id for each in _listed(state)]
    assert newest in listed, "the newest backup was removed"
    said = ended.code or "backup.broken" in ended.stderr  # what cannot be read stays, and is named
    assert len(listed) == 1 or said, "the run ended well, and more is there than the policy keeps"
    again = state.ground.launcher.run(state.site, "prune", "--yes").ended
    assert again.code == 0, again.stderr
    left = state.listed()
    assert left == [newest], f"prune left {left}, the newest is {newest}"
    _judge_next_backup(state, TINY)
    return f"{_told(ended)}, {len(state.before) - len(listed)} of {len(state.before) - 1} removed"


def _keyed(ground: Ground) -> State:
    """Backups in clear, and an installation that encrypts."""
    site = ground.stocked()
    identity = pyrage.x25519.Identity.generate()
    (site.folder / "identity").write_text(f"{identity}\n")
    site.settings["BACKUPD_ENCRYPTION__RECIPIENTS"] = str(identity.to_public())
    site.settings["BACKUPD_ENCRYPTION__IDENTITIES_FILE"] = str(site.folder / "identity")
    catalog = site.catalog
    return State(ground, site, catalog, [each.id for each in catalog.backups().backups])


def _judge_rekey(state: State, ended: Ended) -> str:
    new = _judge_new(state, ended)
    again = state.ground.launcher.run(state.site, "rekey", f"{LABEL}/{TINY}@{state.before[0]}").ended
    assert again.code == 0, again.stderr
    listed = _listed(state)
    assert {each.id for each in listed} > {*state.before}, "lost what was listed before"
    made = [each for each in listed if each.rekeyed_from == state.before[0]]
    assert len(made) == 1 == len(listed) - len(state.before), f"rekeyed as {[each.id for each in made]}"
    state.catalog.sweep(LABEL, TINY, datetime.now(UTC) + timedelta(days=1))
    assert state.catalog.backups().orphans == ()
    _assert_clean(state.site)
    return f"{_told(ended)}, {len(new)} new of {len(listed)}"


def _judge_next_backup(state: State, database: str) -> None:
    """The next run succeeds, and sweeps what the last one left; files without an owner only once they are old."""
    state.ground.wait_until_gone()
    again = state.ground.launcher.run(state.site, "backup", database, "--wait", "20").ended
    assert again.code == 0, again.stderr
    assert state.listed(), "nothing is listed"
    assert state.catalog.backups().orphans == (), "the next run swept no orphans"
    later = datetime.now(UTC) + timedelta(days=1)
    state.catalog.sweep(LABEL, database, later)
    _assert_clean(state.site)
    assert list(state.catalog.store.sweep("", later)) == [], "something unfinished is no database's"


def _listed(state: State) -> Sequence[Backup]:
    """What is listed; each is read back to its last byte."""
    listing = state.catalog.backups()
    assert listing.broken == (), f"listed, and broken: {listing.broken}"
    for backup in listing.backups:
        read_back(state.catalog, backup)
    return listing.backups


def _assert_clean(site: Site) -> None:
    """As Site's, but for the file by which Python tries TMPDIR: it outlives a kill at that moment, and is its own."""
    for path in site.temporary.iterdir():
        if path.is_file() and path.read_bytes() in (b"", b"blat"):
            path.unlink()
    left = sorted(str(path) for folder in (site.scratch, site.temporary) for path in folder.rglob("*"))
    assert left == [], f"left by a killed run: {left}"
    site.assert_clean()


def read_back(catalog: Catalog, backup: Backup) -> None:
    """Raises where not every byte of it is as it was promised."""
    verify._read(catalog.archive(backup), Progress())  # as `verify`, but writes no note


# --- databases


def _live(*, s3: bool) -> Callable[[Ground], State]:
    def fresh(ground: Ground) -> State:
        site = ground.stocked(s3=s3)
        _make_other(ground)
        ground.drop(LIVE)
        ground.make(LIVE, OTHER)
        return State(ground, site, site.catalog)

    return fresh


def _swapped(ground: Ground) -> State:
    """As after `restore --replace`: what was restored is live, what was live is kept."""
    _make_other(ground)
    ground.drop(LIVE)
    ground.make(LIVE, TINY)
    kept = f"{LIVE}_before_20260101000000"
    ground.make(kept, OTHER)
    mark = Mark("kept", "20260101T000000Z-00000000", LIVE, "20260101000000").text()
    with ground.server.connect() as connection:
        connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(kept), mark))
    site = ground.site()
    return State(ground, site, site.catalog)


def _make_other(ground: Ground) -> None:
    with ground.server.connect() as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [OTHER]).fetchone() is not None:
            return
    ground.make(OTHER, TINY)
    with ground.server.connect(OTHER) as connection:
        connection.execute("UPDATE things SET name = 'other ' || name")


def _judge_replace(state: State, ended: Ended) -> str:
    ground, site = state.ground, state.site
    holds = _content(ground)
    assert holds == TINY or ended.code, "the run ended well, and the live database is the old one"
    resumed = ground.launcher.run(site, "restore", "--resume", LIVE).ended
    assert resumed.code == 0, resumed.stderr
    _assert_only_kept(ground)
    again = ground.launcher.run(site, *RESTORE).ended
    assert again.code == 0, again.stderr
    assert _content(ground) == TINY
    _assert_only_kept(ground)
    _assert_clean(site)
    return f"{_told(ended)}, {LIVE} held {holds}"


def _judge_undo(state: State, ended: Ended) -> str:
    ground, site = state.ground, state.site
    holds = _content(ground)
    assert holds == OTHER or ended.code, "the run ended well, and the live database is as it was"
    _assert_only_kept(ground)
    again = ground.launcher.run(site, "undo", LIVE).ended
    assert again.code == 0, again.stderr
    assert _content(ground) != holds, "undo did not swap"
    _assert_only_kept(ground)
    _assert_clean(site)
    return f"{_told(ended)}, {LIVE} held {holds}"


def _content(ground: Ground) -> str:
    """Which of the two the live database is, as a user that nobody made special finds it; else it is neither."""
    digests = {_digest(ground, name): name for name in (TINY, OTHER)}
    digest = _digest(ground, LIVE)
    assert digest in digests, f"{LIVE} holds neither: {digest}"
    query = (
        "SELECT datallowconn, datistemplate, datconnlimit, has_database_privilege('public', oid, 'CONNECT'),"
        " shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    )
    with ground.server.connect() as connection:
        rows = connection.execute(query, [LIVE]).fetchall()
    assert rows == [(True, False, -1, True, None)], rows
    return digests[digest]


def _digest(ground: Ground, name: str) -> str:
    with ground.server.connect(name) as connection:
        row = connection.execute(
            "SELECT md5(string_agg(id || name, ',' ORDER BY id)) || (SELECT count(*) FROM empty)"
            " || (SELECT string_agg(encode(lo_get(oid), 'hex'), ',') FROM pg_largeobject_metadata) FROM things"
        ).fetchone()
    assert row is not None
    return str(row[0])


def _assert_only_kept(ground: Ground) -> None:
    """Beside the live database there are only such as had its name before; every one of them is whole."""
    query = "SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database WHERE starts_with(datname, %s)"
    with ground.server.connect() as connection:
        rows = connection.execute(query, [f"{LIVE}_"]).fetchall()
    for name, comment in rows:
        assert comment, f"{name} has no comment"
        assert comment.startswith("backupd kept this database"), (name, comment)
        assert _digest(ground, name) in {_digest(ground, TINY), _digest(ground, OTHER)}


def _told(ended: Ended) -> str:
    """How the run ended; never as a bug, unless a signal ended it."""
    assert ended.code < 0 or ended.code in CODES, f"exit code {ended.code}: {ended.stderr}"
    return f"ended with {ended.code}"
