"""The status page: `Status` to HTML, by templates that escape whatever they are given.

The only door to jinja2. Names of databases, tables and hosts come from anybody: they reach a page as values of a
template, never as markup, and no page has a script or a style of its own, so that the strictest policy holds
(`CONTENT_SECURITY_POLICY`). Links are relative to `root`, the way back to the overview, so that a page works below any
path. In paths a label is written as in keys: a database may be called `..` or `a/b`.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from urllib.parse import quote

import jinja2

from backupd import __version__, estimate, history, render, words
from backupd.manifest import Manifest
from backupd.report import Report
from backupd.selector import Label, Name, name_of
from backupd.status import Database, State, Status
from backupd.web import charts, commands, summary, text
from backupd.web.commands import Here

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
"""What a browser must allow the pages: files from where they come from, and nothing else."""

PAGE_ROWS = 100
"""Backups on one page of a database's."""

WHOLE_ROWS = 60
"""Databases of which the overview shows a row each; of more only those that need a look, and a wall of names."""

FILTERED_ROWS = 100
TROUBLES = 12
"""Databases whose concerns are spelt out on the overview."""


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


ALL = Filter()


def assets() -> Mapping[str, Asset]:
    """The files below `static/`, by name."""
    return {asset.name: asset for asset in _assets().values()}


def overview(status: Status, here: Here, shown: Filter = ALL) -> str:
    """The page at `/`, with the query `?search=&state=` as `shown`."""
    troubled = [each for each in status.databases if each.concerns and each.state != "retired"]
    found = [each for each in status.databases if _is_shown(each, shown)]
    whole = shown != ALL or len(found) <= WHOLE_ROWS
    rows = found[:FILTERED_ROWS] if whole else [each for each in troubled if each.state == "danger"][:TROUBLES]
    return _render(
        "overview.html",
        status,
        here,
        "",
        shown=shown,
        head=summary.headline(status),
        facts=list(summary.facts(status)),
        troubled=troubled[:TROUBLES],
        more_troubled=len(troubled[TROUBLES:]),
        rows=rows,
        more_rows=len(found[FILTERED_ROWS:]) if whole else 0,
        wall=[] if whole else _by_server(found),
        removals=summary.removals(status),
    )


def database(status: Status, here: Here, label: Label, page: int = 1) -> str | None:
    """The page at `/database/SERVER/DATABASE`, with `?page=`; None where there is no such database or page."""
    found = status.find(label)
    pages = max(1, -(-len(found.backups) // PAGE_ROWS)) if found is not None else 0
    if found is None or not 1 <= page <= pages:
        return None
    manifests = [backup.manifest for backup in found.good]
    return _render(
        "database.html",
        status,
        here,
        "../../",
        database=found,
        text=summary.sentence(found, status),
        facts=list(summary.database_facts(found, status)),
        timeline=charts.timeline(found, status.now) if found.backups else None,
        size_trend=charts.trend((each.started_at, each.archive_bytes) for each in manifests),
        duration_trend=charts.trend((each.started_at, _took(each)) for each in manifests),
        policy=summary.policy(status.expected.policy if found.decisions else None, bool(found.decisions)),
        backups=found.backups[(page - 1) * PAGE_ROWS : page * PAGE_ROWS],
        page=page,
        pages=pages,
    )


def backup(status: Status, here: Here, name: Name) -> str | None:
    """The page at `/backup/SERVER/DATABASE/ID`; None where there is no such backup."""
    found = status.find(name.label)
    chosen = next((each for each in found.backups if each.id == name.id), None) if found else None
    if found is None or chosen is None:
        return None
    return _render(
        "backup.html",
        status,
        here,
        "../../../",
        database=found,
        backup=chosen,
        name=str(name),
        level=history.level(chosen),
        estimate=estimate.restore_seconds(chosen, found.backups),
        steps=list(commands.restore_steps(here, chosen, status.reading.store_url)),
        outline=status.outlines.get(name),
        details=list(summary.details(chosen)),
    )


def audit(report: Report) -> str:
    """A report as one file, which needs no other."""
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            css=_assets()["page.css"].data.decode(),
            state=summary.report_state(report),
            lead=summary.report_lead(report),
            facts=list(summary.report_facts(report)),
            policy=summary.policy(report.expected.retention, known=True),
        )
    )


def not_found(path: str) -> str:
    """What is shown at a path where nothing is."""
    return _environment().get_template("not_found.html").render(root="../" * max(0, path.count("/") - 1))


def database_path(label: Label) -> str:
    """The path of a database's page, relative to the overview."""
    return f"database/{_segments(label)}"


def backup_path(name: Name) -> str:
    """The path of a backup's page, relative to the overview."""
    return f"backup/{_segments(name.label)}/{name.id}"


def _segments(label: Label) -> str:
    return quote(str(label), safe="/")  # once more: a browser takes %2E for a dot, and `..` for the folder above


def _is_shown(database: Database, shown: Filter) -> bool:
    name = f"{database.label.server}/{database.label.database}".casefold()
    return shown.text.strip().casefold() in name and shown.state in (None, database.state)


def _by_server(databases: Iterable[Database]) -> list[tuple[str, list[Database]]]:
    found: dict[str, list[Database]] = defaultdict(list)
    for each in databases:
        found[each.label.server].append(each)
    return sorted(found.items())


def _took(manifest: Manifest) -> float:
    return (manifest.finished_at - manifest.started_at).total_seconds()


def _render(template: str, status: Status, here: Here, root: str, **values: object) -> str:
    return _environment().get_template(template).render(status=status, here=here, root=root, **values)


_FILES = {
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


@cache
def _assets() -> Mapping[str, Asset]:
    """By their names without the hash."""
    found = {}
    for name, content_type in _FILES.items():
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
    environment.globals |= {"asset": lambda name: f"static/{_assets()[name].name}", "version": __version__}
    environment.filters |= {
        "printable": render.printable,
        "size": render.size,
        "span": words.span,
        "number": text.number,
        "sentence": text.sentence,
        "when": text.when,
        "day": text.day,
        "age": text.age,
        "ago": text.ago,
        "fact": text.fact,
        "strip": charts.strip,
        "share": charts.share,
        "line": lambda arguments, here: commands.line(here, arguments),
        "proof": lambda each: history.PROOFS[history.level(each)],
        "database_path": database_path,
        "backup_path": lambda each: backup_path(name_of(each)),
    }
    return environment
