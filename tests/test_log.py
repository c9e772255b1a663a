"""log: no secret gets through, whatever carries it, and each event is one thing to read."""

import contextlib
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog
from hypothesis import assume, given
from hypothesis import strategies as st

from backupd import log, process

CANARY = "c4n4ry/p@ss:w\\rd 'ü'"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers = handlers
    logging.getLogger().setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_log(*secrets: str, level: Literal["debug", "info", "warning", "error"] = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, "json", secrets, stream)
    return stream


# Scrubbing


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("postgresql://app:canary@db:5432/shop", "postgresql://app:***@db:5432/shop"),
        ("postgresql://app:can@ry/x@db/shop?sslmode=require", "postgresql://app:***@db/shop?sslmode=require"),
        ("postgresql://:canary@db", "postgresql://:***@db"),
        ("to https://u:canary@a and http://v:canary@b.", "to https://u:***@a and http://v:***@b."),
        ("postgresql://db/shop?user=app&password=canary&x=1", "postgresql://db/shop?user=app&password=***&x=1"),
        ("host=db password=canary user=app", "host=db password=*** user=app"),
        (r"host=db password = 'a \' canary' user=app", "host=db password = *** user=app"),
        ("PGPASSWORD=canary pg_dump", "PGPASSWORD=*** pg_dump"),
        ("BACKUPD_SOURCE__PASSWORD=canary", "BACKUPD_SOURCE__PASSWORD=***"),
        ("{'password': 'canary', 'user': 'app'}", "{'password': ***, 'user': 'app'}"),
        ('{"password": "can\\"ary", "user": "app"}', '{"password": ***, "user": "app"}'),
        ("ALTER ROLE app PASSWORD 'canary';", "ALTER ROLE app PASSWORD ***;"),
        ("ENCRYPTED PASSWORD 'it''s'", "ENCRYPTED PASSWORD ***"),
        ("OPTIONS (user 'app', password 'canary and…", "OPTIONS (user 'app', password ***"),
        ("CONNECTION 'user=r password=''a canary'' dbname=d'", "CONNECTION 'user=r password=*** dbname=d'"),
        (r"CONNECTION E'password=''a \\''canary \\\\'' dbname=d'", "CONNECTION E'password=*** dbname=d'"),
        ("CONNECTION 'password=''it''''s canary'' dbname=d'", "CONNECTION 'password=*** dbname=d'"),
        ("CONNECTION 'user=r password=''a canary and…", "CONNECTION 'user=r password=***"),
        ("host=db password='a canary and…", "host=db password=***"),
        (r"host=db password=a\ canary user=app", "host=db password=*** user=app"),
        ("AWS_SECRET_ACCESS_KEY=canary/+x AWS_REGION=eu", "AWS_SECRET_ACCESS_KEY=*** AWS_REGION=eu"),
        ("aws_session_token = canary", "aws_session_token = ***"),
        ('{"SecretAccessKey": "canary", "Expiration": 1}', '{"SecretAccessKey": ***, "Expiration": 1}'),
        ("<SecretAccessKey>canary</SecretAccessKey>", "<SecretAccessKey>***</SecretAccessKey>"),
        ("https://b/k?X-Amz-Signature=canary&X-Amz-Date=1", "https://b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://b/k?X-Amz-Security-Token=canary&z=1", "https://b/k?X-Amz-Security-Token=***&z=1"),
        ("key AGE-SECRET-KEY-1QQQCANARY0 end", "key *** end"),
        ("role app SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy end", "role app *** end"),
        ("role app md50123456789abcdef0123456789abcdef end", "role app *** end"),
    ],
)
def test_what_has_the_form_of_a_secret_is_masked_and_the_rest_stays(text: str, scrubbed: str) -> None:
    assert log.scrub(text) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "app"',
        "fe_sendauth: no password supplied",
        "BACKUPD_SOURCE__PASSWORD_FILE=/run/secrets/password",
        "BACKUPD_SOURCE__PASSWORD should have no line break, which no password file can hold",
        "BACKUPD_SOURCE__PASSWORD and PGPASSWORD differ",
        "s3://bucket/prefix/prod/app/20261123T221614Z-3f9ac21b.tar",
        "postgresql://app@db:5432/shop",
        "http://minio:9000/bucket and app@latest",
        "3f9ac21b" * 8,
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert log.scrub(text) == text


