"""The least that backupd needs, for whoever has to give it: roles in SQL, policies for S3, a lifecycle rule.

Texts and values; nothing is asked and nothing changed. Tests back up, restore and prune with exactly these, and again
with each single right taken away, so that nothing is missing in them and nothing too much. The SQL is for psql, which
also runs what a query made: who owns what, only the server knows.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

from backupd.errors import UsageError
from backupd.retention import Policy, reach
from backupd.store import S3Options

Document = Mapping[str, Any]

UPLOAD_DAYS = 7
"""After which an open upload is nobody's: the longest backup is done by then."""

HIDDEN_DAYS = 1
"""For how long what was deleted stays behind its delete marker, where versions are kept; a lock holds it longer."""


# --- PostgreSQL


def backup_sql(role: str, databases: Sequence[str]) -> str:
    """For psql and a superuser of the source: the role that backs those databases up. A pattern stands for all."""
    named = [database for database in databases if not set(database) & set("*?[")]
    lines = [f"-- The role of backups, {role}: it reads everything, and writes nothing.", *_made(role)]
    lines += [f"GRANT pg_read_all_data TO {_name(role)};"]
    lines += [f"GRANT CONNECT ON DATABASE {_name(each)} TO {_name(role)};" for each in named or ["postgres"]]
    if not named:
        lines += ["-- In each database that is backed up, besides GRANT CONNECT ON DATABASE where PUBLIC has it not:"]
    for database in named or [""]:
        lines += [_connect(database)] if database else []
        lines += [
            "-- large objects, until PostgreSQL 18 one by one: again when there are new ones",
            f"SELECT format('GRANT SELECT ON LARGE OBJECT %s TO %I', oid, {_text(role)})"
            " FROM pg_largeobject_metadata \\gexec",
            "-- tables with row security, which would hide rows from it",
            f"SELECT format('ALTER ROLE %I BYPASSRLS', {_text(role)})"
            " WHERE EXISTS (SELECT FROM pg_class WHERE relrowsecurity) \\gexec",
        ]
    return "\n".join(lines)


def restore_sql(role: str, maintenance: str, databases: Sequence[str]) -> str:
    """For psql and a superuser of the target: the role that makes databases, and owns what the owners there own."""
    named = [database for database in databases if not set(database) & set("*?[")]
    chosen = f" WHERE datname IN ({', '.join(map(_text, named))})" if named else ""
    where = f"SELECT oid FROM pg_database{chosen}"
    return "\n".join(
        [
            f"-- The role of restores, {role}: it makes databases, and gives what they hold to whom it belonged.",
            "-- What belongs to a superuser, only a superuser restores; else give --no-owner or --role to `restore`.",
            *_made(role, "CREATEDB"),
            f"GRANT CONNECT ON DATABASE {_name(maintenance)} TO {_name(role)};",
            "-- the owners of the databases and of what is in them: again when there are new ones",
            f"SELECT format('GRANT %I TO %I', rolname, {_text(role)}) FROM pg_roles"
            f" WHERE NOT rolsuper AND rolname NOT IN ({_text(role)}, 'pg_database_owner') AND oid IN"
            f" (SELECT datdba FROM pg_database{chosen} UNION SELECT refobjid FROM pg_shdepend"
            f" WHERE deptype = 'o' AND refclassid = 'pg_authid'::regclass AND dbid IN ({where})) \\gexec",
            "-- `restore --replace` and `undo` end the sessions of the live database",
            f"GRANT pg_signal_backend TO {_name(role)};",
            *_bypassing(role, named),
        ]
    )


def _bypassing(role: str, databases: Sequence[str]) -> Iterator[str]:
    """Forced row security holds for owners too: without BYPASSRLS nobody else could count what was restored."""
    statement = (
        f"SELECT format('ALTER ROLE %I BYPASSRLS', {_text(role)})"
        " WHERE EXISTS (SELECT FROM pg_class WHERE relrowsecurity AND relforcerowsecurity) \\gexec"
    )
    if not databases:
        yield "-- In each database, again when there are new ones: tables with FORCE ROW LEVEL SECURITY"
        yield statement
        return
    yield "-- tables with FORCE ROW LEVEL SECURITY, which holds for owners too: it could not count their rows"
    for database in databases:  # a new server may lack it, and psql would end
        yield f"SELECT EXISTS (SELECT FROM pg_database WHERE datname = {_text(database)}) AS there \\gset"
        yield from ("\\if :there", _connect(database), statement, "\\endif")


