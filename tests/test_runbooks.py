"""The chart's runbooks and examples say what exists. The cluster test executes the same `sh` blocks."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from typer.main import get_command

from backupd import cli, errors
from backupd.errors import BackupdError, Interrupted
from backupd.sections import RUN_VARIABLES, variables

yaml: Any = pytest.importorskip("yaml")

CHART = Path(__file__).parent.parent / "chart"
INDEX = CHART / "runbooks" / "README.md"
RUNBOOKS = sorted(set(INDEX.parent.glob("*.md")) - {INDEX})
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

HEADINGS = ["Meaning", "First command", "Decisions", "How to know that it worked", "How to undo"]
COMMANDS: dict[str, Any] = getattr(get_command(cli.app), "commands")  # noqa: B009  # typer's, without a public name
SERVICE = {"name", "host", "port", "user", "sslmode"}
FREE = {"annotations", "labels", "nodeSelector", "affinity", "resources", "podAnnotations", "podLabels"}

SOURCES = "".join(path.read_text(encoding="utf-8") for path in (CHART.parent / "backupd").rglob("*.py"))
EVENTS = set(re.findall(r'_log\.\w+\(\s*"([a-z_.]+)"', SOURCES))

for_each_runbook = pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
for_each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def blocks(path: Path, language: str = "sh") -> list[str]:
    """The blocks of a runbook that are marked `sh`, in its order: what one `sh -eu` executes."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def functions(path: Path) -> dict[str, str]:
    """The shell functions that a runbook defines, by name."""
    text = "".join(blocks(path))
    return {match[1]: match[0] for match in re.finditer(r"^(\w+)\(\) \{(?:[^\n]*\}$|.*?^\}$)", text, re.M | re.S)}


def console_commands(path: Path) -> list[str]:
    """The commands of a runbook that no test executes."""
    return re.findall(r"^\$ (.+)$", "".join(blocks(path, "console")), re.MULTILINE)


