"""Every setting there is: its section and field, its type, default and description; the README's table comes from here.

A section is one flat model, and its variables are `BACKUPD_<section>__<FIELD>`; `STORE__S3` is a section like any
other, so that nothing below needs to recurse. The flags that a Job may set as variables are listed too: they are read
by `cli`, but a misspelt one must be found as any other.

Pure: `settings` reads the environment and makes values of the sections.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, SecretStr

from backupd.connection import can_be_in_passfile
from backupd.notation import (
    check_compression,
    check_drill_url,
    check_endpoint_url,
    check_host,
    check_label,
    check_ping_url,
    check_store_url,
    check_time_zone,
    parse_bytes,
    parse_command,
    parse_duration,
    parse_folder,
    parse_folders,
    parse_jobs,
    parse_keys,
    parse_labels,
    parse_list,
    parse_public_keys,
    parse_table_patterns,
    parse_textfile,
)
from backupd.retention import Policy, written
from backupd.schedule import Schedule, check_cron

PREFIX = "BACKUPD_"

RUN_VARIABLES: Mapping[str, str] = {
    "BACKUPD_COMMAND": "the verb to run where no arguments are given, such as `restore`",
    "BACKUPD_BACKUP_DATABASES": "`backup`: the databases, separated by commas, instead of the source's",
    "BACKUPD_BACKUP_WAIT": "`backup --wait`: how long to wait for another run to end",
    "BACKUPD_BACKUP_WITH_ROLE_PASSWORDS": "`backup --with-role-passwords`: also what roles' passwords are checked by",
    "BACKUPD_RESTORE_BACKUP": "`restore`: the backup, by id or as `app@latest`",
    "BACKUPD_RESTORE_AS": "`restore --as`: the name of a new database",
    "BACKUPD_RESTORE_INTO": "`restore --into`: an existing, empty database",
    "BACKUPD_RESTORE_REPLACE": "`restore --replace`: the live database whose place the restored one takes",
    "BACKUPD_RESTORE_YES_REPLACE": "`restore --yes-replace`: the same name, where it does not look like the source",
    "BACKUPD_RESTORE_SQL": "`restore --sql`: a file of SQL to run before the restored database is opened",
    "BACKUPD_RESTORE_PLAN": "`restore --plan`: `true` only checks and says what would be done",
    "BACKUPD_RESTORE_RESUME": "`restore --resume`: the live database beside which a restore was cut off",
    "BACKUPD_RESTORE_TABLE": "`restore --table`: only these tables, as `schema.table`, separated by commas",
    "BACKUPD_RESTORE_SCHEMA": "`restore --schema`: only these schemas, separated by commas",
    "BACKUPD_RESTORE_KEEP": "`restore --keep`: keep what was restored even where it did not prove equal",
    "BACKUPD_RESTORE_JOBS": "`restore --jobs`: how many connections pg_restore uses",
    "BACKUPD_RESTORE_CREATE_ROLES": "`restore --create-roles`: make the roles that are missing, without LOGIN",
    "BACKUPD_RESTORE_NO_OWNER": "`restore --no-owner`: leave owners and grants out",
    "BACKUPD_RESTORE_ROLE": "`restore --role`: the role that everything belongs to, without owners and grants",
    "BACKUPD_DRILL_BACKUP": "`drill`: the backup, by id or as `app@latest`",
    "BACKUPD_DRILL_NEWEST_UNDRILLED": "`drill --newest-undrilled`: by turns the newest of each database, if undrilled",
    "BACKUPD_REKEY_BACKUPS": "`rekey`: the backups, with spaces between, or `all`",
    "BACKUPD_UNDO_DATABASE": "`undo`: the live database to swap back",
    "BACKUPD_CHECK_MAX_AGE": "`check --max-age`: how old the newest backup may be",
}
"""Variables that set a flag of one run, for Jobs that are made from a template and take no arguments."""


_ALSO_FILE: dict[str, JsonValue] = {}
"""Marks a field that is no secret, and may be in a file all the same."""


def _check_password(password: SecretStr | None) -> SecretStr | None:
    if password is not None and not can_be_in_passfile(password.get_secret_value()):
        raise ValueError("should have no line break, which no password file can hold")
    return password


_Host = Annotated[str, AfterValidator(check_host)]
_Port = Annotated[int, Field(ge=1, le=65535)]
_Password = Annotated[SecretStr | None, AfterValidator(_check_password)]
_SslMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
_Count = Annotated[int, Field(ge=0)]
_Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
_Cron = Annotated[str, AfterValidator(check_cron)]
_Patterns = Annotated[tuple[str, ...], BeforeValidator(parse_table_patterns)]


class SourceSettings(BaseModel, frozen=True):
    """The server whose databases are backed up; what is not set is libpq's (`PGHOST`, `PGPASSFILE`, `PGSERVICE`...)."""

    databases: Annotated[tuple[str, ...], BeforeValidator(parse_list)] = Field(
        default=(), description="names or patterns such as `app_*`, separated by commas, or `*`; else `PGDATABASE`"
    )
    server: Annotated[str, AfterValidator(check_label)] | None = Field(
        default=None, description="the name under which backups are filed; else the host of the source"
    )
    services: Annotated[tuple[str, ...], BeforeValidator(parse_labels)] = Field(
        default=(),
        description="servers as sections of `PGSERVICEFILE`, which name them; the index of an Indexed Job picks one",
    )
    host: _Host | None = Field(default=None, description="the host, instead of `PGHOST` and `PGHOSTADDR`")
    port: _Port | None = Field(default=None, description="the port, instead of `PGPORT`")
    user: str | None = Field(default=None, description="the role, instead of `PGUSER`")
    password: _Password = Field(default=None, description="its password, instead of `PGPASSWORD` and `PGPASSFILE`")
    sslmode: _SslMode | None = Field(default=None, description="libpq's `sslmode`, instead of `PGSSLMODE`")
    sslrootcert: str | None = Field(
        default=None, description="a file of CA certificates or `system`, not `PGSSLROOTCERT`"
    )


