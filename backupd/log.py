"""The log: events with keys on stderr, for a terminal or as JSON lines, and never a secret in them.

Hides structlog's set-up, what a secret looks like, and that libraries log on their own ways (their warnings pass here
too). Everything that is logged becomes text, and every text is scrubbed last, tracebacks and children's words included:
known secrets wherever they stand, and what has the form of one. A secret of fewer than four characters is masked
only by its form (`password=abc`): masking it everywhere would garble every line, and show by that what it is.

Not logging's own formatting, whose events are prose. rich stays unimported, which saves 70 ms of CPU a start, and its
tracebacks would show local variables.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TextIO, cast
from urllib.parse import quote

if "rich" not in sys.modules:
    sys.modules["rich"] = cast(Any, None)  # structlog takes what it can import, and this says that it cannot
    try:
        import structlog
    finally:
        del sys.modules["rich"]
else:
    import structlog

from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

MASK = "***"

_SHORTEST_SECRET = 4
_UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)  # and what turns the direction of a line, or breaks it
_SECRET_KEY = re.compile(r"(password|passphrase|secret|secret_?access_?key|(session|security)_?token)$", re.I)
_QUOTED = r"""'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.)*\""""
# of a conninfo within an SQL literal, as in CREATE SUBSCRIPTION: each quote is there twice, also behind a backslash
_DOUBLED = r"''(?:[^'\\]|\\++'{0,2}|'''')*''"
_CUT = r"['\"]{1,2}[^'\"…]*…"  # a line that was cut (`process`) ends within the quotes
_NAMES = r"(?:password|passwd|passphrase|secret[_-]?(?:access[_-]?)?key|(?:session|security)[_-]?token|signature)"
_FORMS = (
    (re.compile(r"(://[^\s/@:]*:)[^\s'\"<>]{1,500}@"), rf"\1{MASK}@"),  # the password of a URI
    (  # conninfo, environment
        re.compile(rf"({_NAMES}['\"]?\s*=\s*)(?:{_DOUBLED}|{_CUT}|{_QUOTED}|(?:\\.|[^\s,;&'\"\\])+)", re.I),
        rf"\1{MASK}",
    ),
    (re.compile(rf"({_NAMES}['\"]?\s*:\s*|\bpassword\s+)(?:{_QUOTED}|{_CUT})", re.I), rf"\1{MASK}"),  # JSON, SQL
    (re.compile(rf"(<({_NAMES})>)[^<]*", re.I), rf"\1{MASK}"),  # XML answers of S3
    (re.compile(r"AGE-SECRET-KEY-1[0-9A-Z]+", re.I), MASK),
    (re.compile(r"SCRAM-SHA-256\$[0-9]+:[^\s'\"]+|\bmd5[0-9a-f]{32}\b"), MASK),  # what passwords are checked by
)
_CHILD_LEVELS = ((" error: ", "error"), (" fatal: ", "error"), (" warning: ", "warning"))


def configure(
    level: Literal["debug", "info", "warning", "error"],
    style: Literal["console", "json", "auto"],
    secrets: Sequence[str],
    stream: TextIO,
    color: bool = True,
) -> None:
    """Sets up the log of this process; `auto` is the console on a terminal and JSON elsewhere."""
    renderer: Processor = structlog.processors.JSONRenderer()
    if not is_json(style, stream):
        formatter = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=color and stream.isatty(), exception_formatter=formatter)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _Scrubber(secrets),
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Tolerant(stream))),
        cache_logger_on_first_use=False,
    )
    _adopt_libraries(shared, renderer, stream)


class _Tolerant:
    """The stream of the log; a line that it does not take, as on a full disk, is lost, and no run fails for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def is_json(style: Literal["console", "json", "auto"], stream: TextIO) -> bool:
    """Whether that style writes JSON to that stream."""
    return style == "json" or (style == "auto" and not stream.isatty())


def get_logger() -> FilteringBoundLogger:
    """A logger; `bind` it to what all its events are about."""
    return cast(FilteringBoundLogger, structlog.get_logger())


def child_stderr(tool: str, line: str) -> None:
    """Logs one line that a child wrote to stderr, as bad as PostgreSQL's programs say it is."""
    level = next((level for sign, level in _CHILD_LEVELS if sign in line), "info")
    if line.strip():
        get_logger().log(logging.getLevelName(level.upper()), "child.stderr", tool=tool, line=line.strip())


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text with known secrets and what has the form of one masked."""
    known = _pattern(tuple(secrets))
    text = known.sub(MASK, text) if known else text
    for form, replacement in _FORMS:
        text = form.sub(replacement, text)
    return text


@lru_cache(maxsize=8)
def _pattern(secrets: tuple[str, ...]) -> re.Pattern[str] | None:
    """The long enough secrets, as they are and as URLs and Python's repr write them; the longest first."""
    long = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
    written = {form for secret in long for form in (secret, quote(secret, safe=""), repr(secret)[1:-1])}
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None


class _Scrubber:
    """The last processor before the renderer: all values become plain, scrubbed, without control characters."""

    def __init__(self, secrets: Sequence[str]) -> None:
        self._secrets = tuple(secrets)

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: self._value(key, value) for key, value in event.items()}

    def _value(self, key: str, value: object) -> object:
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self._text(name): self._value(str(name), inner) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(key, inner) for inner in value]
        return MASK if _SECRET_KEY.search(key) else self._text(value)

    def _text(self, value: object) -> str:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        return _UNSEEN.sub(_escaped, scrub(text, self._secrets))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _adopt_libraries(shared: Sequence[Processor], renderer: Processor, stream: TextIO) -> None:
    """Gives libraries' warnings the same form; never less than warnings: botocore's debug log has credentials."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.name = "backupd"
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [*(other for other in root.handlers if other.name != handler.name), handler]
    root.setLevel(logging.WARNING)
