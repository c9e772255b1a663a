"""A canary in every secret that there is: after every kind of end it is nowhere but where it was put.

The secrets are taken from the settings themselves, so that a new one is looked for from its first day; one whose value
needs a form of its own needs a line in `FORMS`. While backupd runs, every process of the run is looked at again and
again: its command line, and of its children the environment. Afterwards: output and log in both formats, every object
of the store, what is left in scratch and temporary folder, core files; pages, metrics and messages to people.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyrage
import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_receiver import Receiver
from fix_store import ACCESS_KEY, running_rclone
from fix_tools import LABEL, Site, locked_table, wait_until
from psycopg import sql
from test_serve import get, started

from backupd import settings
from backupd.sections import SECTIONS

MakeSite = Callable[..., Site]
ShellClients = Callable[[PostgresServer, str], Path]

FORMS: dict[str, Callable[[str], str]] = {
    "BACKUPD_NOTIFY__URLS": lambda canary: f"json://user:{canary}@127.0.0.1:9/{canary}path",
    "BACKUPD_NOTIFY__PING_URL": lambda canary: f"http://127.0.0.1:9/{canary}",
}
"""Secrets that are URLs, with the canary where a token would be: nobody listens at port 9."""

ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")


def secret_settings() -> list[str]:
    """The variables of every secret setting."""
    return [
        f"BACKUPD_{section}__{name.upper()}"
        for section, model in SECTIONS.items()
        for name, info in model.model_fields.items()
        if "SecretStr" in str(info.annotation)
    ]


@dataclass
class Watched:
    """An installation with a canary in every secret, and what was seen of its processes."""

    site: Site
    canaries: dict[str, str]
    seen: set[str] = field(default_factory=set)

    def run(self, *arguments: str, **settings_: str) -> int:
        """Runs a command line to its end, looking at its processes all the while."""
        run, done = self.site.start(*arguments, **settings_), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(run.pid, done))
        watcher.start()
        try:
            ended = run.end()
        finally:
            done.set()
            watcher.join()
        self.site.assert_no_secret(ended.stdout + ended.stderr)
        return ended.code

    def _watch(self, backupd: int, done: threading.Event) -> None:
        """A child that has not yet become another program still shows what backupd itself has."""
        mark, own = f"SITE_MARK={self.site.mark}".encode(), b""
        while not done.wait(0.01):
            numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
            for number in sorted(each for each in numbers if each >= backupd):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{number}/cmdline").read_bytes()  # first, or it may become another between
                    environment = Path(f"/proc/{number}/environ").read_bytes()
                    own = command if number == backupd else own
                    if mark in environment:
                        self.seen.add(command.decode("utf-8", "replace"))
                        if command != own:
                            self.seen.add(environment.decode("utf-8", "replace"))

    def assert_nowhere(self) -> None:
        """No canary was seen, or is left."""
        for text in self.seen:
            self.site.assert_no_secret(text)
        for path in self.site.folder.rglob("*"):
            if path.is_file():
                self.site.assert_no_secret(path.read_bytes().decode("latin-1"))
        assert not [path for path in Path(__file__).parents[1].glob("core*") if path.is_file()]


@pytest.fixture
def watched(site: MakeSite, postgres17: PostgresServer, database: DatabaseFactory, tmp_path: Path) -> Iterator[Watched]:
    """An installation whose every secret is a canary; those of the source and the target open them."""
    canaries = {name: f"canary{number}of{os.urandom(6).hex()}" for number, name in enumerate(_all_names())}
    here = site(postgres17)
    source = database(postgres17)
    role = f"canary_{os.urandom(4).hex()}"
    with postgres17.connect(source) as connection:
        password = canaries["BACKUPD_SOURCE__PASSWORD"]
        connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(sql.Identifier(role), password))
        connection.execute("CREATE TABLE rows AS SELECT n FROM generate_series(1, 100) n")
    canaries["BACKUPD_TARGET__PASSWORD"] = canaries["BACKUPD_SOURCE__PASSWORD"]
    values = {name: FORMS.get(name, str)(canary) for name, canary in canaries.items()}
    values["BACKUPD_SIGNING__KEY"], public, canaries["BACKUPD_SIGNING__KEY"] = _signing_key(tmp_path)
    here.settings |= values | {
        "BACKUPD_SIGNING__PUBLIC_KEYS": public,
        "BACKUPD_SOURCE__USER": role,
        "BACKUPD_SOURCE__DATABASES": source,
        "BACKUPD_DRILL__URL": f"postgresql://{role}@127.0.0.1:{postgres17.port}/postgres",
        "BACKUPD_LOG__LEVEL": "debug",
    }
    here.secrets.extend(canaries.values())
    yield Watched(here, canaries)
    with postgres17.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS canaries")
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def _all_names() -> Sequence[str]:
    return (*secret_settings(), *ENVIRONMENT)


def _signing_key(folder: Path) -> tuple[str, str, str]:
    """Text of a secret key, its public key, and the line of it that is secret."""
    public, secret = folder / "key.pub", folder / "key"
    subprocess.run(["minisign", "-G", "-W", "-p", public, "-s", secret], check=True, capture_output=True)
    text = secret.read_text()
    secret.unlink()
    return text, public.read_text().splitlines()[1], text.splitlines()[1]


def test_every_secret_setting_is_known_to_the_log(tmp_path: Path) -> None:
    names = secret_settings()
    assert {f"BACKUPD_{section}__PASSWORD" for section in ("SOURCE", "TARGET", "DRILL")} <= set(names)
    values = {name: FORMS.get(name, str)(f"canary{number}of{name.lower()}") for number, name in enumerate(names)}
    values |= {name: f"canary of {name}" for name in ENVIRONMENT}
    text, _, secret_line = _signing_key(tmp_path)
    loaded = settings.load({**values, "BACKUPD_SIGNING__KEY": text})
    assert {*values.values(), secret_line} - {values["BACKUPD_SIGNING__KEY"]} <= set(settings.secrets(loaded))
    assert len(list(settings._secret_values(loaded))) == len(names)
    assert "canary" not in repr(loaded)


# --- situations: what is run, what is set for it, and how it ends


@dataclass(frozen=True)
class Situation:
    """A command line, settings that make it fail, and its exit code."""

    arguments: Sequence[str]
    code: int
    settings: dict[str, str] = field(default_factory=dict)
    sealed: bool = False


SHARED = {"BACKUPD_DRILL__PASSWORD": "BACKUPD_SOURCE__PASSWORD"}
"""A secret that must be the right one for a drill."""

HOOKS = {f"BACKUPD_HOOK__{name}": '["sh", "-c", "env; echo $0 >&2; exit 1", "hook"]' for name in ("AFTER", "FAILURE")}
"""Hooks that say all that they are given, and fail."""

SAID = 'env >&2; cat "$PGPASSFILE" >&2; tr "\\\\0" " " < /proc/$PPID/environ >&2; exit 1'
"""A client that says all that it can find."""

SITUATIONS = {
    "a backup": Situation(["backup"], 0),
    "a wrong password": Situation(["backup"], 12, {"BACKUPD_SOURCE__PASSWORD": "canary that is wrong"}),
    "nobody there": Situation(["backup"], 18, {"BACKUPD_SOURCE__PORT": "9"}),
    "no such database": Situation(["backup", "nothing"], 2),
    "no store": Situation(["backup"], 10, {"BACKUPD_STORE__URL": "file:///nonexistent"}),
    "an unknown setting": Situation(["list"], 2, {"BACKUPD_SOURCE__PASWORD": "canary that is misspelt"}),
    "a secret of two lines": Situation(["list"], 2, {"BACKUPD_SOURCE__PASSWORD": "canary of\ntwo lines"}),
    "a key that is none": Situation(["list"], 2, {"BACKUPD_SIGNING__KEY": "canary that is no key"}),
    "a URL that is none": Situation(["list"], 2, {"BACKUPD_NOTIFY__PING_URL": "canary that is no URL"}),
    "a list": Situation(["list", "--json"], 0),
    "a doctor": Situation(["doctor"], 0),
    "a plan": Situation(["restore", "latest", "--as=canaries", "--plan"], 0),
    "a restore into what exists": Situation(["restore", "latest", "--as=postgres"], 15),
    "a drill with a wrong password": Situation(["drill"], 12),
    "a copy to nowhere": Situation(["copy", "latest", "file:///nonexistent"], 10),
    "a restore": Situation(["restore", "latest", "--as=canaries"], 0),
    "a drill where it may not be": Situation(["drill"], 15, SHARED),
    "a verify": Situation(["verify", "all"], 0),
    "a prune": Situation(["prune", "--yes"], 0, {"BACKUPD_RETENTION__KEEP_LAST": "1"}),
    "a report": Situation(["report"], 0),
    "hooks": Situation(["backup"], 0, HOOKS),
    "a failure with hooks": Situation(["backup"], 10, {**HOOKS, "BACKUPD_STORE__URL": "file:///nonexistent"}),
    "an encrypted restore": Situation(["restore", "latest", "--as=canaries", "--create-roles"], 0, sealed=True),
    "an encrypted backup with a wrong key": Situation(
        ["verify", "all"], 12, {"BACKUPD_ENCRYPTION__IDENTITIES_FILE": "{another}"}, sealed=True
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_secret_is_nowhere_but_where_it_was_put(name: str, watched: Watched, tmp_path: Path) -> None:
    here, situation = watched.site, SITUATIONS[name]
    here.settings["BACKUPD_LOG__FORMAT"] = ("json", "console")[list(SITUATIONS).index(name) % 2]
    here.secrets += [value for value in situation.settings.values() if "canary" in value]
    here.secrets += [line for secret in here.secrets for line in secret.splitlines()]
    changed = {name: watched.canaries.get(value, value) for name, value in situation.settings.items()}
    if situation.sealed:
        _seal(watched, tmp_path)
        changed = {name: value.format(another=tmp_path / "another") for name, value in changed.items()}
    if situation.arguments[0] not in ("backup", "list"):
        assert watched.run("backup") == 0
    code = watched.run(*situation.arguments, **changed)
    assert code == situation.code or (situation.arguments == ["doctor"] and code in (0, 12, 15, 18))
    assert watched.seen
    watched.assert_nowhere()


def _seal(watched: Watched, folder: Path) -> None:
    """Has backups encrypted, with the key and another one in that folder; both are secrets too."""
    right, wrong = (pyrage.x25519.Identity.generate() for _ in range(2))
    for name, identity in (("identities", right), ("another", wrong)):
        (folder / name).write_text(f"{identity}\n")
        watched.site.secrets.append(str(identity))
    watched.site.settings["BACKUPD_ENCRYPTION__RECIPIENTS"] = str(right.to_public())
    watched.site.settings["BACKUPD_ENCRYPTION__IDENTITIES_FILE"] = str(folder / "identities")


@pytest.mark.slow
@pytest.mark.parametrize("given", ["environment", "profile"])
def test_the_credentials_of_an_s3_are_nowhere_but_where_they_were_put(
    given: str, watched: Watched, tmp_path: Path
) -> None:
    """rclone asks for them, and its folder is a part of what is searched."""
    here, secret = watched.site, watched.canaries["AWS_SECRET_ACCESS_KEY"]
    wrong = f"{secret}butwrong"
    here.settings |= {"BACKUPD_STORE__URL": "s3://bucket/a/prefix", "BACKUPD_STORE__S3__REGION": "us-east-1"}
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": secret}
    refused = credentials | {"AWS_SECRET_ACCESS_KEY": wrong}
    if given == "profile":
        kept = tmp_path / "credentials"
        kept.write_text("".join(_profile(name, **each) for name, each in (("right", credentials), ("wrong", refused))))
        names = {"AWS_SHARED_CREDENTIALS_FILE": str(kept), "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        credentials, refused = ({**names, "AWS_PROFILE": name} for name in ("right", "wrong"))
    here.settings |= credentials
    served = here.folder / "served"
    (served / "bucket").mkdir(parents=True)
    with running_rclone(served, secret) as endpoint:
        here.settings["BACKUPD_STORE__S3__ENDPOINT_URL"] = endpoint
        assert watched.run("backup") == 0
        assert watched.run("restore", "latest", "--as=canaries") == 0
        assert watched.run("backup", **refused) == 12
        here.settings["BACKUPD_LOG__FORMAT"] = "console"
        assert watched.run("verify", "all", **refused) == 12
    assert watched.run("list") == 10
    assert list(served.rglob("*.json"))
    watched.assert_nowhere()


def _profile(name: str, **settings_: str) -> str:
    """A profile in a file of AWS's."""
    return f"[{name}]\n" + "".join(f"{key.lower()} = {value}\n" for key, value in settings_.items())