class TargetSettings(BaseModel, frozen=True):
    """Where restores go; what is not set is the source's, and with a host of its own libpq's default."""

    host: _Host | None = Field(default=None, description="the host; with it `BACKUPD_TARGET__USER` is needed")
    port: _Port | None = Field(default=None, description="the port; with an own host else 5432")
    user: str | None = Field(default=None, description="the role that creates databases")
    password: _Password = Field(default=None, description="its password; else `PGPASSFILE`")
    sslmode: _SslMode | None = Field(default=None, description="libpq's `sslmode`")
    sslrootcert: str | None = Field(default=None, description="a file of CA certificates or `system`")
    database: str = Field(default="postgres", description="the database to connect to for making others")


class DrillSettings(BaseModel, frozen=True):
    """Where drills restore: a server that nobody needs; without it they start one of their own, if it is installed."""

    url: Annotated[str, AfterValidator(check_drill_url)] | None = Field(
        default=None, description="`postgresql://user@host:port/database` or `host=... user=...`, without a password"
    )
    password: _Password = Field(default=None, description="its password; else `PGPASSFILE`")


class StoreSettings(BaseModel, frozen=True):
    """Where backups are kept."""

    url: Annotated[str, AfterValidator(check_store_url)] | None = Field(
        default=None, description="`file:///absolute/folder` or `s3://bucket/prefix`; most verbs need it"
    )
    limit_rate: Annotated[int, BeforeValidator(parse_bytes)] | None = Field(
        default=None, description="bytes a second that are sent at most, as `10M`; of the second store too"
    )

    @property
    def is_folder(self) -> bool:
        """Whether the store is a directory."""
        return self.url is not None and self.url.startswith("file:")


