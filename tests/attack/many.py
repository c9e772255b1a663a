"""Many at once: eight processes back up fifty databases into one store, with prune and restore beside them.

Each attack is a round. Seven databases are backed up at the same time, one of them twice; meanwhile the policy is
applied to all again and again, and some database is restored from its latest backup. The dump of the one that comes
twice is held until the other run of it has ended, so that the two meet in every round.
"""

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from attack.ground import TINY, Ground, ground
from attack.outcome import Attack
from attack.scenes import read_back
from attack.traced import RUN_SECONDS, Launcher, Traced, launcher
from fix_tools import LABEL, Ended, Site, locked_table

WHOLE, PART = 350, 2

DATABASES, PROCESSES, KEPT = 50, 8, 2
MEETING_SECONDS = RUN_SECONDS - 5
"""When a dump is let go whose other run was not refused."""


@dataclass
class Crowd:
    """Who takes part, what they work on, and when every backup was begun that was ever taken, by database."""

    ground: Ground
    site: Site
    launchers: list[Launcher]
    taken: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Rounds of databases of chance, all into one store."""
    chance = random.Random(seed)
    with ground(folder, max_connections="300") as made, contextlib.ExitStack() as stack:
        names = [f"many_{number:02}" for number in range(DATABASES)]
        for name in names:
            made.make(name, TINY)
        launchers = [stack.enter_context(launcher(folder / f"launcher{number}")) for number in range(PROCESSES + 2)]
        policy = {"BACKUPD_RETENTION__KEEP_LAST": str(KEPT), "BACKUPD_RETENTION__FLOOR": str(KEPT)}
        crowd = Crowd(made, made.site(**policy), launchers)
        for number in range(count):
            chosen = chance.sample(names, PROCESSES - 1)
            yield Attack(f"round {number}", partial(_act, crowd, [*chosen, chosen[0]], chance.choice(names)))


def _act(crowd: Crowd, databases: list[str], restored: str) -> str:
    with ThreadPoolExecutor(PROCESSES + 2) as pool:
        with locked_table(crowd.ground.server, databases[0], "things"):
            backups = [
                pool.submit(each.run, crowd.site, "backup", "--json", name, alone=False)
                for each, name in zip(crowd.launchers, databases, strict=False)
            ]
            pruned = pool.submit(_prune, crowd, backups)
            back = pool.submit(_restore, crowd, restored) if restored in crowd.taken else None
            wait((backups[0], backups[-1]), MEETING_SECONDS, FIRST_COMPLETED)
        ended = [future.result().ended for future in backups]
        prunes, went = pruned.result(), "restored" if back and back.result() else "none to restore"
    good = [_note(crowd, each) for each in ended if each.code == 0]
    busy = [each for each in ended if each.code == 11]
    assert len(good) + len(busy) == PROCESSES, [each.stderr for each in ended if each.code not in (0, 11)]
    assert len(busy) == 1, f"{len(busy)} runs found their database locked, where one came twice"
    _judge(crowd, good)
    return f"{len(good)} backups, {len(busy)} locked out, {prunes} prunes, {went}"


def _prune(crowd: Crowd, backups: Sequence[Future[Traced]]) -> int:
    """Prunes, with reasons and for good, until the backups have ended."""
    for number in range(1000):
        ended = crowd.launchers[PROCESSES].run(crowd.site, "prune", "--yes", alone=False).ended
        assert ended.code == 0, ended.stderr
        if all(each.done() for each in backups):
            return number + 1
    raise AssertionError("the backups do not end")


def _restore(crowd: Crowd, database: str) -> bool:
    """Restores the latest backup of a database, into one of its own, which is then dropped."""
    name = f"back_{database}"
    arguments = "restore", f"{LABEL}/{database}@latest", "--as", name
    ended = crowd.launchers[PROCESSES + 1].run(crowd.site, *arguments, alone=False).ended
    assert ended.code == 0, ended.stderr
    crowd.ground.drop(name)
    return True


def _note(crowd: Crowd, ended: Ended) -> str:
    summary = json.loads(ended.stdout.splitlines()[-1])
    crowd.taken.setdefault(summary["source"]["database"], []).append((summary["started_at"], summary["id"]))
    return str(summary["id"])


def _judge(crowd: Crowd, new: list[str]) -> None:
    """Each database's newest backups are listed, as many as the policy keeps and no others; the new ones are whole."""
    catalog = crowd.site.catalog
    listing = catalog.backups()
    assert listing.broken == (), listing.broken
    assert listing.orphans == (), f"orphans of runs that ended well: {listing.orphans}"
    listed: dict[str, set[str]] = {}
    for backup in listing.backups:
        listed.setdefault(backup.source.database, set()).add(backup.id)
        if backup.id in new:
            read_back(catalog, backup)
    promised = {name: {each for _, each in sorted(ids)[-KEPT:]} for name, ids in crowd.taken.items()}
    assert listed == promised, f"listed {listed}, promised {promised}"
