"""Which entries of a dump belong to some tables or schemas: a closure over toc.dat's dependencies. Pure.

Up: whatever an entry needs to be created (schema, types, functions, extensions, parents by inheritance...), without
the rows of tables that are only needed for their definition. Down: what makes a chosen table whole (rows, keys,
indexes, triggers, policies, rules, defaults, sequences and their values, statistics, grants, comments). A partition
root brings its partitions. What ties two tables together (a foreign key, a partition to its root) comes when both
were chosen; whatever is tied to a chosen table and stays behind is listed with the reason.

Some dependencies in toc.dat are not needed, and are left: a partition is created as a table of its own, a sequence
before the column that owns it, a partition's index before it is attached. What function bodies name is not in toc.dat
and cannot be known.

Not pg_restore's own --table and --schema: they take neither sequences, nor keys, nor types, nor functions along.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from backupd import table_pattern, toc
from backupd.errors import VerificationFailed
from backupd.manifest import Contract
from backupd.table_pattern import Name
from backupd.toc import Entry, Toc

EVENT_TRIGGER = "EVENT TRIGGER"

_TABLES = frozenset({"TABLE", "FOREIGN TABLE"})
_RELATIONS = _TABLES | {"VIEW", "MATERIALIZED VIEW", "SEQUENCE"}
_PARTS = frozenset(
    {"TABLE DATA", "DEFAULT", "CONSTRAINT", "CHECK CONSTRAINT", "INDEX", "STATISTICS", "STATISTICS DATA", "TRIGGER"}
    | {"RULE", "ROW SECURITY", "POLICY", "SEQUENCE", "SEQUENCE SET"}
)
_TIES = frozenset({"FK CONSTRAINT", "TABLE ATTACH", "INDEX ATTACH", "MATERIALIZED VIEW DATA", "SEQUENCE OWNED BY"})
_OF_DATABASE = frozenset({"PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"})
_NOTES = frozenset({"ACL", "COMMENT", "SECURITY LABEL"})
_NAMED_ALONE = frozenset({"INDEX", "STATISTICS"})  # their tag does not begin with the table's
_WITH_TYPES = frozenset({"CAST", "CHECK CONSTRAINT"})  # what comes with a type or domain that is needed
_WORD = re.compile(r'"(?:[^"]|"")*"|[^\s"(),;]+')
_VIA_ROOT = "-- load via partition root "


@dataclass(frozen=True)
class Wanted:
    """The tables and schemas that somebody named, as patterns (see `table_pattern`)."""

    tables: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class LeftOut:
    """Something that is tied to what was chosen and does not come along, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The entries to restore, in the dump's order, and what was left out."""

    toc: Toc
    left_out: tuple[LeftOut, ...]

    @property
    def use_list(self) -> str:
        """The text of a file for pg_restore's --use-list: a dump id a line."""
        return "".join(f"{entry.dump_id};\n" for entry in self.toc.entries)


def choose(contents: Toc, wanted: Wanted) -> Selection:
    """What belongs to the wanted tables and schemas. Raises UsageError where a pattern matches nothing."""
    ties = _Ties(contents)
    seeds = _named(ties, wanted)
    closure = _Closure(ties, ties.with_partitions(each for each in seeds if each.desc in _RELATIONS))
    for entry in seeds:
        closure.keep(entry)
    closure.finish()
    kept = tuple(entry for entry in contents.entries if entry.dump_id in closure.kept)
    return Selection(replace(contents, entries=kept), tuple(sorted(set(_left_out(ties, closure)))))


def event_triggers_apart(contents: Toc) -> tuple[Selection, Selection] | None:
    """All of a dump but its event triggers, and these with their comments and labels; None where it has none.

    Once made they run: one that logs DDL writes down pg_restore's REFRESH MATERIALIZED VIEW, one that logs logins
    (PostgreSQL 17) every session that looks whether the rows are right.
    """
    found = {entry.dump_id for entry in contents.entries if entry.desc == EVENT_TRIGGER}
    if not found:
        return None
    found |= {e.dump_id for e in contents.entries if e.desc in _NOTES and not found.isdisjoint(e.dependencies)}
    rest = tuple(entry for entry in contents.entries if entry.dump_id not in found)
    triggers = tuple(entry for entry in contents.entries if entry.dump_id in found)
    return Selection(replace(contents, entries=rest), ()), Selection(replace(contents, entries=triggers), ())


