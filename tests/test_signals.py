"""Signals: an interruption at any instant ends the process in time, with its own exit code, and takes no lock along."""

import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backupd import signals

PROJECT = Path(__file__).resolve().parent.parent

CHILD = """
import os, signal, sys, threading, time
from backupd import process, signals, threads
from backupd.errors import Interrupted

instant = 0

def look(frame, event, argument):
    global instant
    instant -= 1
    if instant == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return look

def use_a_pool():
    with threads.pool(2, "work") as pool:
        for future in threads.completed([pool.submit(time.sleep, 0.0005) for _ in range(3)]):
            future.result()

def run_a_child():
    process.run(["true"], {"PATH": os.environ["PATH"]})

def child(at):
    global instant
    signals.install()
    instant = at
    code = 0
    try:
        sys.settrace(look)
        globals()[sys.argv[1]]()
        sys.settrace(None)
        time.sleep(0.05)  # a signal may have been put off until now
        if instant > 0:
            code = 77
    except Interrupted as exc:
        code = exc.exit_code
    finally:
        sys.settrace(None)
    signals.ignore()
    threading._shutdown()
    os._exit(code)

first, step, last = map(int, sys.argv[2:])
for at in range(first, last, step):
    pid = os.fork()
    if pid == 0:
        try:
            child(at)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.0005)
    if ended[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(at, "hangs", flush=True)
    else:
        print(at, os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("work", "instants"), [("use_a_pool", (1, 5, 1600)), ("run_a_child", (600, 1, 1300))])
def test_what_is_interrupted_at_any_line_ends_and_says_so(work: str, instants: tuple[int, int, int]) -> None:
    """Line by line through our code and the standard library's, where locks are taken and children reaped."""
    argv = [sys.executable, "-c", CHILD, work, *map(str, instants)]
    finished = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    ends = dict(line.split() for line in finished.stdout.splitlines())
    assert finished.returncode == 0, finished.stderr
    assert set(ends.values()) <= {"143", "77"}, {at: end for at, end in ends.items() if end not in ("143", "77")}
    assert list(ends.values()).count("143") > 60  # else the last line came too early, and little was tried


def test_a_clean_up_that_does_not_end_is_given_up() -> None:
    script = """
import signal, time
from backupd import signals
signals.GRACE_SECONDS = 0.3
signals.install()
try:
    signal.raise_signal(signal.SIGTERM)
finally:
    while True:
        time.sleep(60)
"""
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert (finished.returncode, finished.stdout) == (143, "")
    assert "clean-up after signal 15" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_signal_waits_for_the_end_of_what_is_whole_but_not_of_its_block() -> None:
    script = """
import contextlib, signal, time
from backupd import signals
from backupd.errors import Interrupted
signals.install()
said = []

@contextlib.contextmanager
@signals.whole
def resource():
    signal.raise_signal(signal.SIGINT) if early else None
    time.sleep(0.05)
    said.append("made")
    try:
        yield None
    finally:
        time.sleep(0.05)
        said.append("ended")

for early in (True, False):
    try:
        with resource():
            time.sleep(0.05)
            said.append("in the block")
            signal.raise_signal(signal.SIGINT)
            said.append("never")
    except Interrupted:
        print(*said)
        said.clear()
        signals.install()
"""
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert finished.stderr == ""
    assert finished.stdout.splitlines() == ["made ended", "made in the block ended"]


def _frame_of(run: Callable[[], Iterator[object]]) -> types.FrameType:
    generator = run()
    next(generator)
    frame: types.FrameType = generator.gi_frame  # type: ignore[attr-defined]
    return frame


def test_only_code_that_would_lose_a_lock_or_the_signal_is_delicate() -> None:
    def plain() -> Iterator[object]:
        yield None

    def __del__() -> Iterator[object]:  # noqa: N807
        yield None

    @signals.whole
    def marked() -> Iterator[object]:
        yield None

    assert not signals.is_delicate(_frame_of(plain))
    assert not signals.is_delicate(None)
    assert signals.is_delicate(_frame_of(__del__))
    assert signals.is_delicate(_frame_of(marked))
    for module in ("threading", "queue", "concurrent.futures.thread", "contextlib", "weakref"):
        space: dict[str, Callable[[], Iterator[object]]] = {"__name__": module}  # type: ignore[dict-item]
        exec("def run():\n    yield", space)
        assert signals.is_delicate(_frame_of(space["run"])), module


def test_a_signal_that_was_blocked_before_the_start_arrives() -> None:
    """As the image starts it; without an `env` that can block signals nobody could test that here."""
    argv = ["env", "--block-signal=TERM,INT", "sh", "-c", 'kill -TERM $$; exec "$0" -m backupd list', sys.executable]
    finished = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert (finished.returncode, finished.stdout) == (143, ""), finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_a_signal_at_any_moment_of_the_start_ends_with_143() -> None:
    """Imports run callbacks that swallow exceptions, and one that breaks off fails for who imports next."""
    ends = dict[int, str]()
    for number in range(60):
        argv = [sys.executable, "-c", "import backupd.__main__ as m; print('x', flush=True); m.main()", "--version"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(argv, cwd=PROJECT, text=True, **pipes) as child:  # type: ignore[call-overload]
            child.stdout.readline()
            time.sleep(number * 0.008)
            child.send_signal(signal.SIGTERM)
            _, stderr = child.communicate(timeout=30)
        ends[child.returncode] = stderr
        assert "given up" not in stderr, stderr
    assert ends.keys() <= {143, 0, -15}, ends
    assert 143 in ends


def test_an_interruption_that_is_swallowed_is_raised_again_but_never_in_a_clean_up() -> None:
    script = """
import os, signal, time
from backupd import signals
from backupd.errors import Interrupted
signals.install()
said = []

def callback():
    signal.raise_signal(signal.SIGTERM)

os.register_at_fork(before=callback)
try:
    if os.fork() == 0:
        os._exit(0)
    said.append("swallowed")
    try:
        time.sleep(20)
    finally:
        try:
            raise ValueError
        except ValueError:
            time.sleep(0.5)
        said.append("cleaned up")
except Interrupted as exc:
    signals.ignore()
    time.sleep(0.5)
    print(*said, exc.exit_code)
"""
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert finished.stdout.splitlines() == ["swallowed cleaned up 143"], finished.stderr


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    script = """
import os, signal
from backupd import signals
from backupd.errors import Interrupted
signals.install()
try:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        print("cleaned up")
except Interrupted as exc:
    print(exc.exit_code)
"""
    finished = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert finished.stdout.split("\n")[:2] == ["cleaned up", "143"], finished.stderr
