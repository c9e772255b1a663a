"""Who is told: notifications and the dead-man's switch of this installation, without secrets, and never a failure."""

from collections.abc import Sequence

from backupd import log, notice, render, settings
from backupd.installation import Installation
from backupd.notice import Notice

_log = log.get_logger()


def send(here: Installation, server: str | None, notices: Sequence[Notice]) -> None:
    """Sends one message with all of the notices, if there are any and anybody is to be told."""
    if notices:
        send_text(here, *notice.message(server, notices))


def send_text(here: Installation, title: str, body: str) -> None:
    """Sends a message; what did not take it is logged."""
    if not (urls := here.settings.notify.send_to):
        return
    from backupd import notify

    known = settings.secrets(here.settings)
    plain = render.printable_lines(log.scrub(body, known))
    for problem in notify.send(urls, render.printable(log.scrub(title, known)), plain):
        _log.warning("notify.failed", message=problem, action="see BACKUPD_NOTIFY__URLS")


def ping(here: Installation, ending: str, body: str) -> None:
    """Posts to the dead-man's switch, if there is one."""
    if (url := here.settings.notify.ping_to) is None:
        return
    from backupd import notify

    if problem := notify.ping(url, ending, log.scrub(body, settings.secrets(here.settings))):
        _log.warning("ping.failed", message=problem, action="see BACKUPD_NOTIFY__PING_URL")