def code(path: Path) -> str:
    """What is written as code, in blocks and in sentences."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(fenced + re.findall(r"`([^`]+)`", rest))


def values_at(dotted: str) -> bool:
    """Whether values.yaml has that key."""
    found: Any = VALUES
    for name in dotted.split("."):
        if not isinstance(found, dict) or name not in found:
            return False
        found = found[name]
    return True


# --- the runbooks


def test_there_is_a_runbook_for_each_situation() -> None:
    assert {path.stem for path in RUNBOOKS} == {
        "restore-a-database",
        "restore-one-table",
        "restore-into-a-new-cluster",
        "backup-is-failing",
        "a-backup-is-bad",
        "the-page-is-blind",
        "retention-is-frozen",
        "store-is-full",
        "tool-is-gone",
        "encryption-keys",
    }


@for_each_runbook
def test_headings_are_the_same_in_every_runbook(path: Path) -> None:
    found = re.findall(r"^(#+) (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)

    assert [text for marks, text in found if marks == "##"] == HEADINGS
    assert [text for marks, text in found if marks == "#"] == [path.stem.replace("-", " ").capitalize()]
    assert {marks for marks, _ in found} == {"#", "##"}


@for_each_runbook
def test_the_first_command_comes_first(path: Path) -> None:
    before, _, after = path.read_text().partition("## First command")

    assert "```" not in before
    assert "```sh" in after.partition("\n## ")[0]


@for_each_runbook
def test_every_block_is_executed_or_listed(path: Path) -> None:
    languages = re.findall(r"^```(.*)$", path.read_text(), re.MULTILINE)

    assert set(languages[::2]) <= {"sh", "console"}
    assert set(languages[1::2]) == {""}


@for_each_runbook
def test_the_shell_takes_every_block(path: Path) -> None:
    for block in blocks(path):
        said = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert said.returncode == 0, f"{said.stderr}\n{block}"


@for_each_runbook
def test_every_variable_is_set_before_it_is_used(path: Path) -> None:
    """Also RELEASE, which the test sets but a person may not have set."""
    text = "\n".join(blocks(path))
    text = re.sub(r"#[^\n]*|'[^'\n]*'|<<'(\w+)'.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    for match in re.finditer(r"\$\{?([A-Z][A-Z0-9_]*)(:-)?", text):
        before, name, has_default = text[: match.start()], match[1], match[2]
        assert has_default or re.search(rf"(^|\s)({name}=|for {name} in )", before, re.MULTILINE), name


@for_each_runbook
def test_what_reads_from_the_shell_is_given_something_to_read(path: Path) -> None:
    """`kubectl exec -i` without it would eat the lines that a person has pasted after it."""
    text = "\n".join(blocks(path)).replace("\\\n", "")
    for line in text.splitlines():
        if re.search(r"\bsql -", line) and "sql()" not in line:
            assert "<<'SQL'" in line, line
        if "exec -i" in line and "() {" not in line:
            assert re.match(r"\s*kubectl exec -i .* tar ", line), line
    assert "exec -it" not in text


def test_functions_of_one_name_are_the_same_in_every_runbook() -> None:
    shared = {"open_toolbox", "close_toolbox", "toolbox", "await", "sql", "postgres"}
    found = [(name, text) for path in RUNBOOKS for name, text in functions(path).items() if name in shared]

    assert {name for name, _ in found} == shared
    assert len(set(found)) == len(shared)


@for_each_runbook
def test_the_toolbox_is_closed_in_the_end_and_before_every_job(path: Path) -> None:
    text = re.sub(r"^\w+\(\) \{.*?\}$", "", "\n".join(blocks(path)), flags=re.MULTILINE | re.DOTALL)
    opened = False
    for word in re.findall(r"\b(open_toolbox|close_toolbox|create job|toolbox backupd)\b", text):
        assert opened or word != "toolbox backupd"
        assert not (opened and word == "create job")
        opened = opened if word in ("create job", "toolbox backupd") else word == "open_toolbox"
    assert not opened


@pytest.mark.parametrize("path", [INDEX, *RUNBOOKS], ids=lambda path: path.stem)
def test_verbs_and_flags_exist(path: Path) -> None:
    for verb, rest in re.findall(r"\bbackupd ([a-z]+)\b([^\n|;&`]*)", code(path).replace("./chart", "")):
        assert verb in COMMANDS, verb
        flags = {flag for parameter in COMMANDS[verb].params for flag in parameter.opts}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= flags, f"{verb}{rest}"


@pytest.mark.parametrize("path", [INDEX, *RUNBOOKS], ids=lambda path: path.stem)
def test_settings_exist(path: Path) -> None:
    known = {name for one in variables() for name in (one.name, one.file_name)} | set(RUN_VARIABLES)

    assert set(re.findall(r"\bBACKUPD_[A-Z0-9_]*[A-Z0-9]\b", path.read_text())) <= known


@pytest.mark.parametrize("path", [INDEX, *RUNBOOKS], ids=lambda path: path.stem)
def test_values_exist(path: Path) -> None:
    named = re.findall(r"(?<![\w./{$-])([a-z]\w*(?:\.[a-z]\w*)+)\b(?!/)", code(path), re.ASCII)

    ours = {name for name in named if name.partition(".")[0] in VALUES}
    assert not {name for name in ours - EVENTS if not values_at(name)}


@pytest.mark.parametrize("path", [INDEX, *RUNBOOKS], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", path.read_text())

    assert not [link for link in links if not (path.parent / link.partition("#")[0]).is_file()]


@pytest.mark.parametrize("path", [INDEX, *RUNBOOKS], ids=lambda path: path.stem)
def test_exit_codes_exist(path: Path) -> None:
    text = " ".join(path.read_text().split())

    assert {int(number) for number in re.findall(r"[Ee]xit codes? (\d+)", text)} - {137} <= set(exit_codes())


def exit_codes() -> dict[int, set[str]]:
    """Every exit code of a failure, with its reasons."""
    codes: dict[int, set[str]] = {130: {Interrupted.reason}, 143: {Interrupted.reason}}
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, BackupdError):
            codes.setdefault(cls.exit_code, set()).add(cls.reason)
    return codes


def test_every_exit_code_is_in_the_runbook_with_its_reasons_and_nothing_else_is() -> None:
    text = (INDEX.parent / "backup-is-failing.md").read_text()
    rows = text.partition("| code | reason |")[2].partition("\n\n")[0].split("\n", 2)[2]
    found = [re.fullmatch(r"\| (\d+) \| ([a-z_, ]+) \| .+ \| .+ \|", row) for row in rows.splitlines()]

    assert all(found)
    assert {int(row[1]): set(row[2].split(", ")) for row in found if row} == exit_codes()


def test_the_index_names_every_runbook_once() -> None:
    links = re.findall(r"^\| .+ \| \[[a-z ]+\]\(([a-z-]+\.md)\).*\|$", INDEX.read_text().partition("\n## ")[0], re.M)

    assert sorted(links) == [path.name for path in RUNBOOKS]


def test_the_index_lists_every_command_that_no_test_executes() -> None:
    listed = re.findall(r"^\| \[[a-z ]+\]\(([a-z-]+\.md)\) \| `(.+)` \| .+ \|$", INDEX.read_text(), re.MULTILINE)

    assert listed == [(name, command) for name in _order() for command in console_commands(INDEX.parent / name)]


def _order() -> list[str]:
    """The runbooks in the order of the index."""
    return list(dict.fromkeys(re.findall(r"\(([a-z-]+\.md)\)", INDEX.read_text())))


# --- the examples


def test_there_is_an_example_for_each_way() -> None:
    assert {path.stem for path in EXAMPLES} == {
        "pvc",
        "s3",
        "s3-irsa",
        "many-databases",
        "many-servers",
        "standby",
        "drill",
    }


@for_each_example
def test_an_example_says_what_it_is_for_and_how_to_install_it(path: Path) -> None:
    comment = re.match(r"(?:#.*\n)+", path.read_text())

    assert comment is not None
    assert f"helm install backupd ./chart -f chart/examples/{path.name}\n" in comment[0]


@for_each_example
def test_an_example_stands_alone(path: Path) -> None:
    assert {"source", "store", "schedule", "retention"} <= set(yaml.safe_load(path.read_text()))


@for_each_example
def test_every_value_of_an_example_exists(path: Path) -> None:
    assert list(_strangers(yaml.safe_load(path.read_text()), VALUES, "")) == []


def _strangers(given: Any, known: Any, where: str) -> Iterator[str]:
    """The keys that values.yaml does not have, at any depth, but for those that are the user's own."""
    for name, value in given.items() if isinstance(given, dict) else ():
        at = f"{where}{name}"
        if not isinstance(known, dict) or name not in known:
            yield at
        elif at == "source.services":
            yield from (f"{at}.{key}" for service in value for key in set(service) - SERVICE)
        elif name not in FREE:
            yield from _strangers(value, known[name], f"{at}.")


