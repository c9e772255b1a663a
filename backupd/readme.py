"""The archive's first member, README.txt: how to get the data back by hand. Pure.

It is for the person who has the archive and nothing of ours: so it names every command in full, quoted for a shell, and
a test executes them. It is never encrypted; so nothing in it says what the tables are.
"""

import shlex
from collections.abc import Iterator, Sequence

from backupd.manifest import DatabaseProperties


def text(backup_id: str, client_version: str, like: DatabaseProperties, recipients: Sequence[str] = ()) -> str:
    """How to get the data back with tar and pg_restore alone, and age where it is encrypted."""
    major = client_version.split(".")[0]
    options = " ".join(f"--{name}={shlex.quote(value)}" for name, value in _locale(like))
    index = "index.json.zst" + (".age" if recipients else "")
    open_it, keys = (_OPEN.format(id=backup_id), _KEYS.format("\n- ".join(recipients))) if recipients else ("", "")
    return f"""\
This is a backup of one PostgreSQL database, written by backupd. You do not need backupd to get the data back.

It is a POSIX tar whose folder {backup_id}/ is a directory-format dump of pg_dump {client_version}.
With tar{", age" if recipients else ""} and pg_restore {major} or newer:

    tar xf {backup_id}.tar
{open_it}    createdb --template=template0 --encoding={like.encoding} {options} restored
    pg_restore --exit-on-error --jobs=4 --dbname=restored {backup_id}/

Roles are not part of a dump: those that own objects must exist, or add --no-owner --no-privileges to pg_restore.
{index} ({"age -d, " if recipients else ""}zstd -d, then JSON) lists every file's size and sha256 and each table's rows.
{keys}"""


# Not `age -o`, which writes no file where there is nothing in it, and pg_restore needs that of an empty large object
_OPEN = """\
    for file in {id}/*.age; do age -d -i KEY "$file" > "${{file%.age}}" && rm "$file" || break; done
"""
_KEYS = """
All other files are encrypted with age. KEY is a file with the private key, age's or SSH's, of one of these public keys:

- {}
"""


def _locale(like: DatabaseProperties) -> Iterator[tuple[str, str]]:
    """What createdb must be told for an equal locale."""
    yield "lc-collate", like.collate
    yield "lc-ctype", like.ctype
    provider = {"i": "icu", "b": "builtin"}.get(like.locale_provider)
    if provider is not None and like.locale is not None:
        yield "locale-provider", provider
        yield f"{provider}-locale", like.locale
    if provider == "icu" and like.icu_rules is not None:
        yield "icu-rules", like.icu_rules
