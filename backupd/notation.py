"""How settings are written: durations, lists, folders, URLs, compressions; text in, value out.

Each function takes the text of a variable or flag and returns its value, or raises ValueError with a reason that goes
on where the name ends: "should be a duration such as 60s, 36h or 7d". The text is never part of the reason, since it
may be a secret in the wrong place.

Not pydantic's own types: its durations are ISO 8601 (`P7D`), its URLs change what they are given, and its reasons
speak of strings and inputs.
"""

import json
import os
import re
import shlex
from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from zoneinfo import ZoneInfo

STORE_URL_REASON = "should be file:///absolute/folder or s3://bucket/prefix"
DRILL_URL_REASON = "should be postgresql://user@host:port/database or host=... user=..., without a password"
LABEL_LIMIT_BYTES = 100

_ENDPOINT_REASON = "should be http:// or https:// with a host, and have no user, query or fragment"
_SMALLEST_RATE = 1 << 10
_COMMAND_REASON = "should be a program and its arguments, or a JSON list of them"
_PING_REASON = "should be http:// or https:// with a host"
_UNITS = {"s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """A duration such as `36h`, `7d` or `1d12h`; none at all is refused, since to libpq it means for ever."""
    if not re.fullmatch(r"([0-9]{1,6}(s|min|m|h|d|w))+", text):
        raise ValueError("should be a duration such as 60s, 36h or 7d")
    parts = re.findall(r"([0-9]+)([a-z]+)", text)
    duration = sum((timedelta(**{_UNITS[unit]: int(count)}) for count, unit in parts), timedelta())
    if not duration:
        raise ValueError("should be a duration longer than none")
    return duration


def parse_bytes(text: str) -> int:
    """A number of bytes, as `512K`, `10M` or `1G` (of 1024, as rclone has them)."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]?)", text)
    if match is None or (size := int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]) < _SMALLEST_RATE:
        raise ValueError("should be a number of bytes from 1K on, such as 512K, 10M or 1G")
    return size


def parse_list(text: str) -> tuple[str, ...]:
    """Names or patterns, separated by commas."""
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise ValueError("should have a name before and after each comma")
    return items


def parse_keys(text: str) -> tuple[str, ...]:
    """Public keys, separated by commas or in lines of their own; a line that begins with # is a comment."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    keys = tuple(key.strip() for line in lines for key in line.split(",") if key.strip())
    if not keys:
        raise ValueError("should have a public key, which begins with age1, ssh-ed25519 or ssh-rsa")
    return keys


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels of servers, separated by commas."""
    return tuple(check_label(item) for item in parse_list(text))


def parse_public_keys(text: str) -> tuple[str, ...]:
    """Public keys of minisign, separated by commas: 42 bytes in base64, of which the first two say so."""
    keys = parse_list(text)
    if not all(re.fullmatch("RW[Q-T][A-Za-z0-9+/]{53}", key) for key in keys):
        raise ValueError("should be public keys of minisign, RW..., separated by commas")
    return keys


def parse_table_patterns(text: str) -> tuple[str, ...]:
    """Patterns of tables with their schema, separated by commas."""
    patterns = parse_list(text)
    if not all("." in pattern for pattern in patterns):
        raise ValueError("should be patterns such as schema.table or schema.*, separated by commas")
    return patterns


def parse_command(text: str) -> tuple[str, ...]:
    """A command and its arguments: a JSON list, or words as a shell would split them; there is no shell."""
    try:
        words: object = json.loads(text) if text.lstrip().startswith("[") else shlex.split(text)
    except ValueError:
        raise ValueError(_COMMAND_REASON) from None
    if not (isinstance(words, list) and words and words[0] and all(isinstance(word, str) for word in words)):
        raise ValueError(_COMMAND_REASON)
    return tuple(words)


def parse_folder(text: str) -> Path:
    """An absolute folder, which need not exist."""
    if not Path(text).is_absolute():
        raise ValueError("should be an absolute folder")
    return Path(text)