class S3Settings(BaseModel, frozen=True):
    """How an S3 store is spoken to; credentials come from AWS's own variables, files and roles."""

    endpoint_url: Annotated[str, AfterValidator(check_endpoint_url)] | None = Field(
        default=None, description="the service, where it is not AWS"
    )
    region: str | None = Field(default=None, description="the region, instead of `AWS_REGION`")
    profile: str | None = Field(
        default=None, description="a profile in AWS's own files, whose credentials win over those in the environment"
    )
    addressing: Literal["auto", "path", "virtual"] = Field(
        default="auto", description="where the bucket's name goes in URLs: `path`, `virtual`, or `auto`"
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None, description="server-side encryption: `AES256`, `aws:kms` or `aws:kms:dsse`"
    )
    kms_key_id: str | None = Field(default=None, description="the KMS key, with `aws:kms`")
    expected_bucket_owner: Annotated[str, Field(pattern="^[0-9]{12}$")] | None = Field(
        default=None, description="the account that must own the bucket"
    )
    checksums: Literal["auto", "when_required", "when_supported", "md5"] = Field(
        default="auto",
        description="which checksums uploads carry, as not every service knows the newer ones: `when_required`,"
        " `when_supported`, `md5`, or `auto`",
    )
    part_limit: Annotated[int, Field(ge=1, le=10000)] = Field(default=10000, description="the most parts of one upload")
    part_bytes: Annotated[int, Field(ge=5 << 20)] = Field(
        default=16 << 20, description="the smallest part of an upload; doubled until the database's size fits"
    )
    object_lock: Literal["governance", "compliance"] | None = Field(
        default=None,
        description="lock each object as it is written, in a bucket with Object Lock: `governance` or `compliance`",
    )
    object_lock_for: _Duration | None = Field(
        default=None, description="for how long, as `30d`; as long as the policy keeps every backup is a good choice"
    )


class RetentionSettings(BaseModel, frozen=True):
    """What to keep; without any `KEEP_` nothing is ever removed."""

    keep_last: _Count = Field(default=0, description="how many of the newest backups to keep")
    keep_hourly: _Count = Field(default=0, description="of how many hours to keep the newest backup")
    keep_daily: _Count = Field(default=0, description="of how many days")
    keep_weekly: _Count = Field(default=0, description="of how many weeks")
    keep_monthly: _Count = Field(default=0, description="of how many months")
    keep_yearly: _Count = Field(default=0, description="of how many years")
    keep_within: _Duration | None = Field(
        default=None, description="keep all made in this time before the newest, as `7d`"
    )
    floor: Annotated[int, Field(ge=1)] = Field(default=2, description="good backups below which nothing is removed")
    timezone: Annotated[str, AfterValidator(check_time_zone)] = Field(
        default="UTC", description="where hours, days... begin"
    )
    expect_within: _Duration | None = Field(
        default=None, description="remove nothing while the newest backup is older than this, as `36h`"
    )

    def policy(self) -> Policy | None:
        """The policy; None where no rule is set. Raises UsageError where it makes no sense."""
        rules = {name: getattr(self, name) for name in self.model_fields_set if name.startswith("keep_")}
        if not rules:
            return None
        counts = {name.removeprefix("keep_"): rule for name, rule in rules.items()}
        return Policy(**counts, floor=self.floor, timezone=self.timezone, expect_within=self.expect_within)


class CopySettings(BaseModel, frozen=True):
    """A second store, to which each new backup is copied."""

    url: Annotated[str, AfterValidator(check_store_url)] | None = Field(
        default=None,
        description="`file:///absolute/folder` or `s3://bucket/prefix`; also `copy`'s, where none is named",
    )

    @property
    def is_folder(self) -> bool:
        """Whether the second store is a directory."""
        return self.url is not None and self.url.startswith("file:")


class ScheduleSettings(BaseModel, frozen=True):
    """When `serve` backs up, drills, prunes and tells; without any it only shows. On Kubernetes CronJobs do that."""

    cron: _Cron | None = Field(default=None, description="when to take backups: `30 2 * * *`, or `@daily`...")
    drill_cron: _Cron | None = Field(default=None, description="when to drill the newest backup that was not drilled")
    prune_cron: _Cron | None = Field(
        default=None, description="when to apply the retention policy, which each backup does too"
    )
    digest_cron: _Cron | None = Field(
        default=None, description="when to tell `BACKUPD_NOTIFY__URLS` how every database fares, as `0 8 * * mon`"
    )
    timezone: Annotated[str, AfterValidator(check_time_zone)] = Field(
        default="UTC", description="where they are local times"
    )
    jitter: _Duration | None = Field(
        default=None, description="put each run off by up to this, so that not all installations begin at once"
    )
    run_limit: _Duration = Field(
        default=timedelta(days=1), description="how long a run may take, with its waiting, before it is ended"
    )

    def schedule(self, cron: str) -> Schedule:
        """One of the four, in the zone and with the jitter of all."""
        return Schedule(cron, self.timezone, self.jitter or timedelta(0))