def cut(promised: Contract, chosen: Selection) -> Contract:
    """What of the contract the selection must bring back. Raises VerificationFailed where it lacks a table."""
    filled = {(entry.namespace, entry.tag) for entry in chosen.toc.entries if entry.desc == "TABLE DATA"}
    relations = {(entry.namespace, entry.tag) for entry in chosen.toc.entries if entry.desc in _RELATIONS}
    tables = tuple(table for table in promised.tables if (table.schema, table.name) in filled)
    if len(tables) != len(filled):
        raise VerificationFailed("index and toc.dat of the archive do not name the same tables")
    extensions = toc.extensions(chosen.toc)
    return Contract(
        database=promised.database,
        tables=tables,
        skipped=tuple(each for each in promised.skipped if (each.schema, each.name) in relations),
        sequences=toc.sequences(chosen.toc),
        extensions=tuple(each for each in promised.extensions if each.name in extensions),
        roles=toc.roles(chosen.toc),
    )


def _named(ties: "_Ties", wanted: Wanted) -> list[Entry]:
    """The entries that the patterns name, and for a schema all that is in it."""
    seeds = []
    if wanted.tables:
        names = table_pattern.find_tables(wanted.tables, ties.relations)
        seeds += [ties.relations[name] for name in names]
    if wanted.schemas:
        own = [entry for entry in ties.contents.entries if _lies_in_schema(entry)]
        known = {entry.namespace for entry in own} | ties.schemas.keys()
        found = table_pattern.find_schemas(wanted.schemas, known)
        seeds += [entry for entry in own if entry.namespace in found]
        seeds += [entry for name, entry in ties.schemas.items() if name in found]
        seeds += [each for name, each in ties.relations.items() if name[0] in found and each.desc == "TABLE DATA"]
    return seeds


def _lies_in_schema(entry: Entry) -> bool:
    """Whether it is one of the objects that a schema consists of, rather than a part of one."""
    part = _PARTS - {"SEQUENCE"} | _TIES | _OF_DATABASE | _NOTES
    return entry.namespace != "" and entry.desc not in part