def _made(role: str, *attributes: str) -> list[str]:
    return [
        f"SELECT format('CREATE ROLE %I', {_text(role)})"
        f" WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {_text(role)}) \\gexec",
        f"ALTER ROLE {_name(role)} {' '.join(['LOGIN', *attributes])};",
        f"-- its password: \\password {_name(role)}",
    ]


def _connect(database: str) -> str:
    """A name with = in it would else be taken for a connection string, and could lead to another server."""
    value = database.replace("\\", "\\\\").replace("'", "\\'")
    conninfo = f"dbname='{value}'"
    return f"\\connect -reuse-previous=on {_name(conninfo)}"


def _name(name: str) -> str:
    """Quoted for SQL and for psql's own commands."""
    if not name.isprintable():
        raise UsageError(f"name {name!r} has control characters, and can be in no script")
    return '"{}"'.format(name.replace('"', '""'))


def _text(value: str) -> str:
    prefix = "E" if "\\" in value else ""
    return prefix + "'{}'".format(value.replace("\\", "\\\\").replace("'", "''"))


# --- S3


def policies(url: str, options: S3Options) -> dict[str, Document]:
    """The IAM policy of each kind of credential, by `backup`, `restore` and `prune`. Raises UsageError for a folder.

    One credential that does all needs all of them; `verify`, `drill` and `pin` write notes, and need `backup`.
    """
    locks = options.object_lock is not None
    kinds = {
        "backup": ["PutObject", "GetObject", "AbortMultipartUpload", "ListMultipartUploadParts"],
        "restore": ["GetObject"],
        "prune": ["GetObject", "DeleteObject"],
    }
    kinds["backup"] += ["PutObjectRetention"] if locks else []
    kinds["prune"] += ["GetObjectRetention"] if locks else []
    return {kind: _policy(kind, actions, url, options) for kind, actions in kinds.items()}


def _policy(kind: str, actions: Sequence[str], url: str, options: S3Options) -> Document:
    bucket, prefix = _place(url)
    resource = f"arn:{_partition(options.region)}:s3:::{bucket}"
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": resource}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    statements = [listing]
    if kind == "backup":  # which knows no condition of a prefix
        statements += [{"Effect": "Allow", "Action": ["s3:ListBucketMultipartUploads"], "Resource": resource}]
    objects = [f"s3:{action}" for action in actions]
    statements += [{"Effect": "Allow", "Action": objects, "Resource": f"{resource}/{prefix}*"}]
    if options.sse not in (None, "AES256"):
        key = options.kms_key_id if (options.kms_key_id or "").startswith("arn:") else "*"
        keys = ["kms:GenerateDataKey", "kms:Decrypt"] if kind == "backup" else ["kms:Decrypt"]
        statements += [{"Effect": "Allow", "Action": keys, "Resource": key}]
    return {"Version": "2012-10-17", "Id": f"backupd-{kind}", "Statement": statements}


def lifecycle(url: str, policy: Policy | None, options: S3Options) -> Document:
    """The bucket's lifecycle configuration. Raises UsageError for a folder.

    Its second rule is off: it removes by age alone, and knows neither floor nor pin; it is for a bucket in which
    nobody may delete.
    """
    _, prefix = _place(url)
    return {"Rules": list(_rules(prefix, policy, options))}


def _rules(prefix: str, policy: Policy | None, options: S3Options) -> Iterator[Document]:
    leftovers = {
        "ID": "backupd: what is left over",
        "Status": "Enabled",
        "Filter": {"Prefix": prefix},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS},
        "NoncurrentVersionExpiration": {"NoncurrentDays": HIDDEN_DAYS},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
    }
    yield leftovers
    kept = None if policy is None else reach(policy)
    if kept is not None:
        days = max(kept, options.object_lock_for or timedelta(0)) // timedelta(days=1) + 1
        yield {
            "ID": "backupd: where nobody may delete, by age alone",
            "Status": "Disabled",
            "Filter": {"Prefix": prefix},
            "Expiration": {"Days": days},
        }


def _place(url: str) -> tuple[str, str]:
    """Bucket, and what all keys start with."""
    parts = urlsplit(url)
    if parts.scheme != "s3":
        hint = "A folder is protected by its owner and mode."
        raise UsageError("the store is no bucket, and has neither policies nor lifecycle rules", hint=hint)
    prefix = unquote(parts.path).strip("/")
    return parts.netloc, f"{prefix}/" if prefix else ""


def _partition(region: str | None) -> str:
    """AWS's name for its worlds apart."""
    starts = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in starts.items() if (region or "").startswith(start)), "aws")
