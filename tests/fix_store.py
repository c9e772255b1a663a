"""Stores for tests: a folder, moto's S3 server, rclone's, one with quirks, and a proxy that makes an S3 server fail."""

import contextlib
import functools
import http.client
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from fake_s3 import Fake, serve
from store_memory import MemoryStore

from backupd.store import S3Options, Store, open_store
from backupd.store.paced import Paced

ACCESS_KEY, SECRET_KEY = "AKIATESTTESTTESTTEST", "a-secret-that-no-message-may-hold"
PART_BYTES = 5 << 20
"""The smallest part that S3 allows: objects of several parts stay small in tests."""


@dataclass(frozen=True)
class StoreCase:
    """A store, and what the suite must know of it besides: what it holds that `list` does not show, and its limits."""

    name: str
    store: Store
    leftovers: Callable[[], Sequence[str]]
    tells_taken_keys: bool = True
    """Whether two creates of one key that overlap are told apart (rclone ignores If-None-Match)."""
    sweeps: bool = True


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and one new bucket."""

    endpoint_url: str
    bucket: str
    client: Any

    def options(self, **changes: Any) -> S3Options:
        """How backupd speaks to it; `changes` win."""
        return S3Options(**{"endpoint_url": self.endpoint_url, "part_bytes": PART_BYTES, **changes})

    def store(self, **changes: Any) -> Store:
        """backupd's store under a prefix of the bucket."""
        return open_store(f"s3://{self.bucket}/a/prefix", self.options(**changes))

    def keys(self) -> list[str]:
        """Everything that the bucket shows, asked without backupd."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ())]

    def uploads(self) -> list[str]:
        """The keys of open multipart uploads, asked without backupd."""
        try:
            answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        except ClientError as exc:  # rclone's word for none at all
            if exc.response["Error"]["Code"] != "NoSuchUpload":
                raise
            return []
        return [item["Key"] for item in answer.get("Uploads", ())]


@contextlib.contextmanager
def only_test_credentials() -> Iterator[None]:
    """The credentials of both servers, where boto3 looks for them, and nothing of this machine's."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield


@pytest.fixture
def s3_credentials() -> Iterator[None]:
    """See only_test_credentials."""
    with only_test_credentials():
        yield


@contextlib.contextmanager
def running_rclone(folder: Path, secret: str = SECRET_KEY) -> Iterator[str]:
    """The endpoint of `rclone serve s3` of that folder, a child process; its log lies beside the folder.

    It refuses whoever does not sign with that secret.
    """
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("rclone is not installed")
    port = _free_port()
    keys = ["--config", os.devnull, "--auth-key", f"{ACCESS_KEY},{secret}"]
    argv = [program, "serve", "s3", *keys, "--addr", f"127.0.0.1:{port}", str(folder)]
    with (folder.parent / "rclone.log").open("wb") as log, _child(argv, log):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def running_moto(folder: Path) -> Iterator[str]:
    """The endpoint of moto's server, a child process: in threads of this one its memory would be ours."""
    port = _free_port()
    argv = [sys.executable, "-c", "import moto.server, sys; moto.server.main(sys.argv[1:])", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log, _child(argv, log):
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`rclone serve s3` of a new folder."""
    with running_rclone(tmp_path_factory.mktemp("rclone")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def moto_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """moto's server."""
    with running_moto(tmp_path_factory.mktemp("moto")) as endpoint:
        yield endpoint


@pytest.fixture
def rclone_s3(rclone_endpoint: str, s3_credentials: None) -> S3Server:
    """rclone's server with a new bucket."""
    return new_bucket(rclone_endpoint)


@pytest.fixture
def moto_s3(moto_endpoint: str, s3_credentials: None) -> S3Server:
    """moto's server with a new bucket."""
    return new_bucket(moto_endpoint)


@pytest.fixture
def fake_s3(s3_credentials: None) -> Iterator[Callable[..., tuple[Fake, S3Server]]]:
    """Serves a fake: `fake_s3(quirks=Quirks(...), versioned=True)` gives it, and how it is reached."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> tuple[Fake, S3Server]:
            fake = Fake(**changes)
            return fake, stack.enter_context(served(fake))

        yield start


@pytest.fixture(
    params=[
        "memory",
        "paced",
        "local",
        "rclone",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("moto", "fake")),
    ]
)
def store_case(request: pytest.FixtureRequest, tmp_path: Path) -> StoreCase:
    """Each store in turn."""
    if request.param == "memory":
        return StoreCase("memory", MemoryStore(), list, sweeps=False)
    if request.param == "paced":
        return StoreCase("memory", Paced(MemoryStore(), 1 << 40), list, sweeps=False)
    if request.param == "local":
        root = tmp_path / "store"
        root.mkdir()
        store = open_store(root.as_uri(), S3Options())
        return StoreCase("local", store, lambda: hidden_files(root))
    server: S3Server
    if request.param == "fake":
        _, server = request.getfixturevalue("fake_s3")()
        return StoreCase("fake", server.store(), server.uploads)
    server = request.getfixturevalue(f"{request.param}_s3")
    return StoreCase(request.param, server.store(), server.uploads, tells_taken_keys=request.param != "rclone")


def hidden_files(root: Path) -> list[str]:
    """Every file below the folder whose name starts with a dot."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(".*") if path.is_file())


@dataclass
class FaultProxy:
    """A proxy before an S3 server. `rule` sees method, path with query, and the request's number; it may name a fault.

    Faults: a status such as "503 SlowDown"; "cut request": read half the request's body, then reset; "cut response":
    send half the answer's body, then reset; "lose answer": let the server do it, then reset; "slow 0.5": wait first;
    "twice": answer it twice; "done 412 Code": let the server do it, then answer with that status.
    """

    target: str
    rule: Callable[[str, str, int], str | None] = lambda method, path, number: None
    seen: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    endpoint_url: str = ""


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[S3Server], tuple[FaultProxy, S3Server]]]:
    """Puts a FaultProxy before a server: gives the proxy, and the server as it is reached through it."""
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(proxied(server))


