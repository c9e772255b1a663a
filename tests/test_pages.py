"""The status page's HTML: what it says, that its links lead somewhere, that it can be read by all, and no name acts."""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from urllib.parse import unquote, urljoin, urlsplit

import made_fleet
import pytest
from made_backups import made_backup, made_manifest
from made_fleet import NOW
from read_html import Page, faults

from backupd.errors import StoreError
from backupd.manifest import Backup, Filter
from backupd.render import printable
from backupd.selector import Label, Name, name_of
from backupd.selector import unquote as unquote_name
from backupd.status import Status

pytest.importorskip("jinja2")

from backupd.web import pages
from backupd.web.commands import Here, line, quoted, restore_steps
from backupd.web.summary import details

HERE = Here("backupd", "https://example.org/runbooks")
PLACE = "http://status.example"

FLEETS: dict[str, Callable[[], Status]] = {
    "healthy": lambda: made_fleet.small(healthy=True),
    "troubled": made_fleet.small,
    "hostile": made_fleet.hostile,
    "absurd": made_fleet.absurd,
    "empty": lambda: made_fleet.seen([]),
}


@cache
def fleet(name: str) -> Status:
    return FLEETS[name]()


def page_at(status: Status, address: str) -> str | None:
    """The page at an address, as a server finds it."""
    parts = urlsplit(address)
    match unquote(parts.path).split("/")[1:]:
        case [""]:
            return pages.overview(status, HERE)
        case ["database", server, database]:
            number = re.fullmatch(r"page=(\d+)", parts.query)
            return pages.database(status, HERE, label(server, database), int(number[1]) if number else 1)
        case ["backup", server, database, backup_id]:
            return pages.backup(status, HERE, Name(label(server, database), backup_id))
        case ["static", name]:
            return "" if name in pages.assets() else None
    return None


def label(server: str, database: str) -> Label:
    return Label(unquote_name(server) or "", unquote_name(database) or "")


def crawl(status: Status) -> Iterator[tuple[str, Page]]:
    """The pages that links lead to from the overview; of backups the first few of each page are enough.

    Raises where a link leads nowhere.
    """
    waiting, seen = [f"{PLACE}/"], set()
    while waiting:
        address = waiting.pop()
        seen.add(address)
        html = page_at(status, address)
        assert html is not None, f"nothing is at {address}"
        if "/static/" in address:
            continue
        page = Page(html)
        yield address, page
        waiting += [target for target in targets(address, page) if target not in seen and target not in waiting]


def targets(address: str, page: Page) -> Iterator[str]:
    """Where the links of a page lead on this site, without filters; of backups the first two."""
    backups = 0
    for link in (*page.links(), *(str(each.attributes["href"]) for each in page.all("link"))):
        found = urljoin(address, link).partition("#")[0]
        backups += "/backup/" in found
        if found.startswith(PLACE) and "?state=" not in found and ("/backup/" not in found or backups <= 2):
            yield found


@cache
def pages_of(name: str) -> dict[str, Page]:
    return dict(crawl(fleet(name)))


@pytest.mark.parametrize("name", FLEETS)
def test_every_link_leads_to_a_page_that_can_be_read_by_all(name: str) -> None:
    found = pages_of(name)

    assert not {address: wrong for address, page in found.items() if (wrong := faults(page))}
    assert len([address for address in found if "/database/" in address]) == len(fleet(name).databases)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("healthy", "Every database is safe."),
        ("troubled", "3 databases are in danger."),
        ("empty", "There is no backup yet."),
    ],
)
def test_the_first_heading_answers_whether_every_database_is_safe(name: str, said: str) -> None:
    page = Page(pages.overview(fleet(name), HERE))

    assert page.one("h1").text == said
    assert said.rstrip(".") in page.one("title").text


def test_a_database_that_needs_a_look_is_named_in_the_first_heading() -> None:
    status = made_fleet.seen(list(fleet("troubled").databases[3].backups))

    assert Page(pages.overview(status, HERE)).one("h1").text == "1 database needs a look."


