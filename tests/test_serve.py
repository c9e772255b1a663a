"""The daemon: what it answers, to whom, whatever the store, the clients and the signals do."""

import base64
import contextlib
import gc
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fix_postgres import DatabaseFactory, PostgresServer
from fix_tools import Running, Site, wait_until
from made_backups import ARCHIVE, made_manifest
from prometheus_client.parser import text_string_to_metric_families

from backupd import site as page_site
from backupd.catalog import Catalog
from backupd.commands import serve as serve_verb
from backupd.errors import StoreError, UsageError
from backupd.layout import archive_key
from backupd.manifest import Backup
from backupd.selector import Label, name_of
from backupd.serve import CONNECTIONS, HEADERS_LIMIT_BYTES, Answer, listening, serving
from backupd.site import Holdings, View
from backupd.status import Expected
from backupd.store import S3Options, open_store
from backupd.watch import Watch
from backupd.web.commands import Here

NOW = datetime(2026, 11, 26, 9, 0, tzinfo=UTC)
TOKEN = "0123456789abcdef"
DOCUMENT = "/api/v1/backups.json"


@dataclass(frozen=True)
class Page:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def get(port: int, path: str, method: str = "GET", **headers: str) -> Page:
    """Asks on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Page(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def put(catalog: Catalog, age: timedelta = timedelta(hours=1), **facts: Any) -> Backup:
    """A backup in the store; its archive is not one."""
    manifest = made_manifest(NOW - age, **facts)
    with catalog.store.create(archive_key(name_of(Backup(manifest)))) as stream:
        stream.write(ARCHIVE)
    return catalog.commit(manifest)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(open_store(tmp_path.as_uri(), S3Options()))


class Asked:
    """The store as a watch asks it: it can be made to hang, to fail, and to go on."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog.remembering()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.error: StoreError | None = None

    def __call__(self) -> Holdings:
        self.goes_on.wait(20)
        if self.error:
            raise self.error
        return Holdings(self.catalog.backups())


@dataclass
class Shown:
    """A page that is served in this process."""

    port: int
    asked: Asked
    store: Watch[Holdings]
    site: page_site.Site

    def get(self, path: str, method: str = "GET", **headers: str) -> Page:
        return get(self.port, path, method, **headers)

    def until(self, path: str, condition: Callable[[Page], bool]) -> Page:
        """The first answer of which that is true; what is shown is made anew meanwhile."""

        def found() -> Page | None:
            self.store.ask_soon()
            self.site.edit()
            page = self.get(path)
            return page if condition(page) else None

        page: Page = wait_until(found, path)
        return page


Show = Callable[..., Shown]


@pytest.fixture
def show(catalog: Catalog) -> Iterator[Show]:
    """Serves the catalog: `show(token=..., patience=...)`."""
    with contextlib.ExitStack() as stack:

        def start(token: str | None = None, patience: float = 15.0, heard: bool = True) -> Shown:
            asked = Asked(catalog)
            stack.callback(asked.goes_on.set)
            store = Watch("store", asked, lambda: NOW, 3600, patience_seconds=0.2)
            view = View(catalog.store.url, lambda labels, _: Expected("prod", labels), Here(), lambda _: {})
            made = page_site.Site(view, store, None, lambda: NOW)
            listener = stack.enter_context(listening("127.0.0.1", 0))
            stack.enter_context(serving(listener, made, token, patience))
            shown = Shown(listener.getsockname()[1], asked, store, made)
            if heard:
                store.start()
                wait_until(lambda: store.seen.at, "the store was not read")
                made.edit()
            return shown

        yield start


# --- what is answered


def test_the_pages_the_metrics_and_the_document_are_there(catalog: Catalog, show: Show) -> None:
    backup = put(catalog)
    shown = show()

    assert "prod/app" in shown.get("/").text
    assert shown.get("/database/prod/app").status == 200
    assert backup.id in shown.get(f"/backup/prod/app/{backup.id}").text
    assert len(json.loads(shown.get(DOCUMENT).body)["backups"]) == 1
    assert "backupd_store_bytes" in {each.name for each in text_string_to_metric_families(shown.get("/metrics").text)}
    assert (shown.get("/healthz").text, shown.get("/readyz").text) == ("ok\n", "ready\n")


def test_every_answer_has_the_strict_headers(show: Show) -> None:
    shown = show(token=TOKEN)

    for path, status in (("/healthz", 200), ("/", 401), ("/nothing", 401)):
        page = shown.get(path)
        assert page.status == status
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "server" not in page.headers


