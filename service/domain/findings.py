"""What a check finds, and how it tells."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from service.db.damage import Affected
from service.model import Damage

Kind = Literal[
    Damage,        # the bytes of a blob: gone, too many or too few, others, not to be read
    "stray",       # a file among the blobs without a row
    "foreign",     # a file or folder where only blobs belong; left alone
    "leftover",    # a body that an upload has left behind
    "quarantine",  # a file that was set aside and belongs back in its place
    "usage",       # what an account is said to hold
    "tree",        # a file or folder that no path leads to, or with a wrong name
    "version",     # versions that do not belong together
    "unmarked",    # a blob that nothing refers to, and that no sweep would find; or one that is on its list wrongly
    "held",        # nothing may be removed: the data root has known a later or another database
]

Progress = Callable[[str, int, int], None]  # what is being done, how far, of how much (0: not known)


def no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    `subject`: a key, a name below the data root, an account.  `affected`: whose files are concerned.  `is_repaired`:
    it was made good in the same run.
    """

    kind: Kind
    subject: str
    detail: str
    affected: tuple[Affected, ...] = ()
    is_repaired: bool = False


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check looked at, and what it found."""

    findings: list[Finding] = field(default_factory=list)
    blobs: int = 0
    bytes_read: int = 0
    files_on_disk: int = 0
    in_quarantine: int = 0

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong (any more)."""
        return all(finding.is_repaired for finding in self.findings)
