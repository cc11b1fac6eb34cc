"""When which check was last done."""

from service.db.pool import Connection

IS_DUE = """
-- never done, or too long ago; or done by a clock that was ahead
SELECT NOT EXISTS (SELECT FROM checks
                   WHERE name = $1 AND finished_at > now() - make_interval(secs => $2) AND finished_at <= now())
"""


async def is_due(conn: Connection, name: str, *, every_seconds: float) -> bool:
    """Whether a check has to be done again."""
    return bool(await conn.fetchval(IS_DUE, name, every_seconds))


SET_FINISHED = """
-- done to its end
INSERT INTO checks (name, finished_at, findings) VALUES ($1, now(), $2)
ON CONFLICT (name) DO UPDATE SET finished_at = excluded.finished_at, findings = excluded.findings
"""


async def set_finished(conn: Connection, name: str, findings: int) -> None:
    """Note that a check was done, and how much it found."""
    await conn.execute(SET_FINISHED, name, findings)