def test_a_page_links_to_files_that_are_there_and_may_be_kept(show: Show) -> None:
    shown = show()
    [name] = [word for word in shown.get("/").text.replace('"', " ").split() if word.endswith(".css")]
    page = shown.get(f"/{name}")

    assert (page.status, page.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert "immutable" in page.headers["cache-control"]


def test_nothing_but_reading_is_possible(show: Show) -> None:
    shown = show()

    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert shown.get("/", method).status == 405


def test_head_is_get_without_the_body(show: Show) -> None:
    page = show().get("/", "HEAD")

    assert (page.status, page.body) == (200, b"")
    assert int(page.headers["content-length"]) > 0


NOWHERE = (
    "/../../etc/passwd",
    "/static/../../../etc/passwd",
    "/static/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/database/..%2f..%2fetc/passwd",
    "/database/%2E%2E/%2E%2E",
    "/database/prod/%00",
    "/database/prod/%FF%FE",
    "/database/prod/app?page=0",
    "/database/prod/app?page=99999999999999999999",
    "/database/prod/app?page=%D9%A3",
    "/backup/prod/app/..%2f..%2f",
    "/backup/prod/app/20990101T000000Z-00000000",
    "//etc/passwd",
    "/%25252e",
    "/nothing",
    "/" + "a" * 8000,
)


def test_a_path_to_nothing_is_404_wherever_it_tries_to_lead(catalog: Catalog, show: Show) -> None:
    put(catalog)
    shown = show()

    for path in NOWHERE:
        page = shown.get(path)
        assert page.status == 404, path
        assert b"root:" not in page.body


def test_a_hostile_name_has_its_own_page_and_is_inert(catalog: Catalog, show: Show) -> None:
    names = ("..", "a/b", "<script>alert(1)</script>", "%2e%2e", "n\u00e9", "a b&c", "'\"")
    for name in names:
        put(catalog, database=name)
    shown = show()
    links = {word for word in shown.get("/").text.replace('"', " ").split() if word.startswith("database/")}

    assert len(links) == len(names)
    for path in ("", *links):
        page = shown.get(f"/{path}")
        assert page.status == 200, path
        assert "<script>alert" not in page.text


def test_a_search_is_answered_and_not_kept_without_end(catalog: Catalog, show: Show) -> None:
    put(catalog)
    shown = show()

    for number in range(80):
        assert shown.get(f"/?search={number}").status == 200
    assert shown.get("/?search=%3Cscript%3E&state=nonsense&other=1").status == 200


# --- who is answered


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_who_has_the_token_is_answered_as_bearer_or_as_any_user(show: Show) -> None:
    shown = show(token=TOKEN)

    for value in (f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(f"anybody:{TOKEN}"), basic(f":{TOKEN}")):
        assert shown.get("/", Authorization=value).status == 200


STRANGERS = ("", "Bearer", "Bearer ", "Bearer 0123456789abcde", f"Bearer {TOKEN}x", f"Digest {TOKEN}", TOKEN, "Basic",
             "Basic %%", basic(TOKEN), basic(f"{TOKEN}:"), basic("user:wrong"), "Bearer \xff")  # fmt: skip


def test_who_has_not_the_token_learns_nothing(catalog: Catalog, show: Show) -> None:
    put(catalog)
    shown = show(token=TOKEN)

    for value in STRANGERS:
        for path in ("/", "/metrics", DOCUMENT, "/database/prod/app", "/static/page.css", "/nothing"):
            page = shown.get(path, **({"Authorization": value} if value else {}))
            assert (page.status, page.body) == (401, b"unauthorized\n"), value
            assert page.headers["www-authenticate"].startswith("Basic ")


def test_probes_need_no_token_and_learn_a_word(show: Show) -> None:
    shown = show(token=TOKEN)

    assert [shown.get(path).text for path in ("/healthz", "/readyz")] == ["ok\n", "ready\n"]


# --- weather


def test_before_the_store_was_read_there_is_no_page_but_life(show: Show) -> None:
    shown = show(heard=False)

    assert [shown.get(path).status for path in ("/", "/metrics", "/readyz", "/healthz")] == [503, 503, 503, 200]


def test_a_store_that_hangs_does_not_hang_the_page(catalog: Catalog, show: Show) -> None:
    put(catalog)
    shown = show()
    shown.asked.goes_on.clear()
    shown.store.ask_soon()
    shown.until(DOCUMENT, lambda page: b"has not answered for" in page.body)

    page = shown.get("/").text
    assert "has not answered for" in page
    assert "prod/app" in page
    assert [shown.get(path).status for path in ("/readyz", "/healthz")] == [503, 200]
    assert "backupd_catalog_readable 0.0" in shown.get("/metrics").text

    shown.asked.goes_on.set()
    shown.until(DOCUMENT, lambda page: json.loads(page.body)["error"] is None)
    assert shown.get("/readyz").status == 200


def test_a_store_that_fails_is_said_to_and_its_last_answer_stays(catalog: Catalog, show: Show) -> None:
    put(catalog)
    shown = show()
    shown.asked.error = StoreError("no route to the store")
    shown.until(DOCUMENT, lambda page: json.loads(page.body)["error"] == "no route to the store")

    page = shown.get("/").text
    assert "no route to the store" in page
    assert "prod/app" in page
    assert shown.get("/readyz").text == "not ready: store\n"


def test_a_broken_manifest_is_named_beside_the_others(catalog: Catalog, show: Show, tmp_path: Path) -> None:
    put(catalog)
    key = "prod/app/20200101T000000Z-00000000.json"
    (tmp_path / key).write_bytes(b'{"format": 1, "id": ')
    shown = show()
    page = shown.get("/").text

    assert "prod/app" in page
    assert key in page
    assert "backupd_catalog_broken_objects 1.0" in shown.get("/metrics").text
    assert [each["key"] for each in json.loads(shown.get(DOCUMENT).body)["broken"]] == [key]


def test_a_backup_that_comes_is_shown_at_the_next_reading(catalog: Catalog, show: Show) -> None:
    shown = show()
    assert "prod/app" not in shown.get("/").text
    put(catalog)

    shown.until("/", lambda page: "prod/app" in page.text)


def test_a_port_that_is_taken_is_said_with_its_number() -> None:
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"could not listen on 127.0.0.1 port {port}"),
            listening("127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "2001:db8::1", "a:b", "\u00e9" * 70, ""])
def test_an_address_that_is_not_here_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="could not listen"), listening(host, 0):
        pass