@pytest.mark.slow
def test_a_drill_s_secrets_are_nowhere_but_where_they_were_put(watched: Watched, postgres18: PostgresServer) -> None:
    here = watched.site
    name = f"canary_{os.urandom(4).hex()}"
    here.settings["BACKUPD_DRILL__URL"] = f"postgresql://{name}@127.0.0.1:{postgres18.port}/postgres"
    role, password = sql.Identifier(name), watched.canaries["BACKUPD_DRILL__PASSWORD"]
    assert watched.run("backup") == 0
    with postgres18.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(role, password))
        try:
            assert watched.run("drill") == 0
            (archive,) = here.store.rglob("*.tar")
            archive.write_bytes(bytes(archive.stat().st_size))
            assert watched.run("drill") == 14
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
    assert len(list(here.store.rglob("*.drilled-*.json"))) == 2
    watched.assert_nowhere()


LAST_WORDS = """
mount -t tmpfs none {new}; touch {new}/termination-log; mount --bind {kept} {new}/termination-log
for each in null zero full random urandom; do touch {new}/$each; mount --bind /dev/$each {new}/$each; done
mount --rbind {new} /dev; exec "$@"
"""
"""Gives a command devices of its own, with the file that Kubernetes mounts into a container for its last words."""


@pytest.mark.slow
def test_a_pod_s_last_words_have_no_secret(
    watched: Watched, namespace: list[str], shell_clients: ShellClients, tmp_path: Path
) -> None:
    here, kept = watched.site, tmp_path / "termination-log"
    (tmp_path / "devices").mkdir()
    here.prefix = [*namespace, LAST_WORDS.format(new=tmp_path / "devices", kept=kept), "sh"]
    talkative = {"BACKUPD_DUMP__CLIENTS": str(shell_clients(here.server, SAID))}
    wrong = {"BACKUPD_SOURCE__PASSWORD": f"{watched.canaries['BACKUPD_SOURCE__PASSWORD']}butwrong"}
    two_lines = {"BACKUPD_SOURCE__PASSWORD": "canary of\ntwo lines"}
    for code, changed in ((18, talkative), (12, wrong), (2, two_lines)):
        here.secrets += [line for value in changed.values() if "canary" in value for line in value.splitlines()]
        kept.write_text("")
        assert here.run("backup", **changed).code == code
        assert f"({code})\n" in kept.read_text()
        here.assert_no_secret(kept.read_text())