class SigningSettings(BaseModel, frozen=True):
    """Signatures of manifests and notes, which minisign can check, and whose signatures are believed."""

    key: SecretStr | None = Field(
        default=None, description="the text of a secret key of minisign without a password; better as a file"
    )
    public_keys: Annotated[tuple[str, ...], BeforeValidator(parse_public_keys)] = Field(
        default=(),
        description="minisign's public keys, `RW...`, separated by commas: what none of them signed is refused",
    )


class ExpectSettings(BaseModel, frozen=True):
    """How new things should be; what is older is shown, told to monitors and alarmed about."""

    backup_within: _Duration | None = Field(
        default=None,
        description="the newest good backup; else `BACKUPD_RETENTION__EXPECT_WITHIN`, or by the schedule, or `26h`",
    )
    verify_within: _Duration | None = Field(default=None, description="the newest backup that was read back")
    drill_within: _Duration | None = Field(default=None, description="the newest backup that a drill restored")


class MetricsSettings(BaseModel, frozen=True):
    """Where a run that ends tells its metrics, where no Prometheus can ask for them; `serve` has `/metrics`."""

    pushgateway_url: Annotated[str, AfterValidator(check_endpoint_url)] | None = Field(
        default=None, description="a Pushgateway"
    )
    textfile: Annotated[Path, BeforeValidator(parse_textfile)] | None = Field(
        default=None, description="a file of node_exporter's textfile collector, such as `/metrics/backupd.prom`"
    )


class ServeSettings(BaseModel, frozen=True):
    """What `serve` shows to whom."""

    token: SecretStr | None = Field(
        default=None, description="who does not send it, as bearer's token or as any user's password, is refused"
    )
    refresh: _Duration = Field(default=timedelta(seconds=60), description="how often the store is read")
    command: str = Field(
        default="backupd", description="how backupd is called here, for commands on pages: `docker compose exec ...`"
    )
    runbooks_url: Annotated[str, AfterValidator(check_endpoint_url)] | None = Field(
        default=None, description="the folder of the runbooks, for links to them"
    )


class DumpSettings(BaseModel, frozen=True):
    """How dumps are made."""

    jobs: Annotated[int | Literal["auto"], BeforeValidator(parse_jobs)] = Field(
        default="auto", description="connections of pg_dump and pg_restore; `auto` is one a CPU, at most 2"
    )
    compression: Annotated[str, AfterValidator(check_compression)] = Field(
        default="zstd:1", description="`zstd:1` to `zstd:19` or `gzip:1` to `gzip:9`"
    )
    include: _Patterns = Field(
        default=(), description="only these tables, as `schema.table` or `schema.*`, and their partitions and children"
    )
    exclude: _Patterns = Field(default=(), description="all but these tables and their partitions and children")
    lock_wait: _Duration = Field(default=timedelta(seconds=60), description="how long pg_dump waits for a table's lock")
    max_seconds: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how long a dump may hold its snapshot, which keeps VACUUM from removing dead rows"
    )
    vacuum_age: Annotated[int, Field(ge=1)] = Field(
        default=10_000_000,
        description="transactions after whose beginning during a dump a warning says that it does so",
    )
    nice: Annotated[int, Field(ge=0, le=19)] = Field(
        default=0, description="how much processor time pg_dump leaves to others, as `nice` has it"
    )
    clients: Annotated[tuple[Path, ...], BeforeValidator(parse_folders)] = Field(
        default=(), description="folders with PostgreSQL's clients that are looked in first, separated by `:`"
    )

    @property
    def job_count(self) -> int:
        """The number of jobs, with `auto` worked out for this machine."""
        return min(2, os.cpu_count() or 1) if self.jobs == "auto" else self.jobs


def _check_ping_url(url: SecretStr | None) -> SecretStr | None:
    if url is not None:
        check_ping_url(url.get_secret_value())
    return url


