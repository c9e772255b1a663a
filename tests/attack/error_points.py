"""A system call that fails: no room, input/output error, no descriptors, interrupted, refused, cut short.

At points as those of crash_points, backupd or its client goes on with the error. It may fail, but not as a bug does,
and what must be true after a crash must be true after an error.

A socket on which only sending fails is none of them: libpq then waits for the server's last words, as it should, and
an injected error leaves a server that has none. Connections that break are the network's campaign.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from attack.ground import ground
from attack.outcome import Attack
from attack.points import mixed, strike
from attack.traced import BACKUPD

WHOLE, PART = 500, 10

_FILES = ("error=EIO", "error=ENOSPC", "error=EINTR")
FAULTS = {
    "openat": ("error=EMFILE", "error=EIO", "error=ENOSPC", "error=EINTR"),
    "mkdir": ("error=ENOSPC", "error=EIO"),
    "read": ("error=EIO", "error=EINTR"),
    "readv": ("error=EIO", "error=EINTR"),
    "pread64": ("error=EIO", "error=EINTR"),
    "write": (*_FILES, "retval=0"),
    "writev": _FILES,
    "fsync": ("error=EIO", "error=ENOSPC"),
    "fadvise64": ("error=EIO",),
    "link": ("error=EIO", "error=ENOSPC", "error=EPERM"),
    "rename": ("error=EIO", "error=ENOSPC"),
    "unlink": ("error=EIO", "error=EACCES"),
    "unlinkat": ("error=EIO",),
    "rmdir": ("error=EIO",),
    "getdents64": ("error=EIO",),
    "statfs": ("error=EIO",),
    "socket": ("error=EMFILE",),
    "connect": ("error=ECONNREFUSED", "error=EINTR"),
    "sendto": ("error=EINTR",),
    "recvfrom": ("error=ECONNRESET", "error=EINTR"),
    "vfork": ("error=EAGAIN", "error=ENOMEM"),
    "clone": ("error=EAGAIN", "error=ENOMEM"),
    "clone3": ("error=EAGAIN",),
    "inotify_add_watch": ("error=ENOSPC",),
}
"""What may happen to each call; `retval=0` is a write of which nothing was taken."""

_FATAL = {(BACKUPD, "fsync")}


def campaign(seed: int, count: int, folder: Path) -> Iterator[Attack]:
    """Points of all scenes whose call can fail, each with one of its faults."""
    chance = random.Random(seed)
    with ground(folder) as made:
        for point in mixed(made, chance, every=False):
            if point.call in FAULTS:
                fault = chance.choice(FAULTS[point.call])
                # an error that is passed over leaves no other trace: the bytes are still in memory
                may_end_well = (point.victim, point.call) not in _FATAL
                act = partial(strike, made, point, fault, may_end_well=may_end_well)
                yield Attack(f"{point.label} {fault}", act)
