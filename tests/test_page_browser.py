"""The status page in a real browser, from the real server: read by axe, by keyboard, on a phone, without a script."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urljoin

import made_fleet
import pytest
from fix_tools import wait_until
from made_fleet import EXPECTED, HOSTILE, NOW
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Page, expect, sync_playwright

from backupd.report import report
from backupd.selector import Label, name_of
from backupd.serve import listening, serving
from backupd.site import Site, View
from backupd.status import Status
from backupd.watch import Watch
from backupd.web import pages
from backupd.web.commands import Here

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
FLEETS: dict[str, Callable[[], Status]] = {
    "troubled": cache(made_fleet.small),
    "hostile": cache(made_fleet.hostile),
    "large": cache(made_fleet.large),
}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    if not shutil.which(CHROMIUM):
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, str]]:
    """The address of each fleet's page."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(serve(make())) for name, make in FLEETS.items()}


@contextlib.contextmanager
def serve(status: Status) -> Iterator[str]:
    """Serves a made-up status as `backupd serve` does."""
    store = Watch("store", lambda: made_fleet.holdings(status), lambda: NOW, 3600)
    here = Here("docker compose run --rm backupd", "https://example.org/runbooks")
    site = Site(View(status.reading.store_url, lambda *_: EXPECTED, here, lambda _: {}), store, None, lambda: NOW)
    store.start()
    wait_until(lambda: store.seen.at, "the store was not read")
    site.edit()
    with listening("127.0.0.1", 0) as listener, serving(listener, site, None):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


@contextlib.contextmanager
def open_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page of a context of its own, on which nothing may go wrong: no error in its console, no dialog."""
    wrong: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def hear_dialog(dialog: Dialog) -> None:
        wrong.append(dialog.message)
        dialog.dismiss()

    with contextlib.closing(browser.new_context(**options)) as context:
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", hear_dialog)
        yield page
    assert not wrong


def addresses(name: str) -> list[str]:
    """The kinds of pages there are, of the worst database of a fleet."""
    worst = FLEETS[name]().databases[0]
    return ["", pages.database_path(worst.label), pages.backup_path(name_of(worst.backups[0]))]


def axe(page: Page, within: str = "html") -> list[str]:
    """What axe finds wrong, by rule and place."""
    page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("([within, rules]) => axe.run(within, {runOnly: rules})", [within, RULES])
    return [f"{each['id']}: {each['nodes'][0]['target']} ({len(each['nodes'])})" for each in found["violations"]]


@pytest.mark.parametrize(
    ("size", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")], ids=["phone", "desktop in the dark"]
)
@pytest.mark.parametrize("name", ["troubled", "hostile"])
def test_axe_finds_nothing_wrong_on_any_kind_of_page(
    browser: Browser, served: dict[str, str], name: str, size: dict[str, int], scheme: str
) -> None:
    with open_page(browser, viewport=size, color_scheme=scheme) as page:
        for address in addresses(name):
            page.goto(served[name] + address)

            assert axe(page) == [], address


def test_axe_finds_nothing_wrong_with_the_names_of_three_hundred(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser, viewport=DESKTOP) as page:
        page.goto(served["large"])

        assert page.locator("details.wall a").count() == 300
        assert axe(page, "details.wall, form") == []


def test_axe_finds_nothing_wrong_with_a_report_which_fits_a_phone(browser: Browser) -> None:
    with open_page(browser, viewport=PHONE, color_scheme="dark") as page:
        page.set_content(pages.audit(report(FLEETS["troubled"](), NOW - timedelta(days=3), NOW)))

        assert axe(page) == []
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


@pytest.mark.parametrize("width", [320, 820, 1440])
def test_no_page_is_wider_than_its_screen(browser: Browser, served: dict[str, str], width: int) -> None:
    with open_page(browser, viewport={"width": width, "height": 900}) as page:
        for name in FLEETS:
            for address in addresses(name):
                page.goto(served[name] + address)
                beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

                assert beyond == 0, (name, address)


def test_every_link_of_the_page_is_answered(browser: Browser, served: dict[str, str]) -> None:
    home = served["troubled"]
    with open_page(browser) as page:
        waiting, seen = [home], set()
        while waiting:
            address = waiting.pop()
            seen.add(address)
            answer = page.goto(address)
            assert answer is not None
            assert answer.status == 200, address
            links = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href.split('#')[0])")
            backups = [link for link in links if "/backup/" in link][:2]
            others = [link for link in links if link.startswith(home) and "/backup/" not in link]
            waiting += [link for link in {*backups, *others} if link not in seen and link not in waiting]

    assert len(seen) > 2 * len(FLEETS["troubled"]().databases)


def test_hostile_names_are_shown_and_do_nothing(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser) as page:
        page.goto(served["hostile"])
        text = page.inner_text("main")

        assert HOSTILE[0] in text
        assert "{{ 7 * 7 }}" in text
        assert page.locator("img, script:not([src]), main b, iframe").count() == 0
        for name in HOSTILE:
            answer = page.goto(urljoin(served["hostile"], pages.database_path(Label("prod", name))))
            assert answer is not None
            assert answer.status == 200, name


def test_a_copy_button_copies_the_command(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser, permissions=["clipboard-read", "clipboard-write"]) as page:
        page.goto(served["troubled"] + addresses("troubled")[2])
        command = page.locator(".command").first
        command.get_by_role("button").click()

        expect(command.get_by_text("Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == command.locator("code").inner_text()
        assert " restore " in command.locator("code").inner_text()


def test_where_a_browser_gives_no_clipboard_the_command_is_selected(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser) as page:
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.goto(served["troubled"] + addresses("troubled")[2])
        command = page.locator(".command").first
        command.get_by_role("button").click()

        assert page.evaluate("getSelection().toString()") == command.locator("code").inner_text()


def test_without_a_script_everything_is_there_but_the_copy_buttons(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser, java_script_enabled=False) as page:
        page.goto(served["large"])
        page.get_by_label("Name").fill("tenant_01")
        page.get_by_role("button", name="Show").click()

        assert page.get_by_role("row").count() == 11
        assert "search=tenant_01" in page.url

        page.goto(served["troubled"] + addresses("troubled")[2])
        assert page.get_by_role("heading", name="Restore it").is_visible()
        assert not page.get_by_role("button").count()


def test_the_first_stop_of_the_keyboard_leads_to_the_content(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser) as page:
        page.goto(served["troubled"])
        page.keyboard.press("Tab")
        skip = page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Enter")

        assert skip == "To the content"
        assert page.evaluate("document.activeElement.id") == "main"


def test_a_screen_reader_hears_the_answer_each_database_and_its_days(browser: Browser, served: dict[str, str]) -> None:
    with open_page(browser, viewport=PHONE) as page:
        page.goto(served["troubled"])
        row = (
            page.get_by_role("table")
            .first.get_by_role("row")
            .filter(has=page.get_by_role("rowheader", name="prod/events"))
        )

        assert page.get_by_role("heading", level=1).inner_text() == "3 databases are in danger."
        assert row.get_by_role("img", name="danger").count() == 1
        assert row.get_by_role("img", name="Days of the last 30").count() == 1
        assert row.get_by_role("cell").count() == 6


def test_dark_is_dark(browser: Browser, served: dict[str, str]) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        with open_page(browser, color_scheme=scheme) as page:
            page.goto(served["troubled"])
            grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert grounds["light"] != grounds["dark"]
