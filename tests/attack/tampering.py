"""A writer of the store without a key: what counts was signed, as it was signed.

It deletes, flips, cuts, swaps and moves objects, with their signatures or without, forges backups and notes, signs them
with a key of its own, and puts back what was deleted; up to eight such acts an attack. Then, to somebody with the
public key: every trusted backup is one that was taken, under its own name; each note that counts is one that was
written, but for pins, which only keep; a pin of which anything is left keeps; retention decides about the trusted ones
as if there were no others; and every archive is read to its end as it was, or refused.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import get_args

from attack.outcome import Attack
from made_archives import MEMBERS, STARTED_AT
from made_backups import made_manifest
from made_keys import made_keys, made_secret
from signed import take
from store_memory import MemoryStore

from backupd import archive, retention
from backupd.catalog import Catalog
from backupd.errors import BackupdError
from backupd.layout import SIGNATURE, archive_key, manifest_key, note_key
from backupd.manifest import Backup, Note, NoteKind, to_json
from backupd.retention import Policy
from backupd.selector import Name, name_of
from backupd.signing import Keys, sign

WHOLE, PART = 3000, 100
ACTS_AT_MOST = 8
KEYS = made_keys()
NOW = datetime(2026, 12, 1, tzinfo=UTC)
POLICY = Policy(last=1, daily=2, floor=1)
KINDS: tuple[NoteKind, ...] = get_args(NoteKind)


@dataclass(frozen=True)
class Truth:
    """What was written by whoever has the key: manifests and notes by name; `objects` are what an adversary may have
    kept of all that ever was, `present` what is there when it begins.
    """

    backups: dict[Name, Backup]
    notes: dict[tuple[Name, NoteKind, int], Note]
    objects: dict[str, bytes]
    present: frozenset[str]


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Attacks without end, each of acts that its number and the seed decide."""
    truth = _written()
    for number in itertools.count():
        yield Attack(f"{number}", partial(_attack, truth, random.Random(f"{seed} {number}")))


def _written() -> Truth:
    """Two databases with three backups each, of which the oldest was deleted, with notes of every kind."""
    store = MemoryStore()
    catalog = Catalog(store, KEYS)
    backups: dict[Name, Backup] = {}
    notes: dict[tuple[Name, NoteKind, int], Note] = {}
    for database, day in itertools.product(("app", "billing"), range(3)):
        backup = take(catalog, made_manifest(STARTED_AT + timedelta(days=day), database=database), MEMBERS)
        backups[name_of(backup)] = backup
        for kind, ok in itertools.product(KINDS[: 3 + day], (False, True)):
            facts = {"system_identifier": backup.manifest.source.system_identifier}
            noted = catalog.note(backup, kind, ok, facts, NOW)
            notes[(name_of(backup), kind, noted.notes[-1].number)] = noted.notes[-1]
    oldest = f"{STARTED_AT:%Y%m%d}"
    objects = {key: data for key, (data, _) in store.objects.items()}
    return Truth(backups, notes, objects, frozenset(key for key in objects if f"/{oldest}" not in key))


def _attack(truth: Truth, chance: random.Random) -> str:
    store = MemoryStore()
    _put(store, {key: truth.objects[key] for key in truth.present})
    acts = [chance.choice(_ACTS) for _ in range(chance.randint(1, ACTS_AT_MOST))]
    for act in acts:
        act(truth, store, chance)
    catalog = Catalog(store, Keys(trusted=KEYS.trusted))
    listing = catalog.backups()
    trusted = [backup for backup in listing.backups if backup.untrusted is None]
    for backup in trusted:
        _assert_true(truth, store, backup)
        _read(catalog, backup)
    _assert_retention(listing.backups, trusted)
    names = " ".join(act.__name__.strip("_") for act in acts)
    others = len(listing.backups) - len(trusted)
    return f"{names}: {len(trusted)} trusted, {others} not, {len(listing.broken)} broken"


def _assert_true(truth: Truth, store: MemoryStore, backup: Backup) -> None:
    name = name_of(backup)
    assert name in truth.backups, f"{name} was never taken"
    assert backup.manifest == truth.backups[name].manifest, name
    for note in backup.notes:
        written = truth.notes.get((name, note.kind, note.number))
        assert note == written or (note.kind == "pinned" and note.ok), f"{name}: {note}, and {written} was written"
    pins = (note_key(name, "pinned", 2), note_key(name, "pinned", 2) + SIGNATURE)
    assert backup.pinned or not all(key in store.objects for key in pins), f"{name} is not pinned any more"