def test_known_secrets_are_masked_wherever_they_stand_and_however_they_are_written() -> None:
    for written in (CANARY, repr(CANARY), "c4n4ry%2Fp%40ss%3Aw%5Crd%20%27%C3%BC%27"):
        assert "c4n4ry" not in log.scrub(f"before{written}after", [CANARY])
    assert log.scrub("xhunter2y", ["hunter2"]) == "x***y"
    assert log.scrub("long-secret and long", ["long", "long-secret"]) == "*** and ***"


def test_a_short_secret_does_not_garble_the_log_but_is_masked_by_its_form() -> None:
    assert log.scrub("a database", ["a", "dat", ""]) == "a database"
    assert log.scrub("password=a postgresql://u:dat@h", ["a", "dat"]) == "password=*** postgresql://u:***@h"


@given(st.text("0123456789 \n=:"), st.text(min_size=4), st.text("0123456789 \n=:"))
def test_no_known_secret_survives(before: str, secret: str, after: str) -> None:
    assume(not set(secret) & set("0123456789 \n=:*"))
    assert log.scrub(before + secret + after, [secret]) == before + log.MASK + after


@pytest.mark.parametrize(
    "part",
    ["://", "://a:", "://a:b", "password='", "password=''", r"password=''\\", 'password"', "password = ", "<password>"],
)
def test_a_hostile_text_is_scrubbed_in_reasonable_time(part: str) -> None:
    started = time.process_time()
    log.scrub(part * 20_000, ["hunter2"])
    assert time.process_time() - started < 3


# Events


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_secret_gets_through_whatever_carries_it(style: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    log.configure("debug", style, ["canary-1"], stream)
    logger = log.get_logger().bind(source="canary-1")
    logger.info("event canary-1", text="xcanary-1x", nested={"list": ["canary-1", ("canary-1",)], "canary-1": 1})
    logger.warning("objects", error=ValueError("canary-1"), path=Path("/canary-1"), raw=b"canary-1", many={"canary-1"})
    logger.error("keys", password="canary-2", aws_secret_access_key="canary-2", inner={"session_token": "canary-2"})
    with structlog.contextvars.bound_contextvars(run="canary-1"):
        logger.debug("context")
    try:
        raise RuntimeError("postgresql://u:canary-2@h with canary-1")
    except RuntimeError:
        logger.exception("bug")
    log.child_stderr("pg_dump", "pg_dump: error: canary-1 password=canary-2")
    logging.getLogger("botocore").warning("library %s", "canary-1")
    assert "canary" not in stream.getvalue()
    assert stream.getvalue().count("***") > 12
    assert "RuntimeError" in stream.getvalue()


def test_a_json_event_is_one_line_with_keys_and_a_utc_time() -> None:
    stream = json_log()
    log.get_logger().info("backup.started", source="app", tables=3, seconds=0.5, standby=False, notes=None, text="a\nb")
    (event,) = lines(stream)
    written_at = datetime.fromisoformat(event.pop("timestamp"))
    assert written_at.utcoffset() == timedelta(0)
    assert event == {
        "event": "backup.started",
        "level": "info",
        "source": "app",
        "tables": 3,
        "seconds": 0.5,
        "standby": False,
        "notes": None,
        "text": "a\nb",
    }


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", ["d", "i", "w", "e"]),
        ("info", ["i", "w", "e"]),
        ("warning", ["w", "e"]),
        ("error", ["e"]),
    ],
)
def test_the_level_is_the_least_that_is_logged(
    level: Literal["debug", "info", "warning", "error"], events: list[str]
) -> None:
    stream = json_log(level=level)
    logger = log.get_logger()
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logger.error("e")
    assert [line["event"] for line in lines(stream)] == events


