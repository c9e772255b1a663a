"""The house as the imports draw it: each module may import what stands to its right, and outside things by one door.

cli ─▶ commands/* ─▶ installation terminal render ─▶ settings ─▶ verbs ─▶ catalog ─▶ edges ─▶ process ─▶ pure ─▶ base
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "backupd"

COMMANDS = ("backup", "restore", "drill", "look", "keep", "report", "serve")

# leftmost first; modules of one layer may import each other only where EXCEPTIONS says so
LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("start", frozenset({"__main__"})),
    ("shell", frozenset({"cli"})),
    ("verbs of the shell", frozenset(f"commands.{name}" for name in COMMANDS)),
    ("a run of theirs", frozenset({"commands.run"})),
    ("what they share", frozenset({"commands", "commands.shared", "commands.monitor", "commands.tell"})),
    ("service", frozenset({"site"})),
    ("parts of the service", frozenset({"metrics", "scheduler", "serve", "watch"})),
    ("pages", frozenset({"web", "web.pages"})),
    ("parts of pages", frozenset({"web.charts", "web.commands", "web.summary", "web.text"})),
    ("parts of the shell", frozenset({"installation", "terminal", "render"})),
    ("settings", frozenset({"settings"})),
    ("verbs", frozenset({"backup", "copy", "restore", "verify", "doctor", "demo", "drill", "rekey", "report"})),
    ("before a verb", frozenset({"hold", "notice", "preflight", "status"})),
    ("before those", frozenset({"fetch", "freshness", "outline", "predecessors"})),
    ("memory", frozenset({"catalog"})),
    ("what it reads", frozenset({"reader"})),
    ("values for others", frozenset({"grants"})),
    ("its keys", frozenset({"layout"})),
    ("of what failed", frozenset({"failure"})),
    (
        "questions to a database",
        frozenset({"comparison", "content", "facts", "obstacles", "privileges", "probe", "roles", "swap", "target"}),
    ),
    ("ways to ask", frozenset({"locks", "properties", "sessions"})),
    (
        "edges",
        frozenset(
            {
                "archive",
                "clients",
                "dump",
                "hook",
                "postgres",
                "signing",
                "throwaway",
                "store.local",
                "store.paced",
                "store.s3",
            }
        ),
    ),
    ("doors", frozenset({"encryption", "notify", "process", "scratch", "store"})),
    (
        "pure",
        frozenset(
            {
                "anomaly",
                "connection",
                "contract",
                "copytext",
                "decode",
                "estimate",
                "finding",
                "guard",
                "history",
                "manifest",
                "marks",
                "notation",
                "progress",
                "readme",
                "retention",
                "schedule",
                "sections",
                "selection",
                "selector",
                "sqlstate",
                "store.answers",
                "table_pattern",
                "toc",
                "words",
            }
        ),
    ),
    ("interruption", frozenset({"signals", "threads"})),
    ("base", frozenset({"errors", "log", "__init__"})),
)

EXCEPTIONS = {
    ("target", "facts"),  # what a target is asked, a source is asked too
    ("content", "facts"),
    ("comparison", "facts"),
    ("drill", "restore"),  # a drill is a restore that is looked at more closely
    ("roles", "facts"),
    ("dump", "clients"),
    ("obstacles", "facts"),
    ("swap", "facts"),
    ("swap", "obstacles"),  # looked at once more right before
    ("swap", "target"),  # the steps that make one database like another
    ("demo", "backup"),  # the demo is the other verbs, one after the other
    ("demo", "restore"),
    ("demo", "verify"),
    ("terminal", "render"),  # what may be shown on one
    ("rekey", "verify"),  # what is encrypted anew is proven as there
    ("render", "restore"),  # for its type only
    ("notice", "status"),  # a digest is its words
    ("render", "preflight"),
    ("store", "store.local"),  # open_store imports them where they are opened
    ("store", "store.s3"),
    ("anomaly", "manifest"),
    ("contract", "toc"),
    ("contract", "decode"),
    ("contract", "manifest"),
    ("estimate", "manifest"),
    ("history", "manifest"),
    ("history", "retention"),
    ("sections", "connection"),
    ("sections", "notation"),
    ("sections", "retention"),
    ("sections", "schedule"),
    ("readme", "manifest"),
    ("retention", "manifest"),
    ("selection", "manifest"),
    ("selection", "table_pattern"),
    ("selection", "toc"),
    ("selector", "manifest"),
    ("toc", "manifest"),
}

DOORS = {
    "subprocess": {"process"},
    "psycopg": {"postgres"},
    "boto3": {"store.s3"},
    "botocore": {"store.s3"},
    "typer": {"cli", "commands.shared", *(f"commands.{name}" for name in COMMANDS)},
    "structlog": {"log"},
    "tarfile": {"archive"},
    "pyrage": {"encryption"},
    "inotify_simple": {"dump"},
    "apprise": {"notify"},
    "croniter": {"schedule"},
    "prometheus_client": {"metrics"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "asyncio": {"serve"},
    "jinja2": {"web.pages"},
    "nacl": {"signing"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(path: Path) -> set[str]:
    """The dotted names that a module imports, anywhere in it, with each name of a `from` import appended."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def internal(path: Path) -> set[str]:
    """The package's own modules that a module imports."""
    known = modules()
    found = set()
    for name in imports(path):
        inner = name.removeprefix("backupd.") if name.startswith("backupd.") else ""
        candidates = [inner, inner.rpartition(".")[0]]
        found |= {next((each for each in candidates if each in known), "__init__")} if inner else set()
    return found - {"__init__"}


def layer(module: str) -> int:
    """The number of a module's layer, from the left."""
    return next(number for number, (_, members) in enumerate(LAYERS) if module in members)


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_module_has_a_room(module: str) -> None:
    rooms = [name for name, members in LAYERS if module in members]

    assert len(rooms) == 1, f"{module} stands in no layer, or in several: {rooms}"


@pytest.mark.parametrize(("module", "path"), sorted(modules().items()))
def test_imports_go_rightwards_only(module: str, path: Path) -> None:
    wrong = {other for other in internal(path) if layer(other) <= layer(module) and (module, other) not in EXCEPTIONS}

    assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize(("module", "path"), sorted(modules().items()))
def test_each_outside_thing_has_one_door(module: str, path: Path) -> None:
    opened = {name.partition(".")[0] for name in imports(path)} & DOORS.keys()

    assert all(module in DOORS[name] for name in opened), f"{module} imports {sorted(opened)}"


def test_no_exception_is_left_over() -> None:
    """An exception that nothing uses any more would hide the next wrong import."""
    known = modules()

    assert not {pair for pair in EXCEPTIONS if pair[0] not in known or pair[1] not in internal(known[pair[0]])}