def test_what_examples_say_of_a_service_is_in_the_values_file() -> None:
    text = " ".join((CHART / "values.yaml").read_text().replace("#", "").split())

    assert re.search(r"`\{" + ", ".join(f"{name}: \\S+" for name in ("name", "host", "port", "user", "sslmode")), text)


# --- trigger.py


@pytest.fixture
def trigger() -> ModuleType:
    path = CHART / "examples" / "trigger.py"
    spec = importlib.util.spec_from_file_location("trigger", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CRONJOB = {
    "metadata": {"name": "backupd", "uid": "c0ffee"},
    "spec": {"jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"backoffLimit": 1, "template": {}}}},
}


class FakeApi(BaseHTTPRequestHandler):
    """Kubernetes' API, as far as trigger.py goes; `ends` is how the Job ends."""

    ends = "Complete"
    posted: dict[str, Any]

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret":
            self.answer(403, {"message": "forbidden"})
        elif self.path == "/apis/batch/v1/namespaces/here/cronjobs/backupd":
            self.answer(200, CRONJOB)
        elif self.path == "/apis/batch/v1/namespaces/here/jobs/backupd-manual-x1":
            self.answer(200, {"status": {"conditions": [{"type": self.ends, "status": "True"}]}})
        else:
            self.answer(404, {"message": "not found"})

    def do_POST(self) -> None:
        type(self).posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(201, {"metadata": {"name": self.posted["metadata"]["generateName"] + "x1"}})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def api(trigger: ModuleType, account: Path, ends: str = "Complete") -> Iterator[tuple[Any, type[FakeApi]]]:
    """trigger.py's Api, of a server of ours, whose certificate it does not ask for."""
    (account / "token").write_text("secret")
    handler = type("Handler", (FakeApi,), {"ends": ends})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()

        class Local(trigger.Api):  # type: ignore[name-defined, misc]
            def connect(self) -> HTTPConnection:
                return HTTPConnection("127.0.0.1", server.server_port, timeout=5)

        spoken_to = Local()
        spoken_to.account = account
        try:
            yield spoken_to, handler
        finally:
            server.shutdown()


def test_trigger_makes_the_job_that_kubectl_would_make(trigger: ModuleType, tmp_path: Path) -> None:
    with api(trigger, tmp_path) as (spoken_to, handler):
        assert trigger.run(spoken_to, "here", "backupd", 5, 0) == 0

    assert handler.posted == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": "backupd-manual-",
            "labels": {"a": "b"},
            "annotations": {"cronjob.kubernetes.io/instantiate": "manual"},
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "CronJob", "name": "backupd", "uid": "c0ffee", "controller": True}
            ],
        },
        "spec": {"backoffLimit": 1, "template": {}},
    }


def test_trigger_fails_when_the_job_fails(trigger: ModuleType, tmp_path: Path) -> None:
    with api(trigger, tmp_path, ends="Failed") as (spoken_to, _):
        assert trigger.run(spoken_to, "here", "backupd", 5, 0) == 1


def test_trigger_says_when_the_job_still_runs(trigger: ModuleType, tmp_path: Path) -> None:
    with api(trigger, tmp_path, ends="FailureTarget") as (spoken_to, _):
        assert trigger.run(spoken_to, "here", "backupd", 0.05, 0.01) == 3


def test_trigger_says_what_the_api_refused(trigger: ModuleType, tmp_path: Path) -> None:
    with (
        api(trigger, tmp_path) as (spoken_to, _),
        pytest.raises(RuntimeError, match="cronjobs/other: 404 not found"),
    ):
        trigger.run(spoken_to, "here", "other", 5, 0)


def test_trigger_is_short_and_needs_only_python() -> None:
    text = (CHART / "examples" / "trigger.py").read_text()

    assert len(text.splitlines()) < 80
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) <= sys.stdlib_module_names


def test_trigger_outside_a_pod_says_so() -> None:
    command = [sys.executable, str(CHART / "examples" / "trigger.py"), "backupd"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)

    assert said.returncode == 1
    assert "no backup was started" in said.stderr
    assert "Traceback" not in said.stderr