class NotifySettings(BaseModel, frozen=True):
    """Who is told of failures, recoveries, drills and doubts; nothing here can fail a backup."""

    urls: SecretStr | None = Field(
        default=None, description="apprise's URLs (mail, chats, webhooks...), separated by white space"
    )
    ping_url: Annotated[SecretStr | None, AfterValidator(_check_ping_url)] = Field(
        default=None,
        description="a dead-man's switch as healthchecks.io has it: `/start`, the URL itself, or the exit code",
    )

    @property
    def send_to(self) -> tuple[str, ...]:
        """The apprise URLs."""
        return tuple(self.urls.get_secret_value().split()) if self.urls else ()

    @property
    def ping_to(self) -> str | None:
        """The dead-man's switch's URL."""
        return self.ping_url.get_secret_value() if self.ping_url else None


class EncryptionSettings(BaseModel, frozen=True):
    """To whom archives are encrypted, with age; the service needs public keys only."""

    recipients: Annotated[tuple[str, ...], BeforeValidator(parse_keys)] = Field(
        default=(),
        description="public keys (`age1...`, `ssh-ed25519 ...`, `ssh-rsa ...`), a line or a comma between; none: clear",
        json_schema_extra=_ALSO_FILE,
    )
    identities_file: Path | None = Field(
        default=None,
        description="age identities or an SSH private key, for `restore`, `verify`, `tables` and all that reads",
    )


_Command = Annotated[tuple[str, ...], BeforeValidator(parse_command)]


class HookSettings(BaseModel, frozen=True):
    """Commands for each database that is backed up: a program and its arguments, or a JSON list of them; no shell."""

    before: _Command = Field(default=(), description="before its backup; where it fails, there is none (exit code 21)")
    after: _Command = Field(default=(), description="after its backup; where it fails, that is logged")
    failure: _Command = Field(default=(), description="after its backup, retention or copy failed")
    limit: _Duration = Field(default=timedelta(minutes=5), description="how long each may take")


class ScratchSettings(BaseModel, frozen=True):
    """Where dumps lie until they are stored."""

    directory: Annotated[Path, BeforeValidator(parse_folder)] | None = Field(
        default=None, description="a folder with room for a dump; else the system's temporary folder"
    )
    limit: Annotated[int, Field(ge=1 << 20)] | None = Field(
        default=None, description="bytes of it that may be used, where more would evict the pod instead of failing"
    )


class LogSettings(BaseModel, frozen=True):
    """What is logged to stderr, and how. `NO_COLOR` is respected."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is logged: `debug`, `info`, `warning` or `error`"
    )
    format: Literal["console", "json", "auto"] = Field(
        default="auto", description="`console`, `json` (a line an event), or by whether stderr is a terminal"
    )


SECTIONS: Mapping[str, type[BaseModel]] = {
    "SOURCE": SourceSettings,
    "TARGET": TargetSettings,
    "DRILL": DrillSettings,
    "STORE": StoreSettings,
    "STORE__S3": S3Settings,
    "RETENTION": RetentionSettings,
    "COPY": CopySettings,
    "COPY__S3": S3Settings,
    "COPY__RETENTION": RetentionSettings,
    "SCHEDULE": ScheduleSettings,
    "SIGNING": SigningSettings,
    "EXPECT": ExpectSettings,
    "METRICS": MetricsSettings,
    "SERVE": ServeSettings,
    "DUMP": DumpSettings,
    "NOTIFY": NotifySettings,
    "ENCRYPTION": EncryptionSettings,
    "HOOK": HookSettings,
    "SCRATCH": ScratchSettings,
    "LOG": LogSettings,
}
"""The sections by the middle of their variables' names."""


@dataclass(frozen=True)
class Variable:
    """One setting's variable; a secret's, or a list of long keys', has a twin that names a file, `file_name`."""

    name: str
    section: str
    field: str
    description: str
    default: str
    file_name: str = ""


def variables() -> Iterator[Variable]:
    """Every setting's variable, in the order of the documentation."""
    for section, model in SECTIONS.items():
        for field, info in model.model_fields.items():
            name = f"{PREFIX}{section}__{field.upper()}"
            in_file = SecretStr in getattr(info.annotation, "__args__", ()) or info.json_schema_extra is _ALSO_FILE
            file_name = f"{name}_FILE" if in_file else ""
            yield Variable(name, section, field, info.description or "", _shown(info.default), file_name)


def _shown(default: object) -> str:
    if default is None or default == ():
        return ""
    return written(default) if isinstance(default, timedelta) else str(default)