def test_the_overview_says_of_each_database_how_old_its_newest_proofs_are() -> None:
    page = Page(pages.overview(fleet("troubled"), HERE))
    rows = {" ".join(each.text.split()) for each in page.all("tr")}

    assert any("prod/events" in row and "3 d of 26 h" in row for row in rows)
    assert any("prod/ledger" in row and "never" in row for row in rows)
    assert any("prod/app" in row and "7 h of 26 h" in row and "21 min 26 s" in row for row in rows)


def test_what_failed_is_shown_with_its_hint_command_and_runbook() -> None:
    page = Page(pages.overview(fleet("troubled"), HERE))

    assert "connection refused" in page.text
    assert "3 times in a row" in page.text
    assert "See that the server runs" in page.text
    assert "backupd backup events" in page.text
    assert "https://example.org/runbooks/backup-is-failing.md" in page.links()


def test_without_an_address_runbooks_are_named() -> None:
    page = Page(pages.overview(fleet("troubled"), Here()))

    assert "chart/runbooks/backup-is-failing.md" in page.text
    assert not [link for link in page.links() if "runbook" in link]


def test_runbooks_that_are_named_exist() -> None:
    from test_runbooks import RUNBOOKS

    named = set(re.findall(r"chart/runbooks/([a-z-]+)\.md", pages.overview(fleet("troubled"), Here())))

    assert named <= {path.stem for path in RUNBOOKS}


def test_what_retention_removes_next_is_shown_with_its_reason() -> None:
    text = Page(pages.overview(fleet("healthy"), HERE)).text

    assert "after the next backup" in text
    assert "beyond the newest 14" in text


def test_a_broken_object_is_named() -> None:
    assert "staging/app/20261101T040000Z-0badc0de.json" in Page(pages.overview(fleet("troubled"), HERE)).text


def test_an_old_reading_shows_its_age_and_what_the_store_said() -> None:
    healthy = fleet("healthy")
    reading = replace(healthy.reading, read_at=NOW - timedelta(hours=5), error=StoreError("bucket does not answer"))
    again = replace(healthy, reading=reading)
    page = Page(pages.overview(again, HERE))

    assert "Read 5 h ago" in page.text
    assert "needs a look" not in Page(pages.overview(healthy, HERE)).one("h1").text


def test_a_store_that_was_never_read_promises_nothing() -> None:
    empty = fleet("empty")
    status = replace(empty, reading=replace(empty.reading, read_at=None))

    assert Page(pages.overview(status, HERE)).one("h1").text == "The store was not read yet."


def test_the_page_of_a_backup_has_the_commands_that_restore_it() -> None:
    status = fleet("healthy")
    backup = next(each for each in status.databases if each.label.database == "app").backups[0]
    page = Page(str(pages.backup(status, HERE, name_of(backup))))
    commands = [each.text for each in page.all("code")]

    assert f"backupd restore prod/app@{backup.id} --as app_restored" in commands
    assert f"backupd restore prod/app@{backup.id} --replace app --plan" in commands
    assert any(f"s3://backups-eu/postgres/prod/app/{backup.id}.tar" in each for each in commands)


def test_the_page_of_a_backup_has_its_contract_where_it_is_known_and_else_the_command_for_it() -> None:
    status = fleet("healthy")
    known, unknown = (
        next(each for each in status.databases if each.label.database == name).backups[0] for name in ("app", "search")
    )

    assert [each.text for each in Page(str(pages.backup(status, HERE, name_of(known)))).all("th", "td")][4:7] == [
        "public.orders",
        "9,812,004",
        "11.0 GiB",
    ]
    assert f"backupd tables prod/search@{unknown.id}" in Page(str(pages.backup(status, HERE, name_of(unknown)))).text


def test_a_contract_that_cannot_be_read_says_why() -> None:
    from backupd.outline import Outline

    backup = _encrypted()
    status = made_fleet.seen([backup], outlines={name_of(backup): Outline(unknown="no identity opens its index")})
    text = Page(str(pages.backup(status, HERE, name_of(backup)))).text

    assert "This backup is encrypted." in text
    assert "no identity opens its index" in text


def test_a_suspect_backup_is_marked_and_its_reason_is_given() -> None:
    status = fleet("troubled")
    backup = next(each for each in status.databases if each.label.database == "catalog").backups[0]
    text = Page(str(pages.backup(status, HERE, name_of(backup)))).text

    assert "Suspect: 188 rows in all" in text
    assert "stored: not yet" in text