def test_auto_is_the_console_on_a_terminal_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    log.configure("info", "auto", [], terminal)
    log.get_logger().info("backup.started", source="app")
    log.configure("info", "auto", [], pipe)
    log.get_logger().info("backup.started", source="app")
    assert not terminal.getvalue().startswith("{")
    assert "backup.started" in terminal.getvalue()
    assert lines(pipe)[0]["source"] == "app"


@pytest.mark.parametrize(
    ("stream", "color", "colored"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
)
def test_colours_are_only_for_a_terminal_that_wants_them(stream: io.StringIO, color: bool, colored: bool) -> None:
    log.configure("info", "console", [], stream, color)
    log.get_logger().info("backup.started")
    assert ("\x1b[" in stream.getvalue()) is colored


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("pg_dump: error: query failed", "error"),
        ("pg_restore: warning: errors ignored on restore: 1", "warning"),
        ("pg_dump: detail: Query was: SELECT 1", "info"),
        ("pg_dump: fatal: out of memory", "error"),
    ],
)
def test_a_childs_line_is_an_event_as_bad_as_it_says(line: str, level: str) -> None:
    stream = json_log()
    log.child_stderr("pg_dump", line + "\n")
    (event,) = lines(stream)
    assert (event["event"], event["tool"], event["line"], event["level"]) == ("child.stderr", "pg_dump", line, level)


@pytest.mark.parametrize("text", [b"OPTIONS (password 'c4n4ry of mine')", b"postgresql://app:c4n4ry0of0mine@host/shop"])
@pytest.mark.parametrize("filled", range(process.LINE_LIMIT_BYTES - 50, process.LINE_LIMIT_BYTES))
def test_a_password_is_masked_wherever_a_long_line_is_cut(filled: int, text: bytes) -> None:
    written = b"x" * (filled - 1) + b" " + text + b" " + b"y " * 1000 + b"\nnext\n"
    first, second = map(log.scrub, process.lines(io.BytesIO(written)))

    assert second == "next"
    assert first.endswith(("…", "***"))
    assert "c4n" not in first


def test_an_empty_line_of_a_child_is_no_event() -> None:
    stream = json_log()
    log.child_stderr("pg_dump", " \n")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_table_cannot_command_the_terminal(style: Literal["json", "console"]) -> None:
    stream = io.StringIO()
    log.configure("info", style, [], stream)
    log.child_stderr("pg_dump", "pg_dump: error: table evil\x1b]0;owned\x07\x9b31m\rname")
    log.get_logger().info("dump.member_finished", table="evil\x1b]0;owned\x07\x9b31m\x85name")
    assert not {"\x1b", "\x07", "\x9b", "\x85", "\r"} & set(stream.getvalue())
    assert stream.getvalue().count("evil") == 2


def test_libraries_warn_in_the_same_form_and_are_quiet_below() -> None:
    stream = json_log(level="debug")
    logging.getLogger("urllib3").warning("pool is %s", "full")
    logging.getLogger("botocore").debug("Authorization: canary")
    logging.getLogger("botocore").info("found credentials")
    (event,) = lines(stream)
    assert (event["event"], event["level"], event["logger"]) == ("pool is full", "warning", "urllib3")


def test_setting_up_again_replaces_what_was_set_up() -> None:
    first, second = json_log(), json_log()
    log.get_logger().info("once")
    logging.getLogger("x").warning("once")
    assert (first.getvalue(), len(lines(second))) == ("", 2)


def test_the_import_leaves_rich_out_and_still_importable() -> None:
    code = "import sys, backupd.log; print('rich' in sys.modules); import rich; print(rich.__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "rich"]


def test_a_line_that_a_full_disk_does_not_take_is_no_error() -> None:
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115  # closing it raises
    log.configure("info", "json", (), full)
    log.get_logger().warning("told to nobody")
    with contextlib.suppress(OSError):
        full.close()
