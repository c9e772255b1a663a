"""Attacks backupd, campaign by campaign, and says which attacks broke a promise.

usage: scripts/attack [CAMPAIGN...] [--seed N] [--count N] [--only LABEL] [--record]

The same seed makes the same attacks. A failed one is repeated by itself with its campaign, its seed and --only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from attack import record, run
from attack.outcome import Outcome


def main(arguments: Sequence[str]) -> int:
    """Runs the campaigns that are named, else all; 1 where any attack failed or none was made."""
    options = _options(arguments)
    lines, failed = [], False
    for name in options.campaigns or run.names():
        began = time.monotonic()
        ended = _attack(name, options)
        bad = [outcome for outcome in ended if not outcome.ok]
        seconds = time.monotonic() - began
        print(f"{name}: {len(ended)} attacks, {len(bad)} failed, {seconds:.0f} s", flush=True)
        for outcome in bad:
            print(f"  scripts/attack {name} --seed {options.seed} --only '{outcome.label}'")
        failed |= bool(bad) or not ended
        counts = str(len(ended)), str(len(bad)), str(options.seed), f"{seconds:.0f}"
        if options.record and getattr(run.load(name), "TELLS_FIGURES", False):
            record.write_figures(ended)
        lines.append(record.Line(name, run.title(run.load(name)), *counts, f"{datetime.now(UTC):%Y-%m-%d}", _commit()))
    if options.record:
        record.write(lines)
    return int(failed)


def _attack(name: str, options: argparse.Namespace) -> list[Outcome]:
    """One campaign, told on the way."""
    campaign = run.load(name)
    count = options.count or campaign.WHOLE
    ended: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix=f"attack-{name}-") as folder:
        Path(folder).chmod(0o711)  # servers run as another user
        for outcome in run.outcomes(campaign, options.seed, count, Path(folder), options.only):
            ended.append(outcome)
            word = "ok" if outcome.ok else "FAILED"
            print(f"{name} {len(ended)}/{count} {word} {outcome.label}: {outcome.detail}", flush=True)
    return ended


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/attack", description=f"Campaigns: {', '.join(run.names())}.")
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help="which ones, else all")
    parser.add_argument("--seed", type=int, default=run.SEED, help="which attacks, of all that are possible")
    parser.add_argument("--count", type=int, help="how many of each campaign, else as many as make it whole")
    parser.add_argument("--only", metavar="LABEL", help="the attack of that label alone")
    parser.add_argument("--record", action="store_true", help="write the counts into RELIABILITY.md")
    options = parser.parse_args(arguments)
    unknown = set(options.campaigns) - set(run.names())
    if unknown:
        parser.error(f"no such campaign: {', '.join(sorted(unknown))}")
    if options.record and options.only:
        parser.error("--record writes of whole campaigns, and --only runs a part of one")
    return options


def _commit() -> str:
    argv = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