class _Ties:
    """The entries by id, who depends on whom, and the families of partitions."""

    def __init__(self, contents: Toc) -> None:
        self.contents = contents
        self.by_id = {entry.dump_id: entry for entry in contents.entries}
        self.schemas = {entry.tag: entry for entry in contents.entries if entry.desc == "SCHEMA"}
        self._of_schema: dict[str, list[Entry]] = defaultdict(list)  # of `public` there are only grants and comment
        for entry in contents.entries:
            if entry.desc in _NOTES and entry.tag.startswith("SCHEMA "):
                self._of_schema[entry.tag.removeprefix("SCHEMA ")].append(entry)
        self.mappings = [entry for entry in contents.entries if entry.desc == "USER MAPPING"]
        self.dependents: dict[int, list[Entry]] = defaultdict(list)
        for entry in contents.entries:
            for dump_id in set(entry.dependencies):
                self.dependents[dump_id].append(entry)
        self.relations: dict[Name, Entry] = {}
        for entry in contents.entries:
            if entry.desc in _RELATIONS or (entry.desc == "TABLE DATA" and not self.tables_of(entry)):
                self.relations[entry.namespace, entry.tag] = entry  # an extension's table has rows only
        self.parent: dict[int, Entry] = {}
        self.children: dict[int, list[Entry]] = defaultdict(list)
        for entry in contents.entries:
            if entry.desc == "TABLE ATTACH":
                self._attach(entry)

    def _attach(self, entry: Entry) -> None:
        child = self.relations.get((entry.namespace, entry.tag))
        parent = next((table for table in self.tables_of(entry) if table is not child), None)
        if child is not None and parent is not None:
            if child is parent or child in self.above(parent):
                raise VerificationFailed(f"toc.dat has table {entry.namespace}.{entry.tag} as a partition of itself")
            self.parent[child.dump_id] = parent
            self.children[parent.dump_id].append(child)

    def above(self, relation: Entry) -> Iterator[Entry]:
        """What the relation is a partition of, and that in its turn, from the nearest on."""
        above = self.parent.get(relation.dump_id)
        while above is not None:
            yield above
            above = self.parent.get(above.dump_id)

    def dependencies(self, entry: Entry) -> list[Entry]:
        """What is in the dump of the entries that it names."""
        return [self.by_id[dump_id] for dump_id in dict.fromkeys(entry.dependencies) if dump_id in self.by_id]

    def tables_of(self, entry: Entry) -> list[Entry]:
        """The relations among its dependencies."""
        return [each for each in self.dependencies(entry) if each.desc in _RELATIONS]

    def owner(self, entry: Entry) -> Entry | None:
        """The relation that the entry is a part of; the others that it depends on are only used."""
        found = self.tables_of(entry)
        if entry.desc not in _NAMED_ALONE:
            found = [each for each in found if each.namespace == entry.namespace] or found
            found = [each for each in found if _may_be_part_of(entry, each)] or found
        if len(found) > 1:
            found = [each for each in found if _is_written_in(entry, each)] or found
        return found[0] if found else None

    def needs(self, entry: Entry) -> Iterator[Entry]:
        """What must be there before the entry can be created."""
        for each in self.dependencies(entry):
            if not _is_loose(entry, each) and self.parent.get(entry.dump_id) is not each:
                yield each
        if entry.namespace in self.schemas:
            yield self.schemas[entry.namespace]
        yield from self._of_schema[entry.namespace]
        if entry.desc == "TABLE DATA" and not self.tables_of(entry):
            yield from (each for each in self.contents.entries if each.desc == "EXTENSION")  # one of them has the table

    def reads(self, entry: Entry) -> Iterator[Entry]:
        """What the entry depends on; for a view whose query is a rule of its own, also by way of that."""
        yield from self.dependencies(entry)
        for each in self.dependents[entry.dump_id]:
            if each.desc == "RULE" and each.tag == f"{entry.tag} _RETURN" and entry.desc == "VIEW":
                yield from self.dependencies(each)

    def with_partitions(self, seeds: Iterable[Entry]) -> set[int]:
        """The ids of these relations and all their partitions; a leaf whose rows go through its root brings that."""
        chosen: set[int] = set()
        waiting = list(seeds)
        while waiting:
            entry = waiting.pop()
            if entry.dump_id not in chosen:
                chosen.add(entry.dump_id)
                waiting += self.children[entry.dump_id]
                if entry.dump_id in self.parent and self._is_loaded_via_root(entry):
                    waiting.append(self.parent[entry.dump_id])
        return chosen

    def _is_loaded_via_root(self, entry: Entry) -> bool:
        rows = (each for each in self.dependents[entry.dump_id] if each.desc == "TABLE DATA")
        return any(each.definition.startswith(_VIA_ROOT) for each in rows) or any(
            self._is_loaded_via_root(child) for child in self.children[entry.dump_id]
        )


