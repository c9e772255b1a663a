"""In CI nothing is skipped silently: what a test lacks there fails it, unless it is something that cannot be had.

One rule for all tests, instead of a look at CI wherever one skips: the next one that skips is under it too.
"""

import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

_Report = TypeVar("_Report", pytest.TestReport, pytest.CollectReport)

_SHARED = Path(__file__).resolve().parents[2] / "shared"

ALWAYS = (
    "this service ignores If-None-Match",
    "nothing outlives a create here",
    "ICU is not supported in this build",
    "this PostgreSQL was built without that",
)
"""A service or a build that is made so: others of the same tests have what it lacks."""

WITHOUT: Mapping[str, tuple[str, ...]] = {
    "root": ("only root ", "mounting is not permitted here"),
    "images": ("no container engine answers",),
    "cluster": ("no cluster", "no helm", "kubectl", "helm not found"),
}
"""What may be skipped where CI runs as somebody else than root, or where its machine has no images or no cluster."""


def may_skip(reason: str, lacking: frozenset[str]) -> bool:
    """Whether CI may skip a test for that reason, where it lacks these keys of WITHOUT."""
    return reason.startswith((*ALWAYS, *(words for key in lacking for words in WITHOUT[key])))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails what skipped itself and may not."""
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same of a whole module."""
    return _judged((yield))


def _judged(report: _Report) -> _Report:
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not may_skip(reason, _lacking()):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI: {reason}"
    return report


def _lacking() -> frozenset[str]:
    there = {key: (_SHARED / key).is_dir() for key in ("images", "cluster")} | {"root": os.geteuid() == 0}
    return frozenset(key for key, has in there.items() if not has)