def raw(port: int, data: bytes) -> tuple[socket.socket, bytes]:
    """A connection on which that was sent, and the first bytes that came back."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(data)
    return client, client.recv(100)


REFUSED = (
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (2 * HEADERS_LIMIT_BYTES),
    b"GET /" + b"a" * (2 * HEADERS_LIMIT_BYTES),
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * HEADERS_LIMIT_BYTES,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 3 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\nHost: a b\x00\r\n\r\n",
)


def test_what_is_no_request_or_too_large_a_one_is_refused(show: Show) -> None:
    shown = show()

    for head in REFUSED:
        client, answer = raw(shown.port, head)
        client.close()
        assert answer.startswith(b"HTTP/1.1 400 "), head[:40]
    assert shown.get("/").status == 200


def test_a_client_that_never_ends_its_request_is_cut(show: Show) -> None:
    shown = show(patience=0.2)
    with socket.create_connection(("127.0.0.1", shown.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        with contextlib.suppress(OSError):
            for _ in range(10_000):  # a byte now and then, as slowloris does
                client.sendall(b"X")
                client.settimeout(0.01)
                with contextlib.suppress(TimeoutError):
                    assert client.recv(1) == b""
                    break
            else:
                pytest.fail("it was let go on for ever")
    assert shown.get("/").status == 200


def test_connections_that_ask_nothing_take_nobody_s_place(show: Show) -> None:
    shown = show()
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", shown.port), timeout=20))
            for _ in range(CONNECTIONS + 50)
        ]
        assert shown.get("/healthz").status == 200
        assert shown.get("/").status == 200
        with contextlib.suppress(ConnectionError):
            assert silent[0].recv(1) == b""
        silent[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert silent[-1].recv(100).startswith(b"HTTP/1.1 200 ")


class Endless:
    """Answers that are larger than what sockets hold."""

    def ready(self, path: str, query: Mapping[str, str]) -> Answer:
        return Answer(b"x" * (32 << 20))

    def make(self, path: str, query: Mapping[str, str]) -> Answer:
        return self.ready(path, query)


def test_a_client_that_never_reads_its_answer_is_cut() -> None:
    with listening("127.0.0.1", 0) as listener, serving(listener, Endless(), None, 0.2):
        client, _ = raw(listener.getsockname()[1], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with client:
            threading.Event().wait(0.8)
            received = 0
            with contextlib.suppress(ConnectionError):
                while data := client.recv(1 << 20):
                    received += len(data)
    assert received < 32 << 20


def test_a_client_that_goes_away_in_the_middle_harms_nobody(show: Show) -> None:
    shown = show()
    for _ in range(20):
        client, _ = raw(shown.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()

    assert shown.get("/").status == 200


def test_labels_that_are_expected_and_have_no_backup_are_shown(catalog: Catalog) -> None:
    store = Watch("store", Asked(catalog), lambda: NOW, 3600)
    labels: tuple[Label, ...] = (Label("prod", "forgotten"),)
    source = Watch("source", lambda: labels, lambda: NOW, 3600)
    view = View(catalog.store.url, lambda labels, _: Expected("prod", labels), Here(), lambda _: {})
    made = page_site.Site(view, store, source, lambda: NOW)
    for each in (store, source):
        each.start()
    wait_until(lambda: store.seen.at and source.seen.at, "nothing was read")
    made.edit()
    answer = made.ready("/", {})

    assert answer is not None
    assert b"forgotten" in answer.body
    assert b'last_success_timestamp_seconds{database="forgotten",server="prod"} 0.0' in made.make("/metrics", {}).body


def test_what_pages_show_of_archives_comes_after_the_first_list_and_goes_with_the_backup(catalog: Catalog) -> None:
    taken = [put(catalog, timedelta(hours=hours)) for hours in range(25)]
    read = serve_verb._Reader(catalog)

    assert [len(read().outlines) for _ in range(4)] == [0, 20, 25, 25]
    catalog.delete(taken[0])
    assert set(read().outlines) == {name_of(each) for each in taken[1:]}
    gc.unfreeze()  # what the reading froze is this process's


# --- the whole daemon


def started(here: Site, *arguments: str, **settings: str) -> tuple[Running, int]:
    """`backupd serve`, once it listens, and on which port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    running = here.start("serve", "--port", str(port), *arguments, **settings)

    def alive() -> bool:
        assert running.alive(), running.end()
        with contextlib.suppress(OSError):
            return get(port, "/healthz").status == 200
        return False

    wait_until(alive, "it does not listen")
    return running, port


