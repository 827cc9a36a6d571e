"""Which command follows which trial: a table beside optuna's, so that two commands on one study share its trials.

A claim carries a number that its owner raises as long as it lives. Whoever sees the number stand still for LEASE_S by
their own clock, or the owner's process gone from this very host, may take the claim over; the write names the number
that was seen, so only one does. No clocks are compared. What is here blocks: call it in threads.
"""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sql

LEASE_S = 15.0
BEAT_S = 3.0

_METADATA = sql.MetaData()
_CLAIMS = sql.Table(
    "aimesh_tuning_claims",
    _METADATA,
    sql.Column("study", sql.String(64), primary_key=True),
    sql.Column("trial", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("owner", sql.String(255), nullable=False),
    sql.Column("beat", sql.BigInteger, nullable=False),
)


def new_owner() -> str:
    """Names this command: host, boot, process and when it started, and something of its own."""
    me = psutil.Process()
    return f"{socket.gethostname()[:80]}/{_boot()}/{me.pid}/{me.create_time():.2f}/{uuid.uuid4().hex[:12]}"


@dataclass
class Claims:
    """Claims of one study on behalf of one command."""

    engine: sql.Engine
    study: str
    owner: str = field(default_factory=new_owner)
    monotonic: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[str, int, float]] = field(default_factory=dict)

    def make_table(self) -> None:
        """Makes the table unless it is there."""
        try:
            _METADATA.create_all(self.engine)
        except sql.exc.DBAPIError:  # another command was making it at this moment
            if not sql.inspect(self.engine).has_table(_CLAIMS.name):
                raise

    def take_new(self, trial: int) -> bool:
        """Claims a trial that nobody has claimed; whether that went well."""
        row = {"study": self.study, "trial": trial, "owner": self.owner, "beat": 1}
        try:
            with self.engine.begin() as connection:
                connection.execute(_CLAIMS.insert().values(row))
        except sql.exc.IntegrityError:
            return False
        return True

    def take_over(self, trials: Iterable[int]) -> int | None:
        """Claims one of some trials whose owner is gone, or which nobody has claimed; None when there is none."""
        wanted = set(trials)
        with self.engine.connect() as connection:
            rows = connection.execute(sql.select(_CLAIMS).where(_CLAIMS.c.study == self.study)).all()
        held = {row.trial: row for row in rows}
        for trial in sorted(wanted):
            if trial not in held:
                if self._stands_still(trial, "", 0) and self.take_new(trial):
                    return trial
            elif self._is_free(trial, held[trial].owner, held[trial].beat) and self._replace(held[trial]):
                return trial
        return None

    def beat(self) -> None:
        """Says that this command lives."""
        mine = (_CLAIMS.c.study == self.study) & (_CLAIMS.c.owner == self.owner)
        with self.engine.begin() as connection:
            connection.execute(_CLAIMS.update().where(mine).values(beat=_CLAIMS.c.beat + 1))

    def release(self) -> None:
        """Gives every claim free: the next command need not wait."""
        mine = (_CLAIMS.c.study == self.study) & (_CLAIMS.c.owner == self.owner)
        with self.engine.begin() as connection:
            connection.execute(_CLAIMS.update().where(mine).values(owner="", beat=_CLAIMS.c.beat + 1))

    def drop(self, trial: int) -> None:
        """Removes the claim of a trial that is over."""
        mine = (_CLAIMS.c.study == self.study) & (_CLAIMS.c.trial == trial)
        with self.engine.begin() as connection:
            connection.execute(_CLAIMS.delete().where(mine & (_CLAIMS.c.owner == self.owner)))

    def _is_free(self, trial: int, owner: str, beat: int) -> bool:
        if owner == self.owner:
            return False
        return owner == "" or _is_dead(owner) or self._stands_still(trial, owner, beat)

    def _stands_still(self, trial: int, owner: str, beat: int) -> bool:
        """Whether a claim was seen with this number LEASE_S ago; an unclaimed trial may be about to be claimed."""
        before = self._seen.get(trial)
        if before is None or before[:2] != (owner, beat):
            self._seen[trial] = (owner, beat, self.monotonic())
            return False
        return self.monotonic() - before[2] >= LEASE_S

    def _replace(self, row: sql.Row[tuple[str, int, str, int]]) -> bool:
        """Whether the claim was still as it was seen, and is now this command's."""
        same = (_CLAIMS.c.study == self.study) & (_CLAIMS.c.trial == row.trial)
        same &= (_CLAIMS.c.owner == row.owner) & (_CLAIMS.c.beat == row.beat)
        with self.engine.begin() as connection:
            done = connection.execute(_CLAIMS.update().where(same).values(owner=self.owner, beat=row.beat + 1))
        return done.rowcount == 1


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this host that is no more; False for what cannot be known."""
    host, boot, pid, started = [*owner.split("/"), "", "", "", ""][:4]
    if (host, boot) != (socket.gethostname()[:80], _boot()) or not pid.isdigit():
        return False
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _boot() -> str:
    """Tells hosts and containers apart that have the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot[:8]}-{Path('/proc/self/ns/pid').readlink().name.strip('pid:[]')}"
    except OSError:
        return "unknown"
