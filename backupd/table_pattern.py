"""How tables and schemas are named on a command line: `schema.table`, `*` and `?`, quoted names. Pure.

What is not quoted matches as it is written and, only where that names nothing, in lower case as SQL would fold it: so
both `backupd tables`' spelling and an SQL habit find the table. In quotes everything is literal. A name that cannot be
read so (a dot or a quote in it) is found when it is written exactly as `backupd tables` prints it.

Not pg_dump's patterns: they are regular expressions with a fold of their own, and match relations of a live database.
"""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from backupd.errors import UsageError

Name = tuple[str, str]
"""A schema's name and that of a relation in it."""

_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
_PIECE = re.compile(r'"((?:[^"]|"")*)"|([^".])|(\.)', re.DOTALL)
_ITEM = re.compile(r'(?:"(?:[^"]|"")*"|[^",])+', re.DOTALL)
_WILD = {"*": ".*", "?": "."}
_Part = tuple[re.Pattern[str], re.Pattern[str]]
_Key = TypeVar("_Key")
_SHOWN = 5  # near matches, and tables of one name


def find_tables(patterns: Sequence[str], names: Collection[Name]) -> frozenset[Name]:
    """The names that the patterns mean. Raises UsageError for a pattern that means none, or a name in two schemas."""
    return frozenset(name for pattern in patterns for name in _tables(pattern, names))


def find_schemas(patterns: Sequence[str], names: Collection[str]) -> frozenset[str]:
    """The schemas that the patterns mean. Raises UsageError for a pattern that means none."""
    return frozenset(name for pattern in patterns for name in _schemas(pattern, names))


def split(text: str) -> tuple[str, ...]:
    """The patterns in a variable's value, divided by commas outside quotes. Raises UsageError where it holds none.

    An empty value is one that is not set; one that is only commas would silently be everything.
    """
    if text.count('"') % 2:
        raise UsageError(f"a quote is not closed in {text!r}", hint='Inside quotes a quote is written twice: "a""b".')
    found = tuple(stripped for item in _ITEM.findall(text) if (stripped := item.strip()))
    if text and not found:
        raise UsageError(f"{text!r} names no table and no schema", hint="Separate names by commas, or unset it.")
    return found


def spelled(*names: str) -> str:
    """The names as SQL and these patterns take them: quoted where they are not plain, joined by dots."""
    return ".".join(name if _PLAIN.fullmatch(name) else f'"{name.replace(chr(34), chr(34) * 2)}"' for name in names)


def _tables(pattern: str, names: Collection[Name]) -> list[Name]:
    parts = _parts(pattern)
    found = _matching(parts, {name: name[-len(parts) :] for name in names}) if len(parts) in (1, 2) else []
    found = found or [name for name in names if ".".join(name) == pattern]
    if not found:
        raise _nothing("table", pattern, {".".join(name): spelled(*name) for name in names})
    if len(found) > 1 and not _is_wild(pattern):
        listed = ", ".join(spelled(*name) for name in sorted(found)[:_SHOWN])
        raise UsageError(f"{pattern!r} is the name of {len(found)} tables", hint=f"Write one of: {listed}.")
    return found


def _schemas(pattern: str, names: Collection[str]) -> list[str]:
    parts = _parts(pattern)
    found = _matching(parts, {name: (name,) for name in names}) if len(parts) == 1 else []
    found = found or [name for name in names if name == pattern]
    if not found:
        raise _nothing("schema", pattern, {name: spelled(name) for name in names})
    return found


def _matching(parts: Sequence[_Part], known: Mapping[_Key, tuple[str, ...]]) -> list[_Key]:
    """Those whose names match the parts as they are written, else in lower case."""
    for fold in (0, 1):
        found = [
            key
            for key, names in known.items()
            if all(part[fold].fullmatch(name) for part, name in zip(parts, names, strict=True))
        ]
        if found:
            return found
    return []


def _is_wild(pattern: str) -> bool:
    """Whether it may mean several; a plain name is one table's."""
    return bool(set(re.sub(r'"(?:[^"]|"")*"', "", pattern)) & _WILD.keys())


def _parts(pattern: str) -> list[_Part]:
    """Between dots: what matches as it is written, and in lower case. Nothing where that cannot be read."""
    exact, folded = [""], [""]
    position = 0
    for piece in _PIECE.finditer(pattern):
        if piece.start() != position:
            return []
        position = piece.end()
        quoted, char, dot = piece.groups()
        if dot:
            exact.append("")
            folded.append("")
        elif quoted is not None:
            exact[-1] += re.escape(quoted.replace('""', '"'))
            folded[-1] += re.escape(quoted.replace('""', '"'))
        else:
            exact[-1] += _WILD.get(char, re.escape(char))
            folded[-1] += _WILD.get(char, re.escape(char.lower()))
    if position != len(pattern) or not all(exact):
        return []
    return [(re.compile(a, re.DOTALL), re.compile(b, re.DOTALL)) for a, b in zip(exact, folded, strict=True)]


def _nothing(what: str, pattern: str, known: dict[str, str]) -> UsageError:
    """No such table, and those whose name is near."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name, written in known.items():
        key = name.casefold()
        by_key[key if "." in pattern else key.rpartition(".")[2]].append(written)
    near = difflib.get_close_matches(pattern.replace('"', "").casefold(), by_key, n=_SHOWN, cutoff=0.6)
    listed = [written for key in near for written in sorted(by_key[key])]
    hint = f"Near it are: {', '.join(listed[:_SHOWN])}." if listed else None
    return UsageError(
        f"no {what} of the backup matches {pattern!r}", hint=hint or "`backupd tables ID` lists those of the backup."
    )
