"""The installation's settings, read from the environment: the only reader of os.environ.

Hides the `_FILE` form of secrets, that libpq's variables count too, and all that is refused: unknown names, empty
values, contradictions. All problems are reported together. No message has a value in it, so none has a secret.

Not pydantic-settings: importing it costs twice the CPU of pydantic alone (0.28 s to 0.13 s), which the manifests need
anyway; it lets an unknown variable at the top level pass, knows no `_FILE`, and puts values into its messages. What it
would save is `_section`, 15 lines.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from backupd import encryption
from backupd.connection import Server, can_be_in_passfile, passfile_passwords, without_secrets, without_server
from backupd.errors import UsageError
from backupd.notation import STORE_URL_REASON, check_label, secret_pieces
from backupd.sections import (
    PREFIX,
    RUN_VARIABLES,
    SECTIONS,
    CopySettings,
    DrillSettings,
    DumpSettings,
    EncryptionSettings,
    ExpectSettings,
    HookSettings,
    LogSettings,
    MetricsSettings,
    NotifySettings,
    RetentionSettings,
    S3Settings,
    ScheduleSettings,
    ScratchSettings,
    ServeSettings,
    SigningSettings,
    SourceSettings,
    StoreSettings,
    TargetSettings,
    Variable,
    variables,
)
from backupd.store import S3Options

_KNOWN = (*(name for one in variables() for name in (one.name, one.file_name) if name), *RUN_VARIABLES)
_SECRET_VARIABLES = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_MINISIGN_COMMENT = "untrusted comment:"
_INJECTED = re.compile(r"\w+_SERVICE_(HOST|PORT(_\w+)?)|\w+_PORT_[0-9]+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?")
_SHORTEST_TOKEN = 12  # characters: a shorter piece of a URL may be a word, and is masked in its own messages only
_INJECTED_VALUE = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True)
class Settings:
    """All settings of an installation. `environment` and `passfile` (PGPASSFILE's text) have secrets."""

    source: SourceSettings
    target: TargetSettings
    drill: DrillSettings
    store: StoreSettings
    s3: S3Settings
    retention: RetentionSettings
    copy: CopySettings
    copy_s3: S3Settings
    copy_retention: RetentionSettings
    schedule: ScheduleSettings
    signing: SigningSettings
    expect: ExpectSettings
    metrics: MetricsSettings
    serve: ServeSettings
    dump: DumpSettings
    notify: NotifySettings
    encryption: EncryptionSettings
    hook: HookSettings
    scratch: ScratchSettings
    log: LogSettings
    environment: Mapping[str, str] = field(repr=False)
    passfile: str | None = field(repr=False)

    @property
    def server_label(self) -> str:
        """The name under which the source's backups are filed: stable, so never this machine's own name."""
        names = (
            self._service(),
            self.source.server,
            self.source.host,
            *map(self.environment.get, ("PGSERVICE", "PGHOST", "PGHOSTADDR")),
        )
        label = next(filter(None, names), "localhost")
        return "localhost" if label.startswith(("/", "@")) else label

    @property
    def known_label(self) -> str | None:
        """As `server_label`; None where several servers are set, and nothing says which of them is meant."""
        try:
            return self.server_label
        except UsageError:
            return None

    def _service(self) -> str | None:
        """The one of `source.services` that this run is for. Raises UsageError where that is none."""
        services = self.source.services
        if not services:
            return None
        chosen = self.of_index(services, "BACKUPD_SOURCE__SERVICES") or self.environment.get("PGSERVICE", "")
        if chosen not in services:
            message = f"BACKUPD_SOURCE__SERVICES names {len(services)} servers, and nothing says which of them is meant"
            raise UsageError(message, hint=f"Set PGSERVICE to one of them: {', '.join(services)}.")
        return chosen

    def of_index(self, names: Sequence[str], variable: str) -> str | None:
        """The one of the names that this pod of an Indexed Job is for; None elsewhere. Raises UsageError."""
        index = self.environment.get("JOB_COMPLETION_INDEX")
        if index is None:
            return None
        if not index.isdecimal() or int(index) >= len(names):
            message = f"JOB_COMPLETION_INDEX is {index!r}, and {len(names)} names are in {variable}"
            raise UsageError(message, hint=f"The Job's completions must be the number of names in {variable}.")
        return names[int(index)]

    @property
    def default_database(self) -> str | None:
        """What PGDATABASE names, the database where none is set."""
        return self.environment.get("PGDATABASE") or None

    @property
    def color(self) -> bool:
        """Whether colours are welcome (NO_COLOR is not set)."""
        return not self.environment.get("NO_COLOR")

    def store_url(self) -> str:
        """The store's URL. Raises UsageError where it is not set."""
        if self.store.url is None:
            raise UsageError("BACKUPD_STORE__URL is not set", hint=f"It {STORE_URL_REASON}.")
        return self.store.url

    def recipients(self) -> tuple[str, ...]:
        """To whom archives are encrypted; none: they are not. Raises UsageError where one is no public key."""
        return encryption.parse_recipients(self.encryption.recipients)

    def s3_options(self) -> S3Options:
        """How an S3 store is spoken to."""
        return S3Options(**self.s3.model_dump())

    def copy_s3_options(self) -> S3Options:
        """How a second store in S3 is spoken to."""
        return S3Options(**self.copy_s3.model_dump())

    def source_server(self) -> Server:
        """How the source's server is reached: libpq's own variables, and what is set here wins."""
        keywords = _keywords(self.source)
        if (service := self._service()) is not None:
            keywords["service"] = service
        if "host" in keywords:
            keywords["hostaddr"] = ""  # else PGHOSTADDR would decide
        password = _plain(self.source.password) or self.environment.get("PGPASSWORD") or None
        return Server(keywords, password, self.passfile, without_secrets(self.environment))

    def target_server(self) -> Server:
        """How the target's server is reached: the source's server where no other host is named."""
        target, keywords, password = self.target, _keywords(self.target), _plain(self.target.password)
        if password is None and (target.host or target.user):
            keywords["password"] = ""  # else PGPASSWORD, which is for the source's role, would be sent
        if target.host is None:
            source = self.source_server()
            password = password or (source.password if target.user is None else None)
            return Server({**source.keywords, **keywords}, password, self.passfile, source.environment)
        keywords = {**self._target_defaults(), **keywords}
        return Server(keywords, password, self.passfile, without_server(without_secrets(self.environment)))

    def drill_server(self, keywords: Mapping[str, str]) -> Server:
        """How the drills' server is reached, by the keywords of its URL and by nothing that is meant for the source."""
        password = _plain(self.drill.password)
        keywords = {**self._target_defaults(), **({} if password else {"password": ""}), **keywords}
        return Server(keywords, password, self.passfile, without_server(without_secrets(self.environment)))

    def _target_defaults(self) -> dict[str, str]:
        """What says which server, at its default, so that neither a variable nor PGSERVICE, meant for the source, does.

        TLS variables hold for both servers.
        """
        certificates = self.environment.get("PGSSLROOTCERT", "")
        weakest = "verify-full" if "system" in (self.target.sslrootcert, certificates) else "prefer"
        return {
            "hostaddr": "",
            "port": "5432",
            "sslmode": self.environment.get("PGSSLMODE") or weakest,
            "sslrootcert": certificates,
            "target_session_attrs": "any",
        }


def from_process(flags: Mapping[str, str]) -> Settings:
    """The settings of this process, over which those that flags set win. Raises UsageError."""
    return load({**os.environ, **flags})


def forget_libpq_variables() -> None:
    """Takes libpq's variables from this process: libpq reads them itself, and they are meant for another server."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def load(environment: Mapping[str, str]) -> Settings:
    """The settings in that environment and in the files that it names. Raises one UsageError for all that is wrong."""
    ours = {name: value for name, value in environment.items() if _is_ours(name, value)}
    problems = [*_unknown(ours), *_empty(ours)]
    ours = {name: value for name, value in ours.items() if value.strip()}
    sections = {section: _section(section, ours, problems) for section in SECTIONS}
    passfile = None
    with _noted(problems):
        passfile = _file_text("PGPASSFILE", environment["PGPASSFILE"]) if environment.get("PGPASSFILE") else None
    _refuse(problems)
    fields = {section.removeprefix("STORE__").replace("__", "_").lower(): value for section, value in sections.items()}
    settings = Settings(**cast(dict[str, Any], fields), environment=dict(environment), passfile=passfile)
    _refuse(list(_contradictions(settings)))
    return settings


def secrets(settings: Settings) -> tuple[str, ...]:
    """Every secret value that is known, for the log to scrub: whole, and line by line, since a log has lines."""
    urls = (*settings.notify.send_to, *filter(None, [settings.notify.ping_to]))
    known = (
        *(piece for value in _secret_values(settings) for piece in (value, *value.splitlines())),
        *(piece for url in urls for piece in (url, *secret_pieces(url, _SHORTEST_TOKEN))),
        *map(settings.environment.get, _SECRET_VARIABLES),
        *passfile_passwords(settings.passfile or ""),
    )
    return tuple(dict.fromkeys(each for each in known if each and not each.startswith(_MINISIGN_COMMENT)))


def _secret_values(settings: Settings) -> Iterator[str]:
    """The secrets of all sections, by their type alone: no list of names could forget one."""
    for section in (getattr(settings, each.name) for each in fields(settings)):
        if isinstance(section, BaseModel):
            yield from (value.get_secret_value() for _, value in section if isinstance(value, SecretStr))


def _is_ours(name: str, value: str) -> bool:
    """Whether a variable is meant for backupd, rightly spelt or not: Kubernetes and Docker tell of Services so too."""
    if not name.upper().startswith(PREFIX):
        return False
    injected = _INJECTED.fullmatch(name) or (name.endswith("_PORT") and _INJECTED_VALUE.match(value))
    return name in _KNOWN or not injected


def _unknown(ours: Mapping[str, str]) -> Iterator[UsageError]:
    bare = [name.removeprefix(PREFIX) for name in _KNOWN]
    for name in sorted(set(ours).difference(_KNOWN)):
        import difflib  # 10 ms that only a mistake costs

        close = difflib.get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1)
        yield UsageError(f"unknown setting {name}", hint=f"Did you mean {PREFIX}{close[0]}?" if close else None)


def _empty(ours: Mapping[str, str]) -> Iterator[UsageError]:
    for name in sorted(ours):
        if not ours[name].strip():
            yield UsageError(f"{name} is set but empty", hint="Unset what is not needed.")


def _section(section: str, ours: Mapping[str, str], problems: list[UsageError]) -> BaseModel | None:
    """The section's model, or None after noting its problems."""
    texts, names = {}, {}
    for variable in variables():
        if variable.section == section:
            names[variable.field] = variable.name
            with _noted(problems):
                texts[variable.field] = _text(variable, ours)
    given = {name: text for name, text in texts.items() if text is not None}
    try:
        return SECTIONS[section].model_validate(given)
    except ValidationError as exc:
        problems += [UsageError(f"{names[str(error['loc'][0])]} {_reason(error)}") for error in exc.errors()]
        return None


def _text(variable: Variable, ours: Mapping[str, str]) -> str | None:
    text, path = ours.get(variable.name), ours.get(variable.file_name)
    if text is not None and path is not None:
        raise UsageError(f"{variable.name} and {variable.file_name} are both set", hint="Unset one of them.")
    if path is None:
        return text
    text = _file_text(variable.file_name, path).removesuffix("\n")
    if not text:
        raise UsageError(f"{variable.file_name}: file {path} is empty")
    return text


def _file_text(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        hint = "Check that the file is there; in Kubernetes, that the Secret exists and has the key."
        raise UsageError(f"{name}: could not read {path}: {exc.strerror}", hint=hint) from None
    except UnicodeDecodeError:
        raise UsageError(f"{name}: file {path} is not UTF-8 text") from None


def _reason(error: ErrorDetails) -> str:
    reason = str(error.get("ctx", {}).get("error", error["msg"]))
    return re.sub("^(Input|String) ", "", reason)


def _contradictions(settings: Settings) -> Iterator[UsageError]:
    """What is wrong with settings that are each right."""
    source, target = settings.source, settings.target
    libpq_password = settings.environment.get("PGPASSWORD", "")
    if source.password and libpq_password not in ("", _plain(source.password)):
        yield UsageError("BACKUPD_SOURCE__PASSWORD and PGPASSWORD differ", hint="Unset one of them.")
    if not can_be_in_passfile(libpq_password):
        yield UsageError("PGPASSWORD should have no line break, which no password file can hold")
    if target.host and not target.user:
        hint = "Set it to a role that may create databases there; the source's role is not taken for another server."
        yield UsageError("BACKUPD_TARGET__HOST is set, but BACKUPD_TARGET__USER is not", hint=hint)
    yield from _s3_contradictions(f"{PREFIX}STORE", settings.store, settings.s3)
    yield from _s3_contradictions(f"{PREFIX}COPY", settings.copy, settings.copy_s3)
    yield from _copy_contradictions(settings)
    try:
        settings.recipients()
    except UsageError as exc:
        yield exc
    if source.services and (source.host or source.server):
        other = "BACKUPD_SOURCE__SERVER" if source.server else "BACKUPD_SOURCE__HOST"
        hint = "Each service is filed under its own name, and has its own host."
        yield UsageError(f"BACKUPD_SOURCE__SERVICES and {other} are both set", hint=hint)
    try:
        check_label("" if source.services else settings.server_label)
    except ValueError as exc:
        yield UsageError(f"the source's host {exc}", hint="Set BACKUPD_SOURCE__SERVER to a label of your own.")
    try:
        settings.retention.policy()
    except UsageError as exc:
        yield exc


def _s3_contradictions(prefix: str, store: StoreSettings | CopySettings, s3: S3Settings) -> Iterator[UsageError]:
    for name in sorted(s3.model_fields_set) if store.is_folder else ():
        hint = "Unset the one that is not meant."
        yield UsageError(f"{prefix}__S3__{name.upper()} is set, but {prefix}__URL is a folder", hint=hint)
    if s3.kms_key_id and not (s3.sse or "").startswith("aws:kms"):
        yield UsageError(f"{prefix}__S3__KMS_KEY_ID is set, but {prefix}__S3__SSE is not aws:kms")
    lock, lock_for = f"{prefix}__S3__OBJECT_LOCK", f"{prefix}__S3__OBJECT_LOCK_FOR"
    if (s3.object_lock is None) != (s3.object_lock_for is None):
        is_set, other = (lock, lock_for) if s3.object_lock else (lock_for, lock)
        yield UsageError(f"{is_set} is set, but {other} is not", hint=f"Such as {lock}=governance, {lock_for}=30d.")


def _copy_contradictions(settings: Settings) -> Iterator[UsageError]:
    if settings.copy.url is not None and settings.copy.url.rstrip("/") == (settings.store.url or "").rstrip("/"):
        hint = "A second store is another disk, or another bucket."
        yield UsageError("BACKUPD_COPY__URL and BACKUPD_STORE__URL are the same store", hint=hint)
    for name in sorted(settings.copy_retention.model_fields_set) if settings.copy.url is None else ():
        hint = "It is for the copies that are made after each backup."
        yield UsageError(f"{PREFIX}COPY__RETENTION__{name.upper()} is set, but BACKUPD_COPY__URL is not", hint=hint)
    try:
        settings.copy_retention.policy()
    except UsageError as exc:
        names = (f"{PREFIX}RETENTION__", f"{PREFIX}COPY__RETENTION__")
        yield UsageError(exc.message.replace(*names), hint=(exc.hint or "").replace(*names) or None)


@contextlib.contextmanager
def _noted(problems: list[UsageError]) -> Iterator[None]:
    try:
        yield
    except UsageError as exc:
        problems.append(exc)


def _refuse(problems: list[UsageError]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        hints = dict.fromkeys(problem.hint for problem in problems if problem.hint)
        detail = "\n".join(f"{problem.message}." for problem in problems)
        raise UsageError(f"{len(problems)} settings are wrong", detail=detail, hint=" ".join(hints) or None)


def _keywords(server: SourceSettings | TargetSettings) -> dict[str, str]:
    names = ("host", "port", "user", "sslmode", "sslrootcert")
    return {name: str(value) for name in names if (value := getattr(server, name)) is not None}


def _plain(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