def test_no_page_claims_more_than_was_proven() -> None:
    status = fleet("healthy")
    backups = next(each for each in status.databases if each.label.database == "billing").backups
    drilled = next(each for each in backups if each.note("drilled"))
    text = Page(str(pages.backup(status, HERE, name_of(drilled)))).text

    assert "restored: yes" in text
    assert "identical: not yet" in text


def test_where_nothing_is_there_is_no_page() -> None:
    status = fleet("healthy")
    app = Label("prod", "app")

    assert pages.database(status, HERE, Label("prod", "nothing")) is None
    assert pages.database(status, HERE, app, 2) is None
    assert pages.database(status, HERE, app, 0) is None
    assert pages.backup(status, HERE, Name(app, "20000101T000000Z-00000000")) is None


@pytest.mark.parametrize(("path", "home"), [("/nothing", "./"), ("/a/b", "../"), ("/a/b/c/", "../../../")])
def test_the_page_for_nothing_leads_home(path: str, home: str) -> None:
    page = Page(pages.not_found(path))

    assert home in page.links()
    assert urljoin(PLACE + path, home) == f"{PLACE}/"
    assert not faults(page)


# --- names that act


def test_hostile_names_are_text_on_every_page() -> None:
    for address, page in pages_of("hostile").items():
        assert not {each.tag for each in page.elements} & {"b", "i", "img"} - _own_tags(address), address
        assert all(each.text == "" for each in page.all("script"))
        assert "49" not in page.one("h1").text

    text = Page(pages.overview(fleet("hostile"), HERE)).text
    assert all(printable(name) in text for name in made_fleet.HOSTILE)


def _own_tags(address: str) -> set[str]:
    return {"b"} if "/backup/" in address or "/database/" in address else set()


def test_what_is_not_printable_is_escaped_wherever_it_is_shown() -> None:
    for page in pages_of("hostile").values():
        assert "\u202e" not in page.html
        assert "\x1b" not in page.html


@pytest.mark.parametrize("name", made_fleet.HOSTILE)
def test_a_database_of_any_name_has_an_address_that_a_browser_leaves_alone(name: str) -> None:
    path = pages.database_path(Label("..", name))
    address = urljoin(f"{PLACE}/", path)

    assert re.fullmatch(r"database/[A-Za-z0-9_.%-]+/[A-Za-z0-9_.%-]+", path)
    assert "%2e" not in path.lower().replace("%252e", "")
    assert urlsplit(address).path == f"/{path}"


@pytest.mark.parametrize(
    "argument", ["app", "two words", "it's", "$(reboot)", "a\nb", "\x1b[2J'\\", "\u202eabc", "é\u0301"]
)
def test_a_command_reaches_a_shell_as_it_was_meant(argument: str) -> None:
    text = line(Here("printf %s"), (argument,))
    said = subprocess.run(["bash", "-c", text], capture_output=True, check=True)

    assert said.stdout.decode() == argument
    assert text.isprintable()


def test_printable_arguments_are_for_every_posix_shell() -> None:
    assert shlex.split(quoted("it's $HOME")) == ["it's $HOME"]


def _encrypted() -> Backup:
    return made_backup(replace(made_manifest(NOW - timedelta(hours=1)), recipients=("age1abc",)))


def test_a_filtered_backup_is_not_offered_as_a_replacement() -> None:
    backup = made_backup(made_manifest(NOW, patterns=Filter(include=("public.*",))))

    assert not [step for step in restore_steps(Here(), backup, "file:///b") if "--replace" in step.command]


def test_the_hidden_filter_of_an_encrypted_backup_is_not_shown_as_none() -> None:
    hidden = Filter(include=("public.*",)).hidden()
    shown = dict(details(replace(_encrypted(), manifest=replace(_encrypted().manifest, filter=hidden))))

    assert shown["Filter"].startswith("by patterns that an encrypted backup does not name")
    assert dict(details(made_backup(made_manifest(NOW, patterns=Filter(include=("public.*",))))))["Filter"] == (
        "include public.*; exclude nothing"
    )


