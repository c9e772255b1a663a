"""Where a long run is: shares, rates and what is left, the same on a terminal and in the log."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_restore import restore_to
from fix_tools import Site
from structlog.testing import capture_logs

from backupd import cli, terminal
from backupd.progress import Place, Progress, places, seconds_left

SHOWING = """
from backupd import terminal
from backupd.progress import places
with terminal.shown() as progress:
    progress.place = places([1, 1, 2])[1]
    progress.begin("dump", "ev\\x1bil", total_members=8, total_bytes=1000)
    progress.advance(500, 4, 77)
    import time; time.sleep(0.3)
"""


def test_places_share_the_whole_by_weight() -> None:
    assert places([300, 0, 100]) == [Place(1, 3, 0.0, 0.75), Place(2, 3, 0.75, 0.0), Place(3, 3, 0.75, 0.25)]
    assert places([0, 0]) == [Place(1, 2, 0.0, 0.5), Place(2, 2, 0.5, 0.5)]
    assert places([]) == []


def test_a_share_is_of_bytes_else_of_members_and_never_more_than_all() -> None:
    shares: list[float | None] = []
    progress = Progress(lambda now: shares.append(now.share))
    progress.begin("restore", "app")
    progress.begin("dump", "app", total_members=4)
    progress.advance(10, 1)
    progress.begin("dump", "app", total_members=4, total_bytes=100)
    progress.advance(10, 3)
    progress.copying(40, 1)
    progress.advance(500)

    assert shares == [None, 0.0, 0.25, 0.0, 0.1, 0.5, 1.0]


def test_the_whole_is_what_lies_before_and_a_share_of_ones_own() -> None:
    progress = Progress(place=Place(2, 3, 0.5, 0.25))
    progress.begin("dump", "app", total_bytes=100)
    progress.reach(40)
    assert progress.whole_share == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("elapsed", "share", "left"), [(10, 0.25, 30), (10, 1.0, 0), (10, 0.0, None), (10, 0.001, None), (10, None, None)]
)
def test_what_is_left_goes_by_the_average(elapsed: float, share: float | None, left: float | None) -> None:
    assert seconds_left(elapsed, share) == left


def test_an_event_has_every_number() -> None:
    progress = Progress(terminal.Events(0.0), place=Place(2, 3, 0.5, 0.25))
    with capture_logs() as events:
        progress.begin("dump", "app", 4, 1 << 20)
        progress.advance(1 << 19, 2, 7)

    assert events[-1]["event"] == "run.progress"
    assert {name for name in vars(progress) if name not in ("show", "place")} <= set(events[-1])
    assert (events[-1]["number"], events[-1]["total"], events[-1]["done_rows"]) == (2, 3, 7)
    assert events[-1]["bytes_per_second"] > 0
    assert events[-1]["left_seconds"] is not None
    assert events[-1]["left_seconds_in_all"] is not None
    json.dumps(events[-1])


def test_no_event_comes_before_its_time() -> None:
    progress = Progress(terminal.Events(60.0))
    with capture_logs() as events:
        progress.begin("dump", "app")
        progress.advance(1)

    assert events == []


def test_a_terminal_shows_a_bar_for_the_database_and_one_for_all() -> None:
    ours, theirs = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "COLUMNS": "150", "TERM": "xterm", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen([sys.executable, "-c", SHOWING], stderr=theirs, env=environment) as child:
        os.close(theirs)
        text = b""
        try:
            while chunk := os.read(ours, 65536):
                text += chunk
        except OSError:  # the other side is closed
            pass
    os.close(ours)

    assert child.returncode == 0
    for words in ("dump ev\\x1bil", "4/8 members, 77 rows, ", "/s, ", " left", "database 2 of 3", " left in all"):
        assert words in text.decode(), words


@pytest.mark.parametrize(
    ("flag", "as_json"), [([], True), (["--log-format=json"], True), (["--log-format=console"], False)]
)
def test_the_form_of_the_log_is_a_flag_of_one_command_line(
    flag: list[str],
    as_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {"SOURCE__HOST": "127.0.0.1", "SOURCE__PORT": "1", "STORE__URL": tmp_path.as_uri()}
    for name, value in settings.items():
        monkeypatch.setenv(f"BACKUPD_{name}", value)

    cli.run(["--log-format=console", "backup", "app"])
    capsys.readouterr()
    assert cli.run([*flag, "backup", "app"]) == 18

    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("{") is as_json for line in lines)
    assert "run.finished" in "".join(lines)


@pytest.mark.slow
def test_a_backup_and_a_restore_say_how_much_there_is_to_do(
    postgres17: PostgresServer,
    site: Callable[..., Site],
    database: DatabaseFactory,
    new_name: Callable[[PostgresServer], str],
) -> None:
    here, name = site(postgres17), database(postgres17)
    with postgres17.connect(name) as connection:
        connection.execute("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 50000) n")
        connection.execute("ANALYZE t")
    seen: dict[str, int] = {}

    def look(progress: Progress) -> None:
        seen[progress.stage] = max(progress.total_bytes, seen.get(progress.stage, 0))

    taken = here.take(name, progress=Progress(look))
    restore_to(here, taken, new_name(postgres17), progress=Progress(look))

    raw_bytes = taken.manifest.totals.raw_bytes
    assert raw_bytes / 3 < seen["dump"] < raw_bytes * 3
    assert seen["restore"] == taken.manifest.database_bytes
