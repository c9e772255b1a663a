"""`prune`, `delete`, `sign`, `pin`, `unpin`, `confirm`, `adopt` and `retire`: what stays, what goes, what is known."""

from collections.abc import Sequence
from typing import Annotated

import typer

from backupd import catalog, log, reader, render, retention, terminal
from backupd.commands import shared
from backupd.errors import UsageError
from backupd.manifest import Backup
from backupd.selector import name_of

app = typer.Typer()

_log = log.get_logger()


@app.command()
def prune(yes: shared.Yes = False, json_: shared.Json = False) -> None:
    """Show which of this server's backups the retention policy removes, and why; with --yes remove them."""
    loaded, found = shared.installation().settings, shared.installation().catalog()
    listing = found.backups(loaded.server_label)
    for broken in listing.broken:
        _log.warning("backup.broken", key=broken.key, message=broken.error.message, action="backupd list")
    plan = retention.plan(listing.backups, loaded.retention.policy(), shared.now())
    if not json_:
        shared.say(render.plan(plan))
    retained = shared.carry_out(found, plan) if yes else []
    if json_:
        decisions = [_decision_json(each) for each in plan.decisions]
        kept = [{"backup": str(name_of(each)), "until": exc.until} for each, exc in retained]
        shared.print_json({"decisions": decisions, "frozen": list(plan.frozen), "done": yes, "retained": kept})
        return
    for each, exc in retained:
        shared.say(f"{name_of(each)}: {render.retained(exc)}")
    if plan.removed and not yes:
        shared.say(f"{len(plan.removed)} to remove: nothing was removed, --yes removes them")


def _decision_json(decision: retention.Decision) -> dict[str, object]:
    return {"backup": str(name_of(decision.backup)), "keep": decision.keep, "reasons": decision.reasons}


@app.command()
def delete(backup: shared.BackupName, yes: shared.Yes = False) -> None:
    """Delete one backup, whatever the policy says."""
    found = shared.installation().catalog()
    chosen = found.find(backup)
    if chosen.pinned:
        raise UsageError(f"backup {chosen.id} is pinned", hint=f"Run `backupd unpin {chosen.id}` first.")
    if not yes:
        raise UsageError(f"would delete {name_of(chosen)}", hint="Give --yes to delete it.")
    found.delete(chosen)
    shared.say(f"deleted {name_of(chosen)}")


@app.command()
def sign(backup: shared.BackupName, yes: shared.Yes = False) -> None:
    """Sign a backup that is not trusted, after reading it back: for what was made before there was a key."""
    from backupd import verify as verb

    found = shared.installation().catalog()
    if found.keys.secret is None:
        raise UsageError("there is no key to sign with", hint="Set BACKUPD_SIGNING__KEY_FILE.")
    chosen = found.find(backup)
    if found.keys.trusted and chosen.untrusted is None:
        shared.say(f"{name_of(chosen)} is signed already")
        return
    if not yes:
        identity, sha256 = chosen.manifest.source.system_identifier, chosen.manifest.archive_sha256
        message = f"would sign {name_of(chosen)}, of cluster {identity}, sha256 {sha256}"
        raise UsageError(message, hint="Give --yes if you know that nobody else wrote it: a signature says just that.")
    with terminal.shown() as progress:
        verb.sign(found, chosen, shared.now(), progress)
    shared.say(f"signed {name_of(chosen)}, after reading it to its end")


@app.command()
def pin(backup: shared.BackupName) -> None:
    """Keep a backup whatever the retention policy says."""
    _note_pin(backup, pinned=True)


@app.command()
def unpin(backup: shared.BackupName) -> None:
    """Leave a pinned backup to the retention policy again."""
    _note_pin(backup, pinned=False)


def _note_pin(text: str, *, pinned: bool) -> None:
    found = shared.installation().catalog()
    chosen = found.find(text)
    found.note(chosen, "pinned", pinned, {}, shared.now())
    shared.say(f"{'pinned' if pinned else 'unpinned'} {name_of(chosen)}")


@app.command()
def confirm(backup: shared.BackupName) -> None:
    """Say that a backup is right although it looked wrong beside earlier ones: retention goes on from it."""
    found = shared.installation().catalog()
    chosen = found.find(backup)
    reader.require_trusted(chosen)
    why = chosen.manifest.suspect
    if why is None:
        hint = "What verify or drill found wrong, only a better verify or drill takes back." if chosen.suspect else None
        raise UsageError(f"backup {chosen.id} did not look wrong when it was taken", hint=hint)
    found.note(chosen, "confirmed", True, {"why": why}, shared.now())
    shared.say(f"confirmed {name_of(chosen)}: {why}")


@app.command()
def adopt(
    database: Annotated[str, typer.Argument(metavar="SERVER/DATABASE", help="The label that has a new identity.")],
    yes: shared.Yes = False,
) -> None:
    """Take over a label's backups under its newest identity, after pg_upgrade: retention is frozen until then."""
    found = shared.installation().catalog()
    backups = _readable(found.database(database))
    identity = backups[0].source.system_identifier
    older = [each for each in backups if each.source.system_identifier != identity]
    for each in older:
        shared.say(f"{'adopted' if yes else 'would adopt'} {name_of(each)} (was {each.source.system_identifier})")
        if yes:
            found.note(each, "adopted", True, {"system_identifier": identity}, shared.now())
    if not older:
        shared.say(f"nothing to adopt: all {len(backups)} backups are of cluster {identity}")


@app.command()
def retire(
    database: Annotated[str, typer.Argument(metavar="SERVER/DATABASE", help="A database that is gone.")],
) -> None:
    """Stop expecting backups of a dropped database; its backups stay, what is known of failed runs goes."""
    found = shared.installation().catalog()
    listing = found.database(database)
    if listing.backups or not listing.failures:
        found.note(_readable(listing)[0], "retired", True, {}, shared.now())
    for label in {each.label for each in listing.failures}:
        found.forget_failures(label)
    shared.say(f"retired {database}: `backupd check` expects no new backup of it")


def _readable(listing: catalog.Listing) -> Sequence[Backup]:
    """The listing's trusted backups, newest first, of which there is at least one; else what is wrong with them."""
    if not listing.backups:
        raise listing.broken[0].error if listing.broken else UsageError("only orphans are there")
    trusted = [backup for backup in listing.backups if backup.untrusted is None]
    if not trusted:
        reader.require_trusted(listing.backups[0])
    return trusted