def test_an_encrypted_backup_is_not_said_to_open_with_tar_alone() -> None:
    (into_a_new, *_, by_hand) = restore_steps(Here(), _encrypted(), "file:///b")

    assert "private keys" in into_a_new.text
    assert "age" in by_hand.text
    assert "pg_restore" not in by_hand.command


def test_a_store_folder_with_spaces_is_quoted() -> None:
    (*_, by_hand) = restore_steps(Here(), made_backup(made_manifest(NOW)), "file:///my backups")

    assert shlex.split(by_hand.command)[2].startswith("/my backups/prod/app/")


# --- many


@cache
def large() -> Status:
    return made_fleet.large()


def test_three_hundred_databases_are_named_on_a_page_of_bounded_size() -> None:
    status = large()
    html = pages.overview(status, HERE)
    page, text = Page(html), html.partition("<main")[2]

    assert sum(len(each.backups) for each in status.databases) == 10_000
    assert len(html) < 200_000
    assert all(f"tenant_{number:03}<" in text for number in range(300))
    assert not faults(page)


def test_a_fleet_is_filtered_by_name_and_state() -> None:
    status = large()
    by_name = Page(pages.overview(status, HERE, pages.Filter("TENANT_01")))
    by_state = Page(pages.overview(status, HERE, pages.Filter(state="danger")))
    none = Page(pages.overview(status, HERE, pages.Filter("<nothing>")))

    assert len([*by_name.all("tbody")]) == 1
    assert len([each for each in by_name.all("tr") if "tenant_" in each.text]) == 10
    assert len([each for each in by_state.all("tr") if "tenant_" in each.text]) == status.count("danger")
    assert "No database is like that." in none.text
    assert next(each for each in none.all("input")).attributes["value"] == "<nothing>"


def test_a_filter_that_fits_all_shows_a_bounded_number_and_says_how_many_more() -> None:
    html = pages.overview(large(), HERE, pages.Filter("tenant"))

    assert "200 more are not shown" in html
    assert len(html) < 400_000


def test_many_backups_of_one_database_are_on_pages_and_each_is_once_on_them() -> None:
    kind = made_fleet.Kind(Label("prod", "app"), 3, 0.1, days=250)
    status = made_fleet.seen(made_fleet.backups_of(kind, None))
    tables = [str(pages.database(status, HERE, kind.label, page)).partition('id="backups"')[2] for page in (1, 2, 3)]
    found = re.findall(r'href="([^"?]+/backup/[^"]+)"', "".join(tables))

    assert len(found) == len(set(found)) == 250
    assert pages.database(status, HERE, kind.label, 4) is None


# --- files


def test_an_asset_is_named_by_its_content_and_every_page_links_to_those_that_exist() -> None:
    assert {name.rpartition(".")[2] for name in pages.assets()} == {"css", "js", "svg"}
    assert all(re.fullmatch(r"[a-z]+-[0-9a-f]{16}\.[a-z]+", name) for name in pages.assets())


def test_no_file_of_the_page_loads_anything_from_elsewhere() -> None:
    for asset in pages.assets().values():
        text = asset.data.decode().replace("http://www.w3.org/2000/svg", "")

        assert not re.search(r"https?:|url\(|@import|eval|innerHTML", text), asset.name


def _colours(css: str, at: str) -> dict[str, str]:
    block = css.partition(at)[2].partition("}")[0]
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("at", [":root {\n", "(prefers-color-scheme: dark) {\n  :root {"], ids=["light", "dark"])
def test_every_colour_of_words_and_of_marks_stands_out_as_wcag_aa_asks(at: str) -> None:
    css = next(asset.data.decode() for name, asset in pages.assets().items() if name.endswith(".css"))
    colours = _colours(css, at)
    words = {"ink", "soft", "safe", "warning", "danger", "retired", "link"}
    grounds = {"paper", "sheet", "safe-wash", "warning-wash", "danger-wash"}
    marks = {"stored", "verified", "restored", "identical", "safe", "warning", "danger"}

    weak = {(word, ground) for word in words for ground in grounds if _contrast(colours[word], colours[ground]) < 4.5}
    faint = {mark for mark in marks if _contrast(colours[mark], colours["paper"]) < 3}

    assert (weak, faint) == (set(), set())
