"""`list`, `show`, `tables`, `verify`, `check` and `doctor`: what is there, and whether it is good."""

import json
import time
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backupd import catalog, freshness, grants, log, notation, render, settings, terminal
from backupd.commands import shared, tell
from backupd.commands.run import reported
from backupd.errors import BackupdError, Stale, UsageError
from backupd.installation import Installation
from backupd.manifest import Contract
from backupd.selector import name_of

if TYPE_CHECKING:
    from backupd import doctor as doctor_verb

app = typer.Typer()

_log = log.get_logger()


@app.command("list")
def list_(
    database: Annotated[str | None, typer.Argument(help="Only of this DATABASE, or SERVER/DATABASE.")] = None,
    orphans: Annotated[bool, typer.Option("--orphans", help="Show remains of backups that failed instead.")] = False,
    json_: shared.Json = False,
) -> None:
    """List the backups: each is complete, and was decoded to its last byte when it was taken."""
    listing = _listing(database)
    if orphans:
        rows = [(entry.key, entry.size_bytes, f"{entry.modified_at:%Y-%m-%d %H:%M}") for entry in listing.orphans]
        shared.print_json([asdict(entry) for entry in listing.orphans]) if json_ else shared.say(
            render.table(("ORPHAN", "BYTES", "MODIFIED"), rows) if rows else "no orphans"
        )
    elif json_:
        shared.print_json([shared.backup_json(each) for each in listing.backups])
    else:
        shared.say(render.listing(listing, shared.now()))
    for broken in listing.broken:
        _log.warning("backup.broken", key=broken.key, message=broken.error.message, action="backupd list --json")


@app.command()
def show(backup: shared.BackupName, json_: shared.Json = False) -> None:
    """Show what one backup holds and what was proven of it."""
    chosen = shared.installation().catalog().find(backup)
    shared.print_json(shared.backup_json(chosen)) if json_ else shared.say(render.show(chosen))


@app.command()
def tables(backup: shared.BackupName, json_: shared.Json = False) -> None:
    """List the tables of a backup: rows, bytes and content fingerprint of each."""
    from backupd import archive

    found = shared.installation().catalog()
    chosen = found.find(backup)
    index = archive.read_index(found.archive(chosen))
    shared.print_json(_without_passwords(index.contract)) if json_ else shared.say(render.tables(index))


def _without_passwords(contract: Contract) -> dict[str, Any]:
    """The contract as it is printed: what is sealed in an archive must not end up in a terminal or a file."""
    definitions = tuple(replace(role, password=None) for role in contract.role_definitions)
    return asdict(replace(contract, role_definitions=definitions))


@app.command()
def verify(
    backups: Annotated[list[str], typer.Argument(metavar="ID...|all", help="Backups, or all of them.")],
    json_: shared.Json = False,
) -> None:
    """Read backups back: hash and decode every byte, and note the result. Exit code 14 if one is damaged.

    An encrypted one is only hashed where no identities are set, and that is what is said and noted.
    """
    from backupd import verify as verb

    found = shared.installation().catalog()
    chosen = found.backups().backups if backups == ["all"] else tuple(found.find(text) for text in backups)
    failures = []
    with reported("verify") as run:
        with terminal.shown() as progress:
            for each in chosen:
                began = time.monotonic()
                try:
                    verified = verb.verify(found, each, shared.now(), progress)
                except BackupdError as exc:
                    failures.append((each.id, exc))
                    _log.error("backup.unverified", backup=str(name_of(each)), message=exc.message, detail=exc.detail)
                    run.note(each.source.database, "verify", each, time.monotonic() - began, exc.reason)
                    continue
                run.note(each.source.database, "verify", each, time.monotonic() - began)
                sealed = ", not decoded: no identities are set" if found.archive(each).sealed else ""
                shared.print_json(shared.backup_json(verified)) if json_ else shared.say(
                    f"{name_of(each)}: {render.proof(verified)}{sealed}"
                )
        shared.raise_failures(failures, len(chosen), "backups are not good")


@app.command()
def check(
    max_age: Annotated[
        str,
        typer.Option(
            "--max-age", metavar="26h", help="How old the newest good backup may be.", envvar="BACKUPD_CHECK_MAX_AGE"
        ),
    ],
    json_: shared.Json = False,
) -> None:
    """One line and an exit code for any probe or monitor: 0 where every database is fresh, 19 where one is not."""
    here, allowed = shared.installation(), _duration(max_age, "--max-age")
    catalog_, expected = here.catalog(), here.expected()
    listing = catalog_.backups(None if expected is None else here.settings.server_label)  # others' would not count
    found = freshness.check(listing, expected, allowed, shared.now(), here.filter())
    if json_:
        shared.print_json([asdict(each) for each in found])
    stale = [each for each in found if each.stale]
    text = "; ".join(f"{each.label}: {each.reason}" for each in stale or found) or _none(here)
    if not json_:  # also where it fails: monitors show the first line of stdout
        shared.say(f"{'stale' if stale or not found else 'ok'}: {text}")
    if not found:
        raise Stale(text, hint="Run `backupd doctor`." if here.names_databases else "Set BACKUPD_SOURCE__DATABASES.")
    if stale:
        hint = (
            "Run `backupd backup`. A database that is gone for good: `backupd retire DATABASE`, or, without any backup,"
            " take it out of BACKUPD_SOURCE__DATABASES."
        )
        raise Stale(f"{len(stale)} of {len(found)} databases have no fresh backup", detail=f"{text}.", hint=hint)