@pytest.mark.slow
def test_whoever_is_told_or_asks_learns_no_secret(watched: Watched, receiver: Receiver, tmp_path: Path) -> None:
    here = watched.site
    here.settings["BACKUPD_NOTIFY__URLS"] = f"json://127.0.0.1:{receiver.port}/hook"
    here.settings["BACKUPD_NOTIFY__PING_URL"] = f"http://127.0.0.1:{receiver.port}/ping"
    here.settings["BACKUPD_METRICS__TEXTFILE"] = str(here.folder / "backupd.prom")
    assert watched.run("backup", BACKUPD_SOURCE__PASSWORD="canary that is wrong") == 12
    assert watched.run("backup") == 0
    daemon, port = started(here)
    name = here.listed()[0]
    paths = ("/", "/metrics", "/api/v1/backups.json", f"/databases/{LABEL}", f"/nothing/{name}")
    pages = [get(port, path).text for path in paths]
    daemon.send(signal.SIGTERM)

    assert daemon.end().code == 0
    assert len(receiver.messages) >= 2
    assert (here.folder / "backupd.prom").read_text()
    for text in (*pages, *map(str, receiver.received)):
        here.assert_no_secret(text)
    watched.assert_nowhere()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["file", "PGPASSWORD", "PGPASSFILE", "service"])