@contextlib.contextmanager
def proxied(server: S3Server) -> Iterator[tuple[FaultProxy, S3Server]]:
    """A FaultProxy before that server, and the server as it is reached through it."""
    proxy = FaultProxy(server.endpoint_url)
    with _Listener(("127.0.0.1", 0), _handler(proxy)) as listener:
        proxy.endpoint_url = f"http://127.0.0.1:{listener.server_address[1]}"
        threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        yield proxy, S3Server(proxy.endpoint_url, server.bucket, server.client)
        listener.shutdown()


@contextlib.contextmanager
def served(fake: Fake) -> Iterator[S3Server]:
    """A fake as it is reached."""
    with serve(fake):
        yield S3Server(fake.endpoint_url, fake.bucket, _client(fake.endpoint_url))


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


class _Reset(Exception):
    """The connection is to be reset."""


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (_Reset, OSError):
                self.close_connection = True
                # Lingering for no time makes close() a reset instead of an orderly end.
                with contextlib.suppress(OSError):
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        def relay(self) -> None:
            proxy.seen.append(f"{self.command} {self.path}")
            fault = proxy.rule(self.command, self.path, len(proxy.seen)) or ""
            length = int(self.headers.get("Content-Length", 0))
            if fault == "cut request":
                self.rfile.read(length // 2)
                raise _Reset
            body = self.rfile.read(length)
            if fault.startswith("slow"):
                time.sleep(float(fault.split()[1]))
            if fault[:1].isdigit():
                self.refuse(*fault.split(" ", 1))
                return
            self.answer(body, fault)

        def refuse(self, status: str, code: str) -> None:
            text = f"<Error><Code>{code}</Code><Message>made by the proxy</Message></Error>".encode()
            self.send_response(int(status))
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def answer(self, body: bytes, fault: str) -> None:
            target = urlsplit(proxy.target)
            with contextlib.closing(http.client.HTTPConnection(f"{target.hostname}", target.port)) as upstream:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() != "expect":  # answered by http.server already
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                response = upstream.getresponse()
                data = response.read()
                if fault == "lose answer":
                    raise _Reset
                if fault.startswith("done "):
                    self.refuse(*fault.split(" ")[1:])
                    return
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                stated = response.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", stated or str(len(data)))
                head = b"".join(self._headers_buffer)  # type: ignore[attr-defined]
                self.end_headers()
                if fault == "cut response":
                    self.wfile.write(data[: len(data) // 2])
                    raise _Reset
                proxy.sent_bytes += len(data)
                self.wfile.write(data)
                if fault == "twice":
                    self.wfile.write(head + b"\r\n" + data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay  # noqa: N815

    return Handler


@contextlib.contextmanager
def _child(argv: Sequence[str], log: Any) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RCLONE_", "AWS_"))}
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def new_bucket(endpoint_url: str) -> S3Server:
    """That server with a new bucket."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    _client(endpoint_url).create_bucket(Bucket=bucket)
    return S3Server(endpoint_url, bucket, _client(endpoint_url))


@functools.cache
def _client(endpoint_url: str) -> Any:
    config = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
    session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint_url, config=config)