def _none(here: Installation) -> str:
    if here.names_databases:
        return "the source does not say which databases it has, and none is backed up"
    return "no database is expected and none is backed up"


@app.command()
def digest() -> None:
    """Say how every database fares, and send that to whoever is notified: for a weekly schedule.

    It is of BACKUPD_SOURCE__SERVER, where that is set, else of all servers in the store.
    """
    from backupd import notice, status

    here, now = shared.installation(), shared.now()
    found, expected = here.catalog(), here.expected()
    labels = None if expected is None else tuple(expected)
    listing = found.backups(here.settings.source.server)
    reading = status.Reading(found.store.url, now)
    title, body = notice.digest(status.status(listing, here.expectations(labels, now), reading, now))
    shared.say(f"{title}\n{body}")
    tell.send_text(here, title, body)


def _duration(text: str, flag: str) -> timedelta:
    try:
        return notation.parse_duration(text)
    except ValueError as exc:
        raise UsageError(f"{flag} {exc}") from None


@app.command()
def doctor(
    json_: shared.Json = False,
    print_sql: Annotated[bool, typer.Option(help="Print SQL for psql that makes the roles, and try nothing.")] = False,
    print_policy: Annotated[bool, typer.Option(help="Print the S3 policies of backup, restore and prune.")] = False,
    print_lifecycle: Annotated[bool, typer.Option(help="Print the lifecycle configuration of the bucket.")] = False,
) -> None:
    """Try every permission and assumption once, and say what to do about each that fails."""
    from backupd import doctor as verb

    here = shared.installation()
    if print_sql or print_policy or print_lifecycle:
        _print_grants(here.settings, print_sql, print_policy, print_lifecycle)
        return
    hidden = settings.secrets(here.settings)
    findings = [
        replace(each, text=log.scrub(each.text, hidden), hint=log.scrub(each.hint, hidden) if each.hint else None)
        for each in verb.examine(_doctor_subject(here), shared.now)
    ]
    if json_:
        shared.print_json(findings)
    else:
        for finding in findings:
            shared.say(render.finding(finding))
    failed = next((finding for finding in findings if finding.status == "fail"), None)
    raise typer.Exit(failed.exit_code if failed else 0)


def _print_grants(loaded: settings.Settings, sql: bool, policy: bool, lifecycle: bool) -> None:
    if sql:
        databases = loaded.source.databases or (loaded.default_database or "*",)
        role = loaded.source.user or loaded.environment.get("PGUSER") or "backup"
        shared.put(grants.backup_sql(role, databases))
        shared.put(grants.restore_sql(loaded.target.user or "restore", loaded.target.database, databases))
    options = loaded.s3_options()
    documents = [*grants.policies(loaded.store_url(), options).values()] if policy else []
    documents += [grants.lifecycle(loaded.store_url(), loaded.retention.policy(), options)] if lifecycle else []
    for document in documents:
        shared.put(json.dumps(document, indent=2))


def _doctor_subject(here: Installation) -> "doctor_verb.Subject":
    from backupd import doctor as verb

    loaded, environment = here.settings, here.settings.environment
    server_names = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")
    has_source = loaded.source.model_fields_set - {"server"} or any(map(environment.get, server_names))
    password_names = ("BACKUPD_SOURCE__PASSWORD", "BACKUPD_SOURCE__PASSWORD_FILE", "PGPASSWORD", "PGPASSFILE")
    return verb.Subject(
        source=partial(here.source, "doctor") if has_source else None,
        databases=lambda access: here.databases(access, ()),
        password_from=next(filter(environment.get, password_names), None),
        passfile=Path(environment.get("PGPASSFILE") or Path.home() / ".pgpass"),
        clients=here.clients(),
        client_folders=loaded.dump.clients,
        options=here.dump_options(),
        scratch=loaded.scratch.directory,
        scratch_limit_bytes=loaded.scratch.limit,
        store_url=loaded.store.url,
        s3_options=loaded.s3_options(),
        policy=loaded.retention.policy(),
        second=(loaded.copy.url, loaded.copy_s3_options()) if loaded.copy.url else None,
        keys=here.keys,
        recipients=loaded.recipients(),
        identities=here.identities(),
        notify_urls=loaded.notify.send_to,
        hooks={when: argv for when in ("before", "after", "failure") if (argv := getattr(loaded.hook, when))},
    )


def _listing(text: str | None) -> catalog.Listing:
    """The store's backups, all or those of one database."""
    found = shared.installation().catalog()
    return found.backups() if text is None else found.database(text)