class _Closure:
    """The ids that are kept, of which `chosen` are the relations that come whole."""

    def __init__(self, ties: _Ties, chosen: set[int]) -> None:
        self._ties = ties
        self.chosen = chosen
        self.kept: set[int] = set()
        for dump_id in chosen:
            self.keep(ties.by_id[dump_id])

    def keep(self, entry: Entry) -> None:
        """Keeps the entry, all that it needs, and all that comes along with those."""
        waiting = [entry]
        while waiting:
            one = waiting.pop()
            if one.dump_id not in self.kept:
                self.kept.add(one.dump_id)
                waiting += self._ties.needs(one)
                waiting += self._along(one)

    def finish(self) -> None:
        """Keeps what ties together entries that are all kept."""
        for entry in self._ties.contents.entries:
            if entry.desc in _TIES | {"TRIGGER"} and self._is_tied(entry):
                self.kept.add(entry.dump_id)
                for each in self._along(entry):
                    self.keep(each)

    def _along(self, entry: Entry) -> Iterator[Entry]:
        for each in self._ties.dependents[entry.dump_id]:
            if each.desc in _NOTES:
                if each.dependencies[0] == entry.dump_id:
                    yield each
            elif entry.desc in _RELATIONS:
                if self._comes_with(each, entry):
                    yield each
            elif _is_type(entry) and each.desc in _WITH_TYPES:
                types = filter(_is_type, self._ties.dependencies(each))
                if all(other.dump_id in self.kept for other in types):
                    yield each
        if entry.desc == "SERVER":  # its user mappings have no dependencies, only its name
            yield from (each for each in self._ties.mappings if each.tag.endswith(f" SERVER {entry.tag}"))

    def _comes_with(self, part: Entry, relation: Entry) -> bool:
        if part.desc not in _PARTS or self._ties.owner(part) is not relation or _is_clone(part):
            return False
        if part.desc == "RULE" and part.tag == f"{relation.tag} _RETURN":
            return True  # it is the view
        return relation.dump_id in self.chosen or part.desc == "SEQUENCE SET"

    def _is_tied(self, entry: Entry) -> bool:
        """Whether the two that an entry ties together are both there, with all their rows."""
        tables = self._ties.tables_of(entry)
        if not tables:
            return False
        if entry.desc == "SEQUENCE OWNED BY":
            owners = [each for sequence in tables for each in self._ties.tables_of(sequence)]
            return all(each.dump_id in self.kept for each in (*tables, *owners))
        if entry.desc == "TRIGGER":
            return _is_clone(entry) and self._has_original(entry)
        if entry.desc == "MATERIALIZED VIEW DATA":
            return all(not self.lacking(each) and each.dump_id in self.chosen for each in tables)
        return all(each.dump_id in self.chosen for each in tables)

    def _has_original(self, clone: Entry) -> bool:
        """Whether a trigger that was cloned to a partition is on a table above it that comes too."""
        table = self._ties.owner(clone)
        if table is None or table.dump_id not in self.chosen:
            return False
        name = clone.tag.removeprefix(f"{table.tag} ")
        for above in takewhile(lambda each: each.dump_id in self.chosen, self._ties.above(table)):
            triggers = (each for each in self._ties.dependents[above.dump_id] if each.desc == "TRIGGER")
            if any(each.tag == f"{above.tag} {name}" and not _is_clone(each) for each in triggers):
                return True
        return False

    def lacking(self, view: Entry) -> list[Entry]:
        """The tables that a materialised view reads, by way of other views too, and that come without rows."""
        seen: dict[int, Entry] = {}
        waiting = [view]
        while waiting:
            for each in self._ties.reads(waiting.pop()):
                if each.dump_id not in seen:
                    seen[each.dump_id] = each
                    waiting.append(each)
        filled = _TABLES | {"MATERIALIZED VIEW"}
        return [each for each in seen.values() if each.desc in filled and each.dump_id not in self.chosen]


def _is_loose(entry: Entry, other: Entry) -> bool:
    """Whether toc.dat names a dependency that is not needed to create the entry."""
    if entry.desc in ("CONSTRAINT", "INDEX"):
        return other.desc in ("CONSTRAINT", "INDEX")  # of the partition root, to which it is attached later
    if entry.desc == "SEQUENCE":
        return other.desc in _TABLES and entry.definition.lstrip().startswith("CREATE ")  # else an identity column's
    return False


def _may_be_part_of(entry: Entry, relation: Entry) -> bool:
    """Whether an entry that depends on several relations may be this one's part by its tag: `table part`."""
    return entry.tag == relation.tag or entry.tag.startswith(f"{relation.tag} ")


def _is_written_in(entry: Entry, relation: Entry) -> bool:
    """Whether the entry's definition says so too, where its tag says nothing or too much."""
    place = rf"{_quoted(relation.namespace)}\.{_quoted(relation.tag)}"
    if entry.desc == "INDEX":
        return re.search(rf" ON (?:ONLY )?{place} USING ", entry.definition) is not None
    if entry.desc == "STATISTICS":
        return re.search(rf" FROM {place};", entry.definition) is not None
    name = re.compile(_quoted(entry.tag.removeprefix(f"{relation.tag} ")))
    return any(name.fullmatch(word) for word in _WORD.findall(entry.definition))


