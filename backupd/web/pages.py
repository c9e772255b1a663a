"""The status page: `Status` to HTML, by templates that escape whatever they are given.

The only door to jinja2. Names of databases, tables and hosts come from anybody: they reach a page as values of a
template, never as markup, and no page has a script or a style of its own, so that the strictest policy holds
(`CONTENT_SECURITY_POLICY`). Links are relative to `root`, the way back to the overview, so that a page works below any
path. In paths a label is written as in keys: a database may be called `..` or `a/b`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from urllib.parse import quote

import jinja2

from backupd.selector import Label, Name, name_of
from backupd.status import State, Status
from backupd.web.commands import Here

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
"""What a browser must allow the pages: files from where they come from, and nothing else."""

PAGE_ROWS = 100
"""Backups on one page of a database's."""


@dataclass(frozen=True)
class Asset:
    """A file that the pages link to; its name has its hash, so that it may be kept for ever."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True)
class Filter:
    """What the overview shows of a fleet: databases with this text in their names, in this state; empty is all."""

    text: str = ""
    state: State | None = None


def assets() -> Mapping[str, Asset]:
    """The files below `static/`, by name."""
    return {asset.name: asset for asset in _assets().values()}


def overview(status: Status, here: Here, shown: Filter = Filter()) -> str:
    """The page at `/`, with the query `?search=&state=` as `shown`."""
    return _render("overview.html", status, here, "", shown=shown)


def database(status: Status, here: Here, label: Label, page: int = 1) -> str | None:
    """The page at `/database/SERVER/DATABASE`, with `?page=`; None where there is no such database or page."""
    found = status.find(label)
    if found is None or not 1 <= page <= max(1, -(-len(found.backups) // PAGE_ROWS)):
        return None
    return _render("database.html", status, here, "../../", database=found, page=page)


def backup(status: Status, here: Here, name: Name) -> str | None:
    """The page at `/backup/SERVER/DATABASE/ID`; None where there is no such backup."""
    found = status.find(name.label)
    chosen = next((each for each in found.backups if each.id == name.id), None) if found else None
    if chosen is None:
        return None
    return _render("backup.html", status, here, "../../../", database=found, backup=chosen)


def not_found(path: str) -> str:
    """What is shown at a path where nothing is."""
    root = "../" * max(0, path.count("/") - 1)
    return _environment().get_template("not_found.html").render(root=root)


def database_path(label: Label) -> str:
    """The path of a database's page, relative to the overview."""
    return f"database/{_segments(label)}"


def backup_path(name: Name) -> str:
    """The path of a backup's page, relative to the overview."""
    return f"backup/{_segments(name.label)}/{name.id}"


def _segments(label: Label) -> str:
    return quote(str(label), safe="/")  # once more: a browser takes %2E for a dot, and `..` for the folder above


def _render(template: str, status: Status, here: Here, root: str, **values: object) -> str:
    return _environment().get_template(template).render(status=status, here=here, root=root, **values)


@cache
def _assets() -> Mapping[str, Asset]:
    """By their names without the hash."""
    found = {}
    for name, content_type in (("page.css", "text/css; charset=utf-8"), ("page.js", "text/javascript; charset=utf-8")):
        data = resources.files("backupd.web").joinpath("static", name).read_bytes()
        stem, _, ending = name.partition(".")
        found[name] = Asset(f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}.{ending}", content_type, data)
    return found


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("backupd.web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "asset": lambda name: f"static/{_assets()[name].name}",
        "database_path": database_path,
        "backup_path": backup_path,
        "name_of": name_of,
    }
    return environment
