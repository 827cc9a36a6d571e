from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.certificates import Authority, Names, new_key
from meshkit.errors import PreconditionError
from meshkit.tls import Identity
from node_agent.certificates import Plan, Shown, Validity, plan_restart, restart_at, server_name, spread_of
from tests.certificates import TestAuthority

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_a_restart_is_in_the_first_half_of_the_last_third(seconds: int, spread: float) -> None:
    life = timedelta(seconds=seconds)
    at = restart_at(Validity(NOW, NOW + life), spread)
    slack = timedelta(seconds=1)
    assert NOW + life * 2 / 3 - slack <= at <= NOW + life * 5 / 6 + slack


def test_nodes_differ_and_stay_as_they_are() -> None:
    spreads = [spread_of(f"node-{number}") for number in range(100)]
    assert spreads == [spread_of(f"node-{number}") for number in range(100)]
    assert min(spreads) < 0.1
    assert max(spreads) > 0.9


def test_what_is_planned(tmp_path: Path) -> None:
    authority = TestAuthority(tmp_path)
    running = Shown.on_disk(authority.issue("node", "n", lives=timedelta(days=90)))
    renewed = Shown.on_disk(authority.issue("node", "n", lives=timedelta(days=90)))
    assert plan_restart(running, running, 0.5, NOW, agent_started=True) == Plan()
    planned = plan_restart(running, renewed, 0.0, NOW, agent_started=True)
    assert planned.at is not None
    assert abs(planned.at - datetime.now(UTC) - timedelta(days=60)) < timedelta(hours=1)
    assert planned.at.isoformat(timespec="minutes") in planned.message
    other = Shown(running.certificate, "other authorities")
    assert plan_restart(running, other, 0.5, NOW, agent_started=True).at == NOW
    waiting = plan_restart(running, other, 0.5, NOW, agent_started=False)
    assert waiting.at is None
    assert "until the agent is restarted" in waiting.message


def test_the_name_to_expect_of_a_server() -> None:
    def certificate(*ips: str) -> bytes:
        names = Names(Identity("node", "n"), ips)
        return Authority.create(NOW).issue(names, new_key().public_key(), NOW, timedelta(days=1))

    assert server_name(certificate("10.0.0.7", "127.0.0.1"), "127.0.0.1") == ""
    assert server_name(certificate("10.0.0.7"), "127.0.0.1") == "10.0.0.7"
    assert server_name(certificate("::1"), "[::1]") == ""
    with pytest.raises(PreconditionError, match="names no address"):
        server_name(certificate(), "127.0.0.1")