def _quoted(name: str) -> str:
    """A pattern for the name as pg_dump writes it: in quotes or not."""
    return f'"?{re.escape(name.replace(chr(34), chr(34) * 2))}"?'


def _is_clone(entry: Entry) -> bool:
    """Whether it is not a trigger, but how one of the partition root's is switched on or off here."""
    return entry.desc == "TRIGGER" and entry.definition.lstrip().startswith("ALTER ")


def _is_type(entry: Entry) -> bool:
    return entry.desc in ("TYPE", "DOMAIN")


def _left_out(ties: _Ties, closure: _Closure) -> Iterator[LeftOut]:
    for entry in ties.contents.entries:
        if entry.dump_id in closure.kept:
            yield from _without_rows(entry, closure)
            continue
        tables = ties.tables_of(entry)
        chosen = [each for each in tables if each.dump_id in closure.chosen]
        others = ", ".join(_spelled(each) for each in tables if each.dump_id not in closure.chosen)
        if chosen and (reason := _reason(ties, closure, entry, others)):
            owner = ties.owner(entry)
            name = _spelled(entry) if entry.desc in _RELATIONS or owner is None else _part_name(entry, owner)
            yield LeftOut(f"{_KINDS[entry.desc]} {name}", reason)
    yield from _of_database(ties, closure)


_KINDS = {
    "FK CONSTRAINT": "foreign key",
    "TABLE ATTACH": "attachment of partition",
    "TRIGGER": "state of trigger",
    "RULE": "view",
    "MATERIALIZED VIEW DATA": "rows of materialised view",
    "PUBLICATION TABLE": "publication of",
    "TABLE": "table",
    "FOREIGN TABLE": "foreign table",
    "VIEW": "view",
    "MATERIALIZED VIEW": "materialised view",
}


def _reason(ties: _Ties, closure: _Closure, entry: Entry, others: str) -> str | None:
    """Why an entry that depends on a chosen table is left out; None where that goes without saying."""
    match entry.desc:
        case "FK CONSTRAINT":
            return f"{others} was not chosen"
        case "TABLE ATTACH":
            return f"its root {others} was not chosen: it becomes a table of its own, without what the root defines"
        case "TRIGGER" if _is_clone(entry):
            return "the trigger is the partition root's, which was not chosen"
        case "PUBLICATION TABLE":
            return "publications belong to the whole database"
        case "MATERIALIZED VIEW DATA":
            lacking = (_spelled(each) for view in ties.tables_of(entry) for each in closure.lacking(view))
            return f"it reads {', '.join(lacking)}, not chosen: REFRESH it when they have rows"
        case "RULE" if entry.tag.endswith(" _RETURN"):
            return "it uses what was chosen, and was not chosen itself"
        case "VIEW" | "MATERIALIZED VIEW" | "TABLE" | "FOREIGN TABLE":
            return "it uses what was chosen, and was not chosen itself"
    return None


def _without_rows(entry: Entry, closure: _Closure) -> Iterator[LeftOut]:
    if entry.desc == "TABLE" and entry.dump_id not in closure.chosen:
        reason = "not chosen: it comes empty, because something that was chosen needs its definition"
        yield LeftOut(f"rows of {_spelled(entry)}", reason)


def _of_database(ties: _Ties, closure: _Closure) -> Iterator[LeftOut]:
    count = len(toc.large_objects(ties.contents))
    if count:
        yield LeftOut(f"large objects: {count}", "they belong to no table; restore the whole backup for them")
    if any(ties.by_id[dump_id].desc == "EXTENSION" for dump_id in closure.kept):
        for entry in ties.relations.values():
            if entry.desc == "TABLE DATA" and entry.dump_id not in closure.kept:
                yield LeftOut(f"rows of {_spelled(entry)}", "an extension's own table; name it to have its rows")


def _spelled(entry: Entry) -> str:
    return table_pattern.spelled(entry.namespace, entry.tag)


def _part_name(entry: Entry, owner: Entry) -> str:
    rest = entry.tag.removeprefix(f"{owner.tag} ")
    if entry.tag in (owner.tag, f"{owner.tag} _RETURN") or rest == entry.tag:
        return _spelled(owner)
    return f"{table_pattern.spelled(rest)} of {_spelled(owner)}"
