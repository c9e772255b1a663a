"""The commands that a page shows, as they are typed where backupd runs. Pure."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Here:
    """How backupd is called on this installation, and where its runbooks are; without an address they are only named.

    `command` is put before the arguments as it is, as `docker compose run --rm backupd`.
    """

    command: str = "backupd"
    runbooks_url: str | None = None


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