def test_a_watch_that_is_ended_waits_for_the_answer_that_is_due_and_asks_no_more() -> None:
    asked, answered = threading.Event(), list[int]()

    def ask() -> int:
        asked.set()
        time.sleep(0.3)
        answered.append(len(answered))
        return answered[-1]

    watch = Watch("store", ask, lambda: NOW, 0.001)
    watch.end(0)  # one that was never started has nothing to wait for
    watch = Watch("store", ask, lambda: NOW, 0.001)
    watch.start()
    assert asked.wait(10)
    watch.end(10)

    before = list(answered)
    assert before
    time.sleep(0.5)
    assert answered == before


@pytest.mark.slow
def test_a_daemon_that_is_stopped_while_its_source_hangs_leaves_no_password(
    site: Callable[..., Site], postgres17: PostgresServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        port = str(hanging.getsockname()[1])
        here = site(postgres17, BACKUPD_SOURCE__PORT=port, BACKUPD_SOURCE__DATABASES="app")
        running, _ = started(here)
        wait_until(lambda: [*here.temporary.rglob("pgpass")], "the source is not asked")
        running.send(signal.SIGTERM)
        ended = running.end()

    assert ended.code == 0, ended.stderr
    assert [*here.temporary.iterdir()] == []


@pytest.mark.slow
def test_the_daemon_takes_the_backup_that_is_due_shows_it_and_ends_with_0(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory
) -> None:
    name = database(postgres17)
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=name, BACKUPD_SCHEDULE__CRON="@yearly")
    running, port = started(here)
    wait_until(lambda: f'database="{name}",server="prod",state="good"}} 1.0' in get(port, "/metrics").text, "no backup")
    ready = get(port, "/readyz").text
    counted = get(port, "/metrics").text
    running.send(signal.SIGTERM)
    ended = running.end()

    assert ended.code == 0, ended.stderr
    assert ready == "ready\n"
    assert 'backupd_runs_total{result="ok",verb="backup"} 1.0' in counted
    events = [each["event"] for each in ended.events]
    assert [events.count(event) for event in ("run.started", "run.ended", "serve.stopped")] == [1, 1, 1]
    assert len(here.listed()) == 1
    here.assert_clean()


