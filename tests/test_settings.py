"""settings: what each variable takes, what is refused and how it is said, and how the servers are reached."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_keys import key_texts
from psycopg import conninfo, pq

from backupd import settings
from backupd.errors import UsageError
from backupd.notation import parse_duration
from backupd.retention import Policy, written
from backupd.sections import RUN_VARIABLES, SECTIONS, S3Settings, variables
from backupd.store import S3Options

ROOT = Path(__file__).parent.parent
SETTINGS = [variable.name for variable in variables()]
SECRETS = [variable for variable in variables() if variable.field == "password"]
FILES = [variable.file_name for variable in variables() if variable.file_name]


def load(**environment: str) -> settings.Settings:
    return settings.load(environment)


def refused(**environment: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        settings.load(environment)
    assert "\n" not in caught.value.message
    return caught.value


# Values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("SOURCE__DATABASES", "app, shop_*", ("app", "shop_*")),
        ("SOURCE__DATABASES", "*", ("*",)),
        ("SOURCE__SERVER", "prod eu", "prod eu"),
        ("SOURCE__HOST", "/run/postgresql", "/run/postgresql"),
        ("SOURCE__HOST", "a.example,b.example", "a.example,b.example"),
        ("SOURCE__PORT", "6432", 6432),
        ("SOURCE__SSLMODE", "verify-full", "verify-full"),
        ("SOURCE__SSLROOTCERT", "system", "system"),
        ("TARGET__DATABASE", "admin", "admin"),
        ("STORE__URL", "file:///backups", "file:///backups"),
        ("STORE__URL", "file:///with%20space", "file:///with%20space"),
        ("STORE__URL", "s3://bucket", "s3://bucket"),
        ("STORE__URL", "s3://bucket.eu/pre/fix", "s3://bucket.eu/pre/fix"),
        ("STORE__S3__ENDPOINT_URL", "http://minio:9000", "http://minio:9000"),
        ("STORE__S3__ADDRESSING", "path", "path"),
        ("STORE__S3__SSE", "AES256", "AES256"),
        ("STORE__S3__EXPECTED_BUCKET_OWNER", "012345678901", "012345678901"),
        ("STORE__S3__CHECKSUMS", "when_required", "when_required"),
        ("STORE__S3__PART_LIMIT", "1000", 1000),
        ("RETENTION__KEEP_LAST", "3", 3),
        ("RETENTION__KEEP_WITHIN", "7d", timedelta(days=7)),
        ("RETENTION__FLOOR", "1", 1),
        ("RETENTION__TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
        ("RETENTION__EXPECT_WITHIN", "1d12h", timedelta(hours=36)),
        ("DUMP__JOBS", "4", 4),
        ("DUMP__JOBS", "auto", "auto"),
        ("DUMP__COMPRESSION", "zstd:19", "zstd:19"),
        ("DUMP__COMPRESSION", "gzip:9", "gzip:9"),
        ("DUMP__INCLUDE", "public.a*,audit.*", ("public.a*", "audit.*")),
        ("DUMP__EXCLUDE", 'public."We.ird"', ('public."We.ird"',)),
        ("DUMP__LOCK_WAIT", "5min", timedelta(minutes=5)),
        ("DUMP__CLIENTS", "/a/bin:/b/bin", (Path("/a/bin"), Path("/b/bin"))),
        ("SCRATCH__DIRECTORY", "/scratch", Path("/scratch")),
        ("LOG__LEVEL", "debug", "debug"),
        ("LOG__FORMAT", "json", "json"),
    ],
)
def test_a_setting_has_the_value_that_was_written(name: str, text: str, value: object) -> None:
    section, _, field = name.rpartition("__")
    loaded = settings.load({f"BACKUPD_{name}": text})
    assert getattr(getattr(loaded, section.removeprefix("STORE__").lower()), field.lower()) == value


def test_nothing_set_is_a_valid_installation_with_the_documented_defaults() -> None:
    loaded = load()
    assert loaded.source.databases == ()
    assert loaded.target.database == "postgres"
    assert loaded.store.url is None
    assert loaded.retention.policy() is None
    assert loaded.retention.floor == 2
    assert loaded.dump.job_count == min(2, os.cpu_count() or 1)
    assert (loaded.dump.compression, loaded.dump.lock_wait) == ("zstd:1", timedelta(seconds=60))
    assert (loaded.log.level, loaded.log.format, loaded.color) == ("info", "auto", True)
    assert loaded.source_server().keywords == {}
    assert loaded.target_server() == loaded.source_server()


def test_settings_cannot_be_changed() -> None:
    loaded = load()
    with pytest.raises(ValueError, match="frozen"):
        loaded.log.level = "debug"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        loaded.passfile = "x"  # type: ignore[misc]


def test_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("BACKUPD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BACKUPD_LOG__LEVEL", "error")
    assert settings.from_process({}).log.level == "error"


def test_every_setting_is_described_in_one_line() -> None:
    assert all(variable.description and "\n" not in variable.description for variable in variables())
    assert all(model.__doc__ for model in SECTIONS.values())


def test_the_s3_settings_are_the_stores_options_with_the_same_defaults() -> None:
    ours = S3Settings().model_dump()
    assert set(ours) <= {field.name for field in fields(S3Options)}
    assert S3Options(**ours) == S3Options() == load().s3_options()
    assert load(BACKUPD_STORE__S3__PART_LIMIT="1000").s3_options() == S3Options(part_limit=1000)


def test_a_store_that_is_not_set_is_named_with_the_forms_that_are_possible() -> None:
    with pytest.raises(UsageError, match=r"^BACKUPD_STORE__URL is not set\n.*file:///.*s3://"):
        load().store_url()
    assert load(BACKUPD_STORE__URL="file:///b").store_url() == "file:///b"


@pytest.mark.parametrize("value", ["1", "0", "anything"])
def test_no_color_is_respected_whatever_its_value(value: str) -> None:
    assert load(NO_COLOR=value).color is False
    assert load(NO_COLOR="").color is True


# Durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("5min", 300), ("36h", 129600), ("7d", 604800), ("2w", 1209600), ("1h30m", 5400)],
)
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["7", "d", "7 d", "-7d", "1.5h", "7D", "P7D", "0s", "0d0h", "1y", "9999999d", ""])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^should be a duration"):
        parse_duration(text)


@given(st.integers(1, 999_999), st.sampled_from([1, 60, 3600, 86400]))
def test_a_duration_that_we_write_can_be_read(count: int, unit_seconds: int) -> None:
    duration = timedelta(seconds=count * unit_seconds)
    assert parse_duration(written(duration)) == duration


# Refusals


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("SOURCE__DATABASES", "a,,b", "should have a name before and after each comma"),
        ("SOURCE__DATABASES", "a,", "should have a name before and after each comma"),
        ("SOURCE__SERVER", "ä" * 51, "should have at most 100 bytes"),
        ("SOURCE__SERVER", "a/b", "should be printable and have no slash"),
        ("SOURCE__SERVER", "a\x1bb", "should be printable and have no slash"),
        ("SOURCE__HOST", "postgresql://u:canary@h/d", "should be a host name or a socket's folder"),
        ("TARGET__HOST", "host=h password=canary", "should be a host name or a socket's folder"),
        ("SOURCE__PORT", "0", "should be greater than or equal to 1"),
        ("SOURCE__PORT", "65536", "should be less than or equal to 65535"),
        ("SOURCE__PORT", "5432,5433", "should be a valid integer"),
        ("SOURCE__SSLMODE", "verify_full", "should be 'disable', 'allow', 'prefer', 'require', 'verify-ca' or"),
        ("SOURCE__PASSWORD", "canary\ncanary", "should have no line break"),
        ("STORE__URL", "/backups", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "file://backups/x", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "file:backups", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "s3:///prefix", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "s3://key:canary@bucket/prefix", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "s3://bucket:9000/prefix", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "s3://bucket/prefix?secret=canary", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "gs://bucket", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__URL", "s3://[canary", "should be file:///absolute/folder or s3://bucket/prefix"),
        ("STORE__S3__ENDPOINT_URL", "minio:9000", "should be http:// or https:// with a host"),
        ("STORE__S3__ENDPOINT_URL", "https://u:canary@minio", "should be http:// or https:// with a host"),
        ("STORE__S3__ENDPOINT_URL", "https://minio:99999", "should be http:// or https:// with a host"),
        ("STORE__S3__ADDRESSING", "dns", "should be 'auto', 'path' or 'virtual'"),
        ("STORE__S3__SSE", "kms", "should be 'AES256', 'aws:kms' or 'aws:kms:dsse'"),
        ("STORE__S3__EXPECTED_BUCKET_OWNER", "123", "should match pattern"),
        ("STORE__S3__PART_LIMIT", "10001", "should be less than or equal to 10000"),
        ("RETENTION__KEEP_LAST", "-1", "should be greater than or equal to 0"),
        ("RETENTION__KEEP_DAILY", "seven", "should be a valid integer"),
        ("RETENTION__KEEP_WITHIN", "7", "should be a duration"),
        ("RETENTION__FLOOR", "0", "should be greater than or equal to 1"),
        ("RETENTION__TIMEZONE", "Berlin", "should be a time zone"),
        ("RETENTION__TIMEZONE", "../../etc/passwd", "should be a time zone"),
        ("RETENTION__TIMEZONE", "Europe", "should be a time zone"),
        ("DUMP__JOBS", "0", "should be auto or a number from 1 to 999"),
        ("DUMP__JOBS", "two", "should be auto or a number from 1 to 999"),
        ("DUMP__COMPRESSION", "zstd", "should be zstd:1 to zstd:19 or gzip:1 to gzip:9"),
        ("DUMP__COMPRESSION", "zstd:20", "should be zstd:1 to zstd:19 or gzip:1 to gzip:9"),
        ("DUMP__COMPRESSION", "gzip:0", "should be zstd:1 to zstd:19 or gzip:1 to gzip:9"),
        ("DUMP__COMPRESSION", "lz4:1", "should be zstd:1 to zstd:19 or gzip:1 to gzip:9"),
        ("DUMP__INCLUDE", "orders", "should be patterns such as schema.table"),
        ("DUMP__LOCK_WAIT", "0s", "should be a duration longer than none"),
        ("DUMP__CLIENTS", "/a:b", "should be absolute folders"),
        ("DUMP__CLIENTS", "/a:", "should be absolute folders"),
        ("SCRATCH__DIRECTORY", "scratch", "should be an absolute folder"),
        ("LOG__LEVEL", "verbose", "should be 'debug', 'info', 'warning' or 'error'"),
        ("LOG__FORMAT", "text", "should be 'console', 'json' or 'auto'"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_reason_and_not_repeated(name: str, text: str, reason: str) -> None:
    error = refused(**{f"BACKUPD_{name}": text})
    assert error.exit_code == 2
    assert error.message.startswith(f"BACKUPD_{name} {reason}")
    assert "canary" not in str(error)


@pytest.mark.parametrize("name", [*SETTINGS, *RUN_VARIABLES])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_value_is_an_error(name: str, value: str) -> None:
    assert refused(**{name: value}).message == f"{name} is set but empty"


@pytest.mark.parametrize("name", SETTINGS)
def test_no_refusal_has_a_value_in_it(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.load({name: "canary/://=, \x1b", "BACKUPD_LOG__LEVEL": "canary"})
    assert "BACKUPD_LOG__LEVEL" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BACKUPD_STROE__URL", "BACKUPD_STORE__URL"),
        ("BACKUPD_STORE_URL", "BACKUPD_STORE__URL"),
        ("BACKUPD_STORE__URI", "BACKUPD_STORE__URL"),
        ("BACKUPD_STORE__URL_FILE", "BACKUPD_STORE__URL"),
        ("backupd_store__url", "BACKUPD_STORE__URL"),
        ("BACKUPD_STORE__S3__REGOIN", "BACKUPD_STORE__S3__REGION"),
        ("BACKUPD_STORE__S3_REGION", "BACKUPD_STORE__S3__REGION"),
        ("BACKUPD_SOURCE_PORT", "BACKUPD_SOURCE__PORT"),
        ("BACKUPD_SOURCE__PASSWORDFILE", "BACKUPD_SOURCE__PASSWORD_FILE"),
        ("BACKUPD_RETENTION__KEEP_DAYLY", "BACKUPD_RETENTION__KEEP_DAILY"),
        ("BACKUPD_RESTORE_BAKCUP", "BACKUPD_RESTORE_BACKUP"),
        ("BACKUPD_COMAND", "BACKUPD_COMMAND"),
    ],
)
def test_a_misspelt_name_is_an_error_that_knows_what_was_meant(name: str, meant: str) -> None:
    error = refused(**{name: "5432"})
    assert error.message == f"unknown setting {name}"
    assert error.hint == f"Did you mean {meant}?"


def test_a_name_like_no_other_is_an_error_without_a_guess() -> None:
    error = refused(BACKUPD_XYZZY="1")
    assert (error.message, error.hint) == ("unknown setting BACKUPD_XYZZY", None)


def test_variables_that_set_a_runs_flags_are_known() -> None:
    assert settings.load(dict.fromkeys(RUN_VARIABLES, "x")) is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BACKUPD_SERVICE_HOST", "10.0.0.1"),
        ("BACKUPD_SERVICE_PORT", "80"),
        ("BACKUPD_PORT", "tcp://10.0.0.1:80"),
        ("BACKUPD_STATUS_SERVICE_HOST", "10.0.0.1"),
        ("BACKUPD_STATUS_SERVICE_PORT", "8080"),
        ("BACKUPD_STATUS_SERVICE_PORT_HTTP", "8080"),
        ("BACKUPD_STATUS_PORT", "tcp://10.0.0.1:8080"),
        ("BACKUPD_STATUS_PORT", "udp://10.0.0.1:8080"),
        ("BACKUPD_DB_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
        ("BACKUPD_DB_PORT_5432_TCP_ADDR", "10.0.0.1"),
        ("BACKUPD_DB_PORT_5432_TCP_PORT", "5432"),
        ("BACKUPD_DB_PORT_5432_TCP_PROTO", "tcp"),
    ],
)
def test_what_kubernetes_and_docker_tell_of_services_is_ignored(name: str, value: str) -> None:
    assert settings.load({name: value}).source.port is None


def test_a_setting_that_looks_like_a_services_port_is_still_a_setting() -> None:
    assert refused(BACKUPD_SOURCE__PORT="tcp://10.0.0.1:80").message.startswith("BACKUPD_SOURCE__PORT should be")


def test_all_problems_are_reported_together_with_their_hints() -> None:
    error = refused(
        BACKUPD_STROE__URL="x",
        BACKUPD_LOG__LEVEL="loud",
        BACKUPD_LOG__FORMAT="",
        BACKUPD_DUMP__JOBS="0",
        PGPASSFILE="/does/not/exist",
    )
    assert error.message == "5 settings are wrong"
    assert error.detail is not None
    assert {line.split()[0].rstrip(":") for line in error.detail.splitlines()} == {
        "unknown",
        "BACKUPD_LOG__LEVEL",
        "BACKUPD_LOG__FORMAT",
        "BACKUPD_DUMP__JOBS",
        "PGPASSFILE",
    }
    assert error.hint is not None
    assert "Did you mean BACKUPD_STORE__URL?" in error.hint


def test_every_setting_that_a_hint_names_exists() -> None:
    text = "".join((ROOT / "backupd" / name).read_text() for name in ("settings.py", "sections.py"))
    known = {*SETTINGS, *RUN_VARIABLES, *FILES}
    assert set(re.findall(r"BACKUPD_[A-Z_0-9]+[A-Z0-9]", text)) <= known | {"BACKUPD_<section>"}


# Secrets in files

ANY_TEXT = [variable for variable in SECRETS if variable.field != "ping_url"]
"""The secrets that may be anything."""


@pytest.mark.parametrize("variable", ANY_TEXT, ids=lambda variable: str(variable.name))
@pytest.mark.parametrize(
    ("content", "secret"),
    [("pw", "pw"), ("pw\n", "pw"), ("pw\r\n", "pw"), (" pw ", " pw "), ("p\\w:ä", "p\\w:ä")],
)
def test_a_secret_is_its_files_content_without_one_line_break(
    variable: Any, content: str, secret: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content.encode())
    loaded = settings.load({variable.file_name: str(file)})
    assert getattr(getattr(loaded, variable.section.lower()), variable.field).get_secret_value() == secret


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"\xff\xfe", "is not UTF-8 text"), (b"pw\n\n", "should have no line")],
)
def test_a_secrets_file_that_holds_no_secret_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    error = refused(BACKUPD_SOURCE__PASSWORD_FILE=str(file))
    assert "BACKUPD_SOURCE__PASSWORD" in error.message
    assert reason in error.message


def test_a_secrets_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = refused(BACKUPD_TARGET__PASSWORD_FILE=f"{tmp_path}/none").message
    assert missing == f"BACKUPD_TARGET__PASSWORD_FILE: could not read {tmp_path}/none: No such file or directory"
    assert "Is a directory" in refused(BACKUPD_TARGET__PASSWORD_FILE=str(tmp_path)).message


def test_a_secret_and_its_file_together_are_an_error_even_where_equal(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("canary")
    error = refused(BACKUPD_SOURCE__PASSWORD="canary", BACKUPD_SOURCE__PASSWORD_FILE=str(file))
    assert error.message == "BACKUPD_SOURCE__PASSWORD and BACKUPD_SOURCE__PASSWORD_FILE are both set"
    assert "canary" not in str(error)


def test_known_secrets_are_all_found_and_no_repr_has_one() -> None:
    secret = {
        "BACKUPD_SOURCE__PASSWORD": "canary-1",
        "BACKUPD_TARGET__PASSWORD": "canary-2",
        "AWS_SECRET_ACCESS_KEY": "canary-3",
        "AWS_SESSION_TOKEN": "canary-4",
    }
    loaded = settings.load(secret)
    assert set(settings.secrets(loaded)) == set(secret.values())
    servers = (loaded.source_server(), loaded.target_server())
    assert "canary" not in repr((loaded, servers, str(loaded)))


def test_secrets_of_libpq_are_known_too(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("db:*:*:*:in\\:file\n*:*:*:*:other\n")
    loaded = load(PGPASSWORD="canary", PGPASSFILE=str(file))
    assert set(settings.secrets(loaded)) == {"canary", "in:file", "other"}
    assert not set(settings.secrets(loaded)) & set(repr(loaded).split())


def test_the_line_of_a_signing_key_that_is_secret_is_known(tmp_path: Path) -> None:
    file = tmp_path / "backupd.key"
    file.write_text("untrusted comment: minisign encrypted secret key\ncanary\n")
    loaded = load(BACKUPD_SIGNING__KEY_FILE=str(file))
    assert settings.secrets(loaded) == ("canary",)
    assert "canary" not in repr(loaded)


def test_public_keys_are_separated_by_commas_and_looked_at() -> None:
    keys = [key_texts(number)[1] for number in (1, 2)]
    assert load(BACKUPD_SIGNING__PUBLIC_KEYS=", ".join(keys)).signing.public_keys == tuple(keys)
    for wrong in (keys[0][:-1], f"{keys[0]},", f"{keys[0]};{keys[1]}", "/keys/backupd.pub"):
        assert "BACKUPD_SIGNING__PUBLIC_KEYS should" in refused(BACKUPD_SIGNING__PUBLIC_KEYS=wrong).message


# Contradictions


def test_two_different_passwords_for_the_source_are_refused() -> None:
    error = refused(BACKUPD_SOURCE__PASSWORD="canary1", PGPASSWORD="canary2")
    assert error.message == "BACKUPD_SOURCE__PASSWORD and PGPASSWORD differ"
    assert "canary" not in str(error)
    assert load(BACKUPD_SOURCE__PASSWORD="same", PGPASSWORD="same").source_server().password == "same"


def test_s3_settings_with_a_folder_are_refused() -> None:
    error = refused(BACKUPD_STORE__URL="file:///b", BACKUPD_STORE__S3__REGION="eu-central-1")
    assert error.message == "BACKUPD_STORE__S3__REGION is set, but BACKUPD_STORE__URL is a folder"


def test_a_lock_needs_a_time_and_a_time_a_lock() -> None:
    lock = {"BACKUPD_STORE__S3__OBJECT_LOCK": "compliance", "BACKUPD_STORE__S3__OBJECT_LOCK_FOR": "30d"}
    assert load(**lock).s3_options() == S3Options(object_lock="compliance", object_lock_for=timedelta(days=30))
    for name, other in zip(lock, reversed(lock), strict=True):
        assert f"{name} is set, but {other} is not" in refused(**{name: lock[name]}).message


def test_a_kms_key_without_kms_is_refused() -> None:
    assert "KMS_KEY_ID" in refused(BACKUPD_STORE__S3__KMS_KEY_ID="alias/x", BACKUPD_STORE__S3__SSE="AES256").message
    assert load(BACKUPD_STORE__S3__KMS_KEY_ID="alias/x", BACKUPD_STORE__S3__SSE="aws:kms").s3.kms_key_id == "alias/x"


def test_a_second_store_is_not_the_first_and_has_settings_of_its_own() -> None:
    url = "s3://bucket/backups"
    assert "same store" in refused(BACKUPD_STORE__URL=url, BACKUPD_COPY__URL=f"{url}/").message
    error = refused(BACKUPD_COPY__URL="file:///b", BACKUPD_COPY__S3__PROFILE="offsite")
    assert error.message == "BACKUPD_COPY__S3__PROFILE is set, but BACKUPD_COPY__URL is a folder"
    error = refused(BACKUPD_COPY__RETENTION__KEEP_DAILY="7")
    assert error.message == "BACKUPD_COPY__RETENTION__KEEP_DAILY is set, but BACKUPD_COPY__URL is not"
    error = refused(BACKUPD_COPY__URL="file:///b", BACKUPD_COPY__RETENTION__KEEP_LAST="0")
    assert "BACKUPD_COPY__RETENTION__KEEP_DAILY=7" in (error.hint or "")
    loaded = load(BACKUPD_STORE__URL="file:///a", BACKUPD_COPY__URL=url, BACKUPD_COPY__S3__PROFILE="offsite")
    assert loaded.copy_s3_options() == S3Options(profile="offsite")
    assert loaded.s3_options() == S3Options()


def test_a_target_host_needs_a_user_of_its_own() -> None:
    error = refused(BACKUPD_TARGET__HOST="other", PGUSER="app")
    assert error.message == "BACKUPD_TARGET__HOST is set, but BACKUPD_TARGET__USER is not"


def test_a_host_that_is_too_long_for_a_label_asks_for_one() -> None:
    long = ".".join(["a" * 40] * 3)
    assert refused(PGHOST=long).hint == "Set BACKUPD_SOURCE__SERVER to a label of your own."
    assert load(PGHOST=long, BACKUPD_SOURCE__SERVER="prod").server_label == "prod"


def test_a_password_of_libpq_with_a_line_break_is_refused() -> None:
    assert refused(PGPASSWORD="canary\n").message.startswith("PGPASSWORD should have no line break")


def test_a_policy_that_keeps_nothing_is_refused_before_any_backup_is_made() -> None:
    assert "no rule that keeps" in refused(BACKUPD_RETENTION__KEEP_DAILY="0").message


# Retention


def test_the_policy_is_what_was_set() -> None:
    loaded = load(
        BACKUPD_RETENTION__KEEP_LAST="1",
        BACKUPD_RETENTION__KEEP_HOURLY="2",
        BACKUPD_RETENTION__KEEP_DAILY="3",
        BACKUPD_RETENTION__KEEP_WEEKLY="4",
        BACKUPD_RETENTION__KEEP_MONTHLY="5",
        BACKUPD_RETENTION__KEEP_YEARLY="6",
        BACKUPD_RETENTION__KEEP_WITHIN="48h",
        BACKUPD_RETENTION__FLOOR="3",
        BACKUPD_RETENTION__TIMEZONE="Asia/Tokyo",
        BACKUPD_RETENTION__EXPECT_WITHIN="26h",
    )
    expected = Policy(1, 2, 3, 4, 5, 6, timedelta(hours=48), 3, "Asia/Tokyo", timedelta(hours=26))
    assert loaded.retention.policy() == expected


@pytest.mark.parametrize("name", ["FLOOR", "TIMEZONE", "EXPECT_WITHIN"])
def test_without_a_rule_there_is_no_policy(name: str) -> None:
    value = {"FLOOR": "3", "TIMEZONE": "UTC", "EXPECT_WITHIN": "26h"}[name]
    assert settings.load({f"BACKUPD_RETENTION__{name}": value}).retention.policy() is None


# Servers


@pytest.mark.parametrize(
    ("environment", "label"),
    [
        ({}, "localhost"),
        ({"PGHOST": "db.example"}, "db.example"),
        ({"PGHOST": "/run/postgresql"}, "localhost"),
        ({"PGHOSTADDR": "10.0.0.1"}, "10.0.0.1"),
        ({"PGHOST": "db", "PGSERVICE": "main"}, "main"),
        ({"PGSERVICE": "main", "BACKUPD_SOURCE__HOST": "own"}, "own"),
        ({"BACKUPD_SOURCE__SERVER": "prod", "BACKUPD_SOURCE__HOST": "own"}, "prod"),
    ],
)
def test_the_label_is_the_name_that_was_given_to_the_server(environment: dict[str, str], label: str) -> None:
    assert settings.load(environment).server_label == label


SERVICES = {"BACKUPD_SOURCE__SERVICES": "prod,staging"}


@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({"JOB_COMPLETION_INDEX": "0"}, "prod"),
        ({"JOB_COMPLETION_INDEX": "1"}, "staging"),
        ({"JOB_COMPLETION_INDEX": "1", "PGSERVICE": "prod"}, "staging"),
        ({"PGSERVICE": "staging"}, "staging"),
    ],
)
def test_of_several_servers_the_index_of_the_job_or_pgservice_picks_one(
    environment: dict[str, str], service: str
) -> None:
    loaded = load(**SERVICES, **environment)
    assert loaded.server_label == service
    assert loaded.source_server().keywords == {"service": service}


@pytest.mark.parametrize("environment", [{}, {"PGSERVICE": "other"}, {"JOB_COMPLETION_INDEX": "2"}])
def test_without_one_of_several_servers_only_what_asks_the_source_is_refused(environment: dict[str, str]) -> None:
    loaded = load(**SERVICES, **environment, BACKUPD_TARGET__HOST="db", BACKUPD_TARGET__USER="admin")
    with pytest.raises(UsageError, match="BACKUPD_SOURCE__SERVICES"):
        loaded.source_server()
    assert loaded.target_server().keywords["host"] == "db"


@pytest.mark.parametrize("name", ["HOST", "SERVER"])
def test_several_servers_have_their_own_hosts_and_names(name: str) -> None:
    assert f"BACKUPD_SOURCE__{name}" in refused(**SERVICES, **{f"BACKUPD_SOURCE__{name}": "db"}).message


def test_the_index_of_a_job_picks_a_name_or_is_refused() -> None:
    names = ("a", "b")
    assert load().of_index(names, "X") is None
    assert [load(JOB_COMPLETION_INDEX=index).of_index(names, "X") for index in ("0", "1")] == ["a", "b"]
    for index in ("2", "-1", "x", ""):
        with pytest.raises(UsageError, match="2 names are in X"):
            load(JOB_COMPLETION_INDEX=index).of_index(names, "X")


def test_libpqs_variables_are_left_to_libpq_and_to_children() -> None:
    libpq = {"PGHOST": "db", "PGSERVICE": "main", "PGSSLMODE": "require", "PGDATABASE": "app"}
    loaded = settings.load(libpq | {"PGPASSWORD": "pw"})
    server = loaded.source_server()
    assert (server.keywords, server.password, server.environment) == ({}, "pw", libpq)
    assert loaded.default_database == "app"


def test_settings_of_the_source_win_over_libpqs() -> None:
    server = load(
        BACKUPD_SOURCE__HOST="own", BACKUPD_SOURCE__PORT="6432", BACKUPD_SOURCE__USER="backup", PGHOSTADDR="10.0.0.1"
    ).source_server()
    assert server.keywords == {"host": "own", "hostaddr": "", "port": "6432", "user": "backup"}


def test_a_password_file_that_a_group_may_read_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:*:pw\n")
    file.chmod(0o440)
    server = load(PGPASSFILE=str(file)).source_server()
    assert server.passfile == "*:*:*:*:pw\n"
    assert server.environment == {}


def test_a_password_file_that_does_not_exist_is_an_error() -> None:
    message = refused(PGPASSFILE="/does/not/exist").message
    assert message == "PGPASSFILE: could not read /does/not/exist: No such file or directory"
    assert load(PGPASSFILE="").passfile is None
    assert load(PGPASSFILE="/dev/null").passfile == ""


def test_the_target_is_the_source_unless_another_is_named() -> None:
    loaded = load(PGHOST="db", PGPASSWORD="pw", BACKUPD_SOURCE__USER="backup", BACKUPD_TARGET__PORT="5433")
    server = loaded.target_server()
    assert server.keywords == {"user": "backup", "port": "5433"}
    assert (server.password, server.environment) == ("pw", {"PGHOST": "db"})


def test_another_role_on_the_sources_server_does_not_get_the_sources_password() -> None:
    own = load(PGHOST="db", PGPASSWORD="pw", BACKUPD_TARGET__USER="admin", BACKUPD_TARGET__PASSWORD="own")
    assert (own.target_server().keywords, own.target_server().password) == ({"user": "admin"}, "own")
    none = load(PGHOST="db", PGPASSWORD="pw", BACKUPD_TARGET__USER="admin").target_server()
    assert (none.keywords, none.password) == ({"user": "admin", "password": ""}, None)
    assert none.environment == {"PGHOST": "db"}


LIBPQ_OF_THE_SOURCE = {
    "PGHOST": "source",
    "PGHOSTADDR": "10.0.0.1",
    "PGPORT": "6432",
    "PGUSER": "app",
    "PGPASSWORD": "canary",
    "PGDATABASE": "app",
    "PGTARGETSESSIONATTRS": "standby",
}


@pytest.mark.parametrize("service", [False, True])
def test_libpq_itself_takes_nothing_of_the_source_for_another_target(
    service: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = LIBPQ_OF_THE_SOURCE | {
        "BACKUPD_TARGET__HOST": "127.0.0.1",
        "BACKUPD_TARGET__PORT": "1",
        "BACKUPD_TARGET__USER": "admin",
    }
    if service:
        file = tmp_path / "services"
        file.write_text("[main]\nhost=source\nhostaddr=10.0.0.1\nuser=app\npassword=canary\nsslmode=disable\n")
        environment |= {"PGSERVICE": "main", "PGSERVICEFILE": str(file)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = settings.load(environment).target_server()
    link = pq.PGconn.connect_start(conninfo.make_conninfo(**server.keywords, dbname="d").encode())
    taken = {option.keyword.decode(): (option.val or b"").decode() for option in link.info}
    link.finish()
    assert (taken["host"], taken["hostaddr"], taken["port"], taken["user"]) == ("127.0.0.1", "", "1", "admin")
    assert (taken["password"], taken["sslmode"], taken["target_session_attrs"]) == ("", "prefer", "any")
    assert server.password is None
    assert not {"PGSERVICE", "PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGDATABASE"} & set(server.environment)


def test_a_target_of_its_own_has_its_own_tls_and_port() -> None:
    target = {"BACKUPD_TARGET__HOST": "other", "BACKUPD_TARGET__USER": "admin"}
    assert settings.load(target).target_server().keywords["port"] == "5432"
    assert settings.load(target).target_server().keywords["sslmode"] == "prefer"
    strict = settings.load(target | {"PGSSLMODE": "verify-full"}).target_server()
    assert strict.keywords["sslmode"] == "verify-full"
    system = settings.load(target | {"BACKUPD_TARGET__SSLROOTCERT": "system"}).target_server()
    assert (system.keywords["sslrootcert"], system.keywords["sslmode"]) == ("system", "verify-full")


def test_libpq_itself_takes_nothing_of_the_source_for_a_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = LIBPQ_OF_THE_SOURCE | {"BACKUPD_DRILL__URL": "postgresql://tester@127.0.0.1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = settings.load(environment).drill_server({"host": "127.0.0.1", "user": "tester"})
    link = pq.PGconn.connect_start(conninfo.make_conninfo(**{**server.keywords, "port": "1"}, dbname="d").encode())
    taken = {option.keyword.decode(): (option.val or b"").decode() for option in link.info}
    link.finish()
    assert (taken["host"], taken["hostaddr"], taken["user"], taken["password"]) == ("127.0.0.1", "", "tester", "")
    assert (server.keywords["port"], taken["target_session_attrs"]) == ("5432", "any")
    assert (server.password, set(server.environment) & {"PGHOST", "PGPORT", "PGUSER"}) == (None, set())


def test_what_a_drills_url_says_wins_over_defaults() -> None:
    loaded = load(BACKUPD_DRILL__URL="host=h user=u", BACKUPD_DRILL__PASSWORD="own", PGSSLMODE="disable")
    server = loaded.drill_server({"host": "h", "user": "u", "port": "6000", "sslmode": "verify-full"})
    assert (server.keywords["port"], server.keywords["sslmode"], server.password) == ("6000", "verify-full", "own")
    assert "own" in settings.secrets(loaded)


# The README's table


def run_table(*arguments: str) -> "subprocess.CompletedProcess[str]":
    script = str(ROOT / "scripts" / "settings-table")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def test_the_readmes_table_is_written_and_then_found_in_order(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- settings:begin -->\nold\n<!-- settings:end -->\nafter\n")
    check = run_table("--check", str(readme))
    assert (check.returncode, "differs" in check.stderr, "old" in readme.read_text()) == (1, True, True)
    assert run_table(str(readme)).returncode == 0
    assert run_table("--check", str(readme)).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- settings:begin -->\n**")
    assert text.endswith("|\n<!-- settings:end -->\nafter\n")
    assert all(f"`{name}`" in text for name in [*SETTINGS, *RUN_VARIABLES, *FILES])


def test_a_readme_without_markers_is_refused_and_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    assert run_table(str(readme)).returncode == 2
    assert readme.read_text() == "no markers\n"


def test_importing_the_settings_imports_neither_pydantic_settings_nor_a_door() -> None:
    code = "import sys, backupd.settings; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"pydantic_settings", "psycopg", "boto3", "rich", "structlog"} & set(modules.split())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("CRON", "0 0 31 2 *", "never fires: no such date comes"),
        ("DRILL_CRON", "every night", "should be five fields of cron such as `30 2 * * *`"),
        ("TIMEZONE", "Mars/Olympus", "should be a time zone such as UTC or Europe/Berlin"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused_by_name(name: str, value: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(**{f"BACKUPD_SCHEDULE__{name}": value})

    assert caught.value.message == f"BACKUPD_SCHEDULE__{name} {reason}"
