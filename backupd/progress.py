"""What a long run has done so far, as one value that changes; who shows it, and how often, is the caller's business."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Progress:
    """Counts of one stage; `show` gets it after each change and between them, and decides how often it speaks.

    `copying_bytes` and `copying_rows` are of members that pg_dump still writes (pg_stat_progress_copy).
    """

    show: Callable[["Progress"], None] = lambda _: None
    stage: str = ""
    subject: str = ""
    done_members: int = 0
    total_members: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    done_rows: int = 0
    copying_bytes: int = 0
    copying_rows: int = 0

    def begin(self, stage: str, subject: str, total_members: int = 0, total_bytes: int = 0) -> None:
        """Starts a stage: all counts are 0 again."""
        self.stage, self.subject = stage, subject
        self.total_members, self.total_bytes = total_members, total_bytes
        self.done_members = self.done_bytes = self.done_rows = self.copying_bytes = self.copying_rows = 0
        self.show(self)

    def advance(self, done_bytes: int = 0, done_members: int = 0, done_rows: int = 0) -> None:
        """Adds to the counts."""
        self.done_bytes += done_bytes
        self.done_members += done_members
        self.done_rows += done_rows
        self.show(self)

    def copying(self, copying_bytes: int, copying_rows: int) -> None:
        """Says what is being written at this moment."""
        self.copying_bytes, self.copying_rows = copying_bytes, copying_rows
        self.show(self)