@pytest.mark.slow
def test_a_daemon_that_is_stopped_aborts_its_run_and_the_next_one_catches_it_up(
    site: Callable[..., Site], postgres17: PostgresServer, large_of: Callable[[PostgresServer], str], wire: Any
) -> None:
    name = large_of(postgres17)
    slow = wire(postgres17, hold_after=2 << 20)
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=name, BACKUPD_SCHEDULE__CRON="@yearly")
    running, _ = started(here, BACKUPD_SOURCE__PORT=str(slow.port))
    assert slow.held.wait(30)
    running.send(signal.SIGTERM)
    ended = running.end()

    assert ended.code == 0, ended.stderr
    assert here.listed() == []
    assert [reason for _, reason, _ in here.failures()] == ["interrupted"]
    here.assert_clean()

    running, _ = started(here)
    wait_until(here.listed, "it was not caught up")
    running.send(signal.SIGTERM)
    assert running.end().code == 0
    assert len(here.listed()) == 1


def sees_one(port: int) -> bool:
    return 'state="good"} 1.0' in get(port, "/metrics").text


@pytest.mark.slow
def test_two_daemons_that_start_together_take_one_backup(
    site: Callable[..., Site], postgres17: PostgresServer, database: DatabaseFactory
) -> None:
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=database(postgres17), BACKUPD_SCHEDULE__CRON="@yearly")
    both = [started(here) for _ in range(2)]
    for _, port in both:
        wait_until(partial(sees_one, port), "a daemon does not see the backup")
    time.sleep(2)  # for a second one to begin
    wait_until(lambda: not any("backupd backup" in text for text in here.children().values()), "a run goes on")
    for running, _ in both:
        running.send(signal.SIGTERM)
        assert running.end().code == 0

    assert len(here.listed()) == 1
    assert here.failures() == []


@pytest.mark.slow
def test_a_run_that_outlasts_its_limit_is_ended_and_the_daemon_goes_on(
    site: Callable[..., Site], postgres17: PostgresServer, large_of: Callable[[PostgresServer], str], wire: Any
) -> None:
    slow = wire(postgres17, hold_after=2 << 20)
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=large_of(postgres17), BACKUPD_SCHEDULE__CRON="@yearly")
    running, port = started(here, BACKUPD_SOURCE__PORT=str(slow.port), BACKUPD_SCHEDULE__RUN_LIMIT="5s")
    assert slow.held.wait(30)
    wait_until(lambda: 'result="interrupted",verb="backup"} 1.0' in get(port, "/metrics").text, "it was not ended")
    running.send(signal.SIGTERM)
    ended = running.end()

    assert ended.code == 0
    assert "run.outlasted" in [each["event"] for each in ended.events]
    assert [reason for _, reason, _ in here.failures()] == ["interrupted"]
    assert here.listed() == []
    here.assert_clean()


@pytest.mark.slow
def test_a_run_that_is_killed_does_not_end_the_daemon(
    site: Callable[..., Site], postgres17: PostgresServer, large_of: Callable[[PostgresServer], str], wire: Any
) -> None:
    slow = wire(postgres17, hold_after=2 << 20)
    here = site(postgres17, BACKUPD_SOURCE__DATABASES=large_of(postgres17), BACKUPD_SCHEDULE__CRON="@yearly")
    running, port = started(here, BACKUPD_SOURCE__PORT=str(slow.port))
    assert slow.held.wait(30)
    [child] = [pid for pid, text in here.children(running.pid).items() if " backupd backup " in text]
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: 'result="interrupted",verb="backup"} 1.0' in get(port, "/metrics").text, "it was not noticed")
    running.send(signal.SIGTERM)

    assert running.end().code == 0
    assert here.listed() == []


def test_a_port_that_is_taken_ends_with_2(site: Callable[..., Site], postgres17: PostgresServer) -> None:
    with listening("127.0.0.1", 0) as listener:
        ended = site(postgres17).run("serve", "--port", str(listener.getsockname()[1]))

    assert ended.code == 2
    assert "--port" in ended.error["hint"]


@pytest.mark.slow
def test_a_store_that_cannot_be_read_at_the_start_is_shown_as_such(
    site: Callable[..., Site], postgres17: PostgresServer
) -> None:
    here = site(postgres17)
    here.store.rmdir()
    running, port = started(here, BACKUPD_SERVE__TOKEN=TOKEN)
    assert get(port, "/").status == 401
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    page = wait_until(lambda: (found := get(port, DOCUMENT, **bearer)).status == 200 and found, "there is no page")
    ready = get(port, "/readyz")
    running.send(signal.SIGTERM)
    ended = running.end()

    assert json.loads(page.body)["error"]
    assert (ready.status, ready.text) == (503, "not ready: store\n")
    assert ended.code == 0
    assert TOKEN not in ended.stderr