def test_a_password_is_nowhere_however_it_was_given(given: str, watched: Watched, tmp_path: Path) -> None:
    here, password = watched.site, watched.canaries["BACKUPD_SOURCE__PASSWORD"]
    here.settings["BACKUPD_SOURCE__PASSWORD"] = ""
    kept = tmp_path / "kept"
    kept.touch(mode=0o600)
    match given:
        case "file":
            kept.write_text(password)
            here.settings["BACKUPD_SOURCE__PASSWORD_FILE"] = str(kept)
        case "PGPASSFILE":
            kept.write_text(f"*:*:*:*:{password}\n")
            here.settings["PGPASSFILE"] = str(kept)
        case "service":
            kept.write_text(f"[canaries]\npassword={password}\n")
            here.settings |= {"PGSERVICEFILE": str(kept), "PGSERVICE": "canaries", "BACKUPD_SOURCE__SERVER": LABEL}
        case _:
            here.settings["PGPASSWORD"] = password
    assert watched.run("backup") == 0
    assert watched.run("backup", BACKUPD_SOURCE__DATABASES="nothing") == 2
    watched.assert_nowhere()


@pytest.mark.slow
def test_what_a_client_finds_and_says_is_masked(watched: Watched, shell_clients: ShellClients) -> None:
    here = watched.site
    assert watched.run("backup", BACKUPD_DUMP__CLIENTS=str(shell_clients(here.server, SAID))) == 18
    watched.assert_nowhere()
    assert here.listed() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV])
def test_a_run_that_a_signal_ends_leaves_no_core_and_no_secret(number: signal.Signals, watched: Watched) -> None:
    here = watched.site
    here.prefix = ["prlimit", "--core=unlimited", "--"]
    with locked_table(here.server, here.settings["BACKUPD_SOURCE__DATABASES"], "rows"):
        run = here.start("backup")
        child = here.pg_dump(run)
        limits = (Path(f"/proc/{child}/limits").read_text(), Path(f"/proc/{run.pid}/limits").read_text())
        run.send(number)
        ended = run.end()
    assert ended.code == (143 if number == signal.SIGTERM else -number)
    assert all("Max core file size        1                    1 " in text for text in limits)
    assert not [path for path in Path(__file__).parents[1].glob("core*") if path.is_file()]
    wait_until(lambda: not here.children(), "pg_dump is left")
    if number == signal.SIGTERM:
        watched.assert_nowhere()