def parse_folders(text: str) -> tuple[Path, ...]:
    """Absolute folders, separated as in PATH."""
    try:
        return tuple(parse_folder(folder) for folder in text.split(os.pathsep))
    except ValueError:
        raise ValueError(f"should be absolute folders, separated by {os.pathsep!r}") from None


def parse_textfile(text: str) -> Path:
    """An absolute file that node_exporter reads, which are those that end in `.prom`."""
    if not Path(text).is_absolute() or not Path(text).stem or Path(text).suffix != ".prom":
        raise ValueError("should be an absolute file that ends in .prom")
    return Path(text)


def parse_jobs(text: str) -> int | str:
    """A number of jobs, or `auto`."""
    if text != "auto" and not re.fullmatch("[1-9][0-9]{0,2}", text):
        raise ValueError("should be auto or a number from 1 to 999")
    return text if text == "auto" else int(text)


def check_host(text: str) -> str:
    """A host as libpq takes it, not a connection string (whose password would end up in messages)."""
    if "://" in text or "=" in text:
        raise ValueError("should be a host name or a socket's folder, not a connection string")
    return text


def check_label(text: str) -> str:
    """A server's label; the slash separates it from the database in `prod/app@latest`."""
    if len(text.encode()) > LABEL_LIMIT_BYTES:
        raise ValueError(f"should have at most {LABEL_LIMIT_BYTES} bytes")
    if "/" in text or not text.isprintable():
        raise ValueError("should be printable and have no slash")
    return text


def check_time_zone(text: str) -> str:
    """An IANA name of a time zone."""
    try:
        return text if text == "UTC" else ZoneInfo(text).key  # a small system may lack the time zone database
    except (KeyError, ValueError, OSError):
        raise ValueError("should be a time zone such as UTC or Europe/Berlin") from None


def check_compression(text: str) -> str:
    """A compression that both pg_dump and our decoder know."""
    if not re.fullmatch(r"zstd:([1-9]|1[0-9])|gzip:[1-9]", text):
        raise ValueError("should be zstd:1 to zstd:19 or gzip:1 to gzip:9")
    return text


def check_store_url(text: str) -> str:
    """A store's URL."""
    parts = _split(text, STORE_URL_REASON)
    local = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
    s3 = parts.scheme == "s3" and re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{1,254}", parts.netloc)
    if not (local or s3):
        raise ValueError(STORE_URL_REASON)
    return text


def check_endpoint_url(text: str) -> str:
    """The URL of an S3 service."""
    parts = _split(text, _ENDPOINT_REASON)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise ValueError(_ENDPOINT_REASON)
    return text


def check_ping_url(text: str) -> str:
    """The URL of a dead-man's switch."""
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(_PING_REASON) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or not text.isprintable():
        raise ValueError(_PING_REASON)
    return text


def check_drill_url(text: str) -> str:
    """A connection string as libpq takes it; a password in it would show in every child's command line."""
    uri = re.match(r"postgres(ql)?://([^/?#]*)", text)
    password = re.search(r"password\s*=", text, re.IGNORECASE) or (uri and re.search(":.*@", uri[2]))
    if password or not (uri or "=" in text):
        raise ValueError(DRILL_URL_REASON)
    return text


def secret_pieces(url: str, shortest: int) -> list[str]:
    """What in a notification's URL may be a password or a token, from that length on: all but scheme and plain host."""
    rest = url.partition("://")[2]
    host = re.split(r"[/?#]", rest)[0].rpartition("@")[2].partition(":")[0]
    pieces = (unquote(piece) for piece in re.split(r"[/?&=#@:,\s]+", rest) if piece != host or "." not in host)
    return [piece for piece in pieces if len(piece) >= shortest]


def _split(text: str, reason: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        valid = parts.port is None or parts.port > 0  # reading it is what checks it
    except ValueError:
        raise ValueError(reason) from None
    if not valid or "?" in text or "#" in text or " " in text or not text.isprintable():
        raise ValueError(reason)
    return parts
