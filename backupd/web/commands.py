"""The commands that a page shows, as they are typed where backupd runs. Pure."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backupd.manifest import Backup
from backupd.selector import Name, name_of

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,50}")
_S3, _FILE = "s3://", "file://"


@dataclass(frozen=True)
class Here:
    """How backupd is called on this installation, and where its runbooks are; without an address they are only named.

    `command` is put before the arguments as it is, as `docker compose run --rm backupd`.
    """

    command: str = "backupd"
    runbooks_url: str | None = None


@dataclass(frozen=True)
class Step:
    """One way to go, why one would, and the command for it."""

    title: str
    text: str
    command: str


def restore_steps(here: Here, backup: Backup, store_url: str) -> Iterator[Step]:
    """How to get a backup's data back, the harmless ways first."""
    name, database = name_of(backup), backup.source.database
    beside = f"{database}_restored" if _PLAIN.fullmatch(database) else "restored"
    restore = ("restore", str(name))
    needs = " It is encrypted: run that where the private keys are." if backup.manifest.recipients else ""
    yield Step(
        "Into a new database",
        "Beside the live one, which is not touched. It is compared, table by table, before anybody may connect."
        + needs,
        line(here, (*restore, "--as", beside)),
    )
    if backup.manifest.filter is None:
        yield Step(
            "See what replacing the live one would take",
            "Only looks: every check with its hint, each step, about how long it takes.",
            line(here, (*restore, "--replace", database, "--plan")),
        )
        yield Step(
            "Replace the live database",
            "Restored beside it and compared; then the names are swapped in one transaction. The old one is kept."
            + needs,
            line(here, (*restore, "--replace", database)),
        )
    yield Step(
        "Only one table",
        "With what it needs and what belongs to it, read by range. Put the table's name in." + needs,
        line(here, (*restore, "--as", f"{beside}_part", "--table", "public.TABLE")),
    )
    yield _by_hand(name, backup, store_url)


def _by_hand(name: Name, backup: Backup, store_url: str) -> Step:
    key, major = f"{name.label}/{name.id}.tar", backup.manifest.client_version.partition(".")[0]
    place = quoted(f"{store_url.removeprefix(_FILE).rstrip('/')}/{key}")
    fetch = f"aws s3 cp {place} - | tar xf -" if store_url.startswith(_S3) else f"tar xf {place}"
    title = "Without backupd"
    if backup.manifest.recipients:
        text = "The archive is a tar of files that age decrypts; README.txt in it has every command."
        return Step(title, text, f"{fetch} {name.id}/README.txt && cat {name.id}/README.txt")
    text = f"The archive is a tar with a dump for pg_restore {major} or newer. Make the empty database first."
    return Step(title, text, f"{fetch} && pg_restore --exit-on-error --jobs=4 --dbname=restored {name.id}/")


def line(here: Here, arguments: Sequence[str]) -> str:
    """A command line for a POSIX shell."""
    return " ".join((here.command, *(quoted(argument) for argument in arguments)))


def quoted(argument: str) -> str:
    """The argument for a shell; what is not printable is escaped, as bash, zsh and ksh read it."""
    if argument.isprintable():
        return shlex.quote(argument)
    return f"$'{''.join(map(_escaped, argument))}'"


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in char.encode())