def _read(catalog: Catalog, backup: Backup) -> None:
    """The archive's bytes are those that were signed, or a refusal."""
    read: list[bytes] = []
    try:
        stored = catalog.archive(backup)
        archive.copy(stored, archive.read_index(stored), read.append)
    except BackupdError:
        return
    assert len(b"".join(read)) == backup.manifest.archive_bytes


def _assert_retention(backups: tuple[Backup, ...], trusted: list[Backup]) -> None:
    plan, alone = (retention.plan(each, POLICY, NOW) for each in (backups, trusted))
    assert plan.decisions[: len(trusted)] == alone.decisions
    assert plan.frozen == alone.frozen
    assert not any(backup.pinned or backup.untrusted for backup in plan.removed)


# --- acts


def _put(store: MemoryStore, objects: dict[str, bytes]) -> None:
    store.objects.update((key, (data, store.now)) for key, data in objects.items())


def _any(store: MemoryStore, chance: random.Random) -> str:
    return chance.choice(sorted(store.objects) or ["prod/app/none"])


def _place(truth: Truth, chance: random.Random) -> str:
    """A key where something could lie: of a backup that was, or never was."""
    name = chance.choice(sorted(truth.backups))
    if chance.random() < 0.2:
        name = Name(name.label, f"{name.id[:-8]}{chance.getrandbits(32):08x}")
    note = note_key(name, chance.choice(KINDS), chance.choice((1, 2, 3, 4, 999_999_999)))
    return chance.choice((archive_key(name), manifest_key(name), note, note, note)) + chance.choice(("", "", SIGNATURE))


def _delete(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    store.objects.pop(_any(store, chance), None)


def _flip(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    key = _any(store, chance)
    data = bytearray(store.objects.get(key, (b"", store.now))[0] or b"x")
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    _put(store, {key: bytes(data)})


def _cut(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    key = _any(store, chance)
    data = store.objects.get(key, (b"", store.now))[0]
    _put(store, {key: data[: chance.randrange(len(data) + 1)]})


def _swap(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    one, other = sorted(truth.present)[:1][0], _any(store, chance)
    one = chance.choice([key for key in sorted(truth.present) if key.endswith(other.rpartition(".")[2])] or [one])
    first, second = (store.objects.get(key, (b"", store.now)) for key in (one, other))
    store.objects[one], store.objects[other] = second, first


def _move(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    """Copies an object to another key, as a rule with its signature."""
    key, to = _any(store, chance).removesuffix(SIGNATURE), _place(truth, chance).removesuffix(SIGNATURE)
    for ending in ("", SIGNATURE) if chance.random() < 0.8 else ("",):
        if key + ending in store.objects:
            _put(store, {to + ending: store.objects[key + ending][0]})


def _put_back(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    """All of a backup as it once was, or one object of it."""
    prefix = chance.choice((str(chance.choice(sorted(truth.backups))).replace("@", "/"), _place(truth, chance)))
    _put(store, {key: data for key, data in truth.objects.items() if key.startswith(prefix)})


def _forge_backup(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    """Another backup under a name that was, or was not, signed by nobody or by somebody else."""
    keys = Keys(chance.choice((None, made_secret(2))))
    database, day = chance.choice(("app", "billing", "other")), chance.randrange(40)
    manifest = made_manifest(
        STARTED_AT + timedelta(days=day), database=database, identity=chance.choice(("7000000000000000001", "666"))
    )
    for key in [key for key in store.objects if f"/{database}/{manifest.id}." in key]:
        if chance.random() < 0.5 or not key.endswith(SIGNATURE):
            del store.objects[key]
    try:
        take(Catalog(store, keys), manifest, {**MEMBERS, "README.txt": b"forged\n"})
    except BackupdError:
        assert any(key.endswith(SIGNATURE) for key in store.objects)  # one is left there


def _forge_note(truth: Truth, store: MemoryStore, chance: random.Random) -> None:
    name, kind = chance.choice(sorted(truth.backups)), chance.choice(KINDS)
    number, ids = chance.choice((1, 2, 3, 4, 999_999_999)), [each.id for each in sorted(truth.backups)]
    facts: dict[str, str | int | float | bool | None] = {
        "system_identifier": "666",
        "level": "identical",
        "from": chance.choice(ids),
    }
    key, data = note_key(name, kind, number), to_json(Note(kind, number, NOW, chance.random() < 0.5, facts))
    signature = chance.choice((None, sign(made_secret(2), key, data), b"", b"no signature"))
    _put(store, {key: data} | ({} if signature is None else {key + SIGNATURE: signature}))


_ACTS: list[Callable[[Truth, MemoryStore, random.Random], None]] = [
    *(_delete, _flip, _cut, _swap, _move, _move, _move, _put_back, _forge_backup, _forge_note, _forge_note)
]
