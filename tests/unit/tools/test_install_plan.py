"""What `aimesh install` would write, as data."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.settings import CoordinatorSettings
from meshkit.errors import ConflictError, InvalidInputError, PreconditionError
from meshkit.settings import load_settings
from node_agent.settings import AgentSettings
from tools.gateway import GatewaySettings
from tools.systemd.apply import apply_plan, at_root, run_command
from tools.systemd.configs import config_text, credentials
from tools.systemd.given import Given, plan_for
from tools.systemd.host import ROLES, Host, RoleName, check, parse_cluster
from tools.systemd.plan import Plan, PlannedFile, plan_install, unit_text

CLUSTER = parse_cluster("a=10.0.0.1,b=10.0.0.2,c=10.0.0.3")
AGENT = Host("agent", "gpu-1", "10.0.0.11", 8001, coordinators=("10.0.0.1:8503", "[fd00::2]:8503"))
COORDINATOR = Host("coordinator", "a", "10.0.0.1", 8503, etcd=("10.0.0.1:2379", "10.0.0.2:2379"))
GATEWAY = Host("gateway", "edge", "10.0.0.1", 8500, coordinators=("10.0.0.1:8503",))
ETCD = Host("etcd", "b", "10.0.0.2", 2379, cluster=CLUSTER)
HOSTS: dict[RoleName, Host] = {"agent": AGENT, "coordinator": COORDINATOR, "gateway": GATEWAY, "etcd": ETCD}
SETTINGS: dict[RoleName, type[Any]] = {
    "agent": AgentSettings,
    "coordinator": CoordinatorSettings,
    "gateway": GatewaySettings,
}


def texts(plan: Plan) -> dict[str, str]:
    return {file.path: file.text for file in plan.files}


@pytest.mark.parametrize("insecure", [False, True])
@pytest.mark.parametrize("role", SETTINGS)
def test_each_process_accepts_its_configuration(role: RoleName, insecure: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(config_text(check(replace(HOSTS[role], insecure=insecure))))
    settings = load_settings(SETTINGS[role], role, path, environ={})
    assert settings.tls.on is not insecure
    assert settings.insecure is insecure
    assert str(settings.data_dir) == f"/var/lib/aimesh/{role}"


def test_an_agent_listens_where_clients_look_for_it() -> None:
    table = tomllib.loads(config_text(AGENT))["agent"]
    assert (table["node_id"], table["coordinators"]) == ("gpu-1", ["10.0.0.1:8503", "[fd00::2]:8503"])
    assert (table["address"], table["triton"]["listen"]) == ("10.0.0.11", "10.0.0.11")
    assert table["port"] == 8505, "one that a firewall can be told of"


def test_a_coordinator_shows_etcd_a_certificate_of_etcds_own_authority() -> None:
    table = tomllib.loads(config_text(COORDINATOR))["coordinator"]
    assert table["tls"]["ca"] == "/etc/aimesh/tls/coordinator/ca.pem"
    assert table["etcd"]["ca"] == "/etc/aimesh/tls/coordinator/etcd-ca.pem"


def test_an_enrolling_coordinator_has_the_authoritys_key_and_asks_for_it() -> None:
    host = check(replace(COORDINATOR, enroll=True))
    table = tomllib.loads(config_text(host))["coordinator"]
    assert (table["enroll_port"], table["auth"]["ca_key"]) == (8504, "/etc/aimesh/tls/coordinator/ca.key")
    assert "ca.key" in credentials(host)
    assert "ca.key" not in credentials(COORDINATOR)
    with pytest.raises(InvalidInputError, match="has no TLS"):
        check(replace(COORDINATOR, enroll=True, insecure=True))


@pytest.mark.parametrize("role", ROLES)
def test_agents_and_coordinators_renew_their_certificates(role: RoleName) -> None:
    timers = [path for path in texts(plan_install(HOSTS[role], "/x", 0)) if path.endswith("-renew.timer")]
    assert bool(timers) is (role in ("agent", "coordinator"))
    assert not any("renew" in path for path in texts(plan_install(replace(HOSTS[role], insecure=True), "/x", 0)))


def test_loopback_needs_no_certificates() -> None:
    assert "tls" not in tomllib.loads(config_text(replace(COORDINATOR, address="127.0.0.1")))["coordinator"]


def test_etcds_members_know_each_other() -> None:
    lines = config_text(ETCD).splitlines()
    assert 'initial-cluster: "a=https://10.0.0.1:2380,b=https://10.0.0.2:2380,c=https://10.0.0.3:2380"' in lines
    assert 'listen-client-urls: "https://10.0.0.2:2379"' in lines
    assert lines.count("  client-cert-auth: true") == 2, "clients and members show certificates"
    assert 'listen-client-urls: "http://10.0.0.2:2379"' in config_text(replace(ETCD, insecure=True))


@pytest.mark.parametrize(
    ("host", "named"),
    [
        (replace(AGENT, id="GPU_1"), "--id 'GPU_1'"),
        (replace(AGENT, address="gpu-1.example"), "--address 'gpu-1.example'"),
        (replace(AGENT, coordinators=()), "--coordinators is needed"),
        (replace(AGENT, coordinators=("10.0.0.1",)), "--coordinators '10.0.0.1'"),
        (replace(COORDINATOR, etcd=("10.0.0.1:99999",)), "--etcd '10.0.0.1:99999'"),
        (replace(ETCD, cluster=CLUSTER[:2]), "2 members bear no more failures than 1"),
        (replace(ETCD, id="d"), "it must hold this member: d=10.0.0.2"),
        (replace(ETCD, cluster=(*CLUSTER[:2], ("c", "10.0.0.1"))), "an address of its own"),
    ],
)
def test_what_is_wrong_is_named(host: Host, named: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check(host)
    assert named in str(refused.value)


def test_a_member_without_an_address_is_named() -> None:
    with pytest.raises(InvalidInputError, match="NAME=IP"):
        parse_cluster("a,b=10.0.0.2")


@pytest.mark.parametrize("role", ROLES)
def test_every_file_speaks_of_its_own_role(role: RoleName) -> None:
    plan = plan_install(HOSTS[role], "/opt/aimesh/bin/aimesh", drain_s=30)
    for path, text in texts(plan).items():
        assert role in path
        assert "$" not in text, "a place in a template was left open"
        others = [other for other in ROLES if other != role]
        assert not any(f"/etc/aimesh/tls/{other}" in text or f"User=aimesh-{other}" in text for other in others), path


def test_an_agent_is_given_more_time_than_its_drain() -> None:
    assert "TimeoutStopSec=180" in unit_text("agent", "/opt/aimesh/bin/aimesh", drain_s=120)


def test_a_percent_in_the_programs_path_is_no_specifier() -> None:
    assert "ExecStart=/opt/50%%/aimesh agent " in unit_text("agent", "/opt/50%/aimesh", 30)


def test_a_low_port_gets_its_capability_and_nothing_else() -> None:
    (dropin,) = set(texts(plan_install(replace(GATEWAY, port=443), "/x", 0))) - set(
        texts(plan_install(GATEWAY, "/x", 0))
    )
    assert dropin == "/etc/systemd/system/aimesh-gateway.service.d/10-low-port.conf"


class TestWriting:
    """Into another root, with the commands looked at and not run."""

    PLAN = Plan(
        (PlannedFile("/etc/unit", "unit\n"), PlannedFile("/etc/config", "config\n", config=True)),
        (("systemd-sysusers", "/etc/sysusers.d/x.conf"),),
        (),
    )

    def write(self, root: Path, plan: Plan = PLAN, *, force: bool = False) -> list[str]:
        self.ran: list[tuple[str, ...]] = []
        return [done.outcome for done in apply_plan(plan, root, force=force, run=self.ran.append)]

    def test_twice_is_once(self, tmp_path: Path) -> None:
        assert self.write(tmp_path) == ["new", "new"]
        assert self.ran == [("systemd-sysusers", f"--root={tmp_path}", "/etc/sysusers.d/x.conf")]
        assert self.write(tmp_path) == ["unchanged", "unchanged"]

    def test_a_changed_configuration_stays_and_nothing_is_written(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "etc/config").write_text("mine\n")
        (tmp_path / "etc/unit").write_text("old\n")
        with pytest.raises(ConflictError, match=f"{tmp_path}/etc/config exists and differs"):
            self.write(tmp_path)
        assert ((tmp_path / "etc/unit").read_text(), self.ran) == ("old\n", [])

    def test_force_replaces_it_and_keeps_the_old_one(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "etc/config").write_text("mine\n")
        (tmp_path / "etc/unit").write_text("old\n")
        assert self.write(tmp_path, force=True) == ["changed", "replaced"]
        assert (tmp_path / "etc/config").read_text() == "config\n"
        assert (tmp_path / "etc/config.old").read_text() == "mine\n"

    def test_the_real_root_is_not_named(self) -> None:
        assert at_root(("systemd-sysusers", "/x"), Path("/")) == ("systemd-sysusers", "/x")

    @pytest.mark.parametrize(
        ("command", "said"), [(("no-such-program",), "is not installed"), (("false",), "ended with 1")]
    )
    def test_a_command_that_fails_is_named(self, command: tuple[str, ...], said: str) -> None:
        with pytest.raises(PreconditionError, match=said):
            run_command(command)


class TestGiven:
    """Options, and what is installed already."""

    def root(self, tmp_path: Path) -> Path:
        (tmp_path / "opt").mkdir()
        (tmp_path / "opt/aimesh").touch()
        return tmp_path

    def test_a_configuration_that_is_there_stays_when_no_setting_is_given(self, tmp_path: Path) -> None:
        root = self.root(tmp_path)
        (root / "etc/aimesh").mkdir(parents=True)
        (root / "etc/aimesh/agent.toml").write_text("[agent]\ndrain_s = 240.0\n")
        plan = plan_for("agent", Given(), Path("/opt/aimesh"), root)
        assert not any(file.config for file in plan.files)
        assert "TimeoutStopSec=300" in plan.files[0].text

    def test_without_one_the_settings_are_asked_for(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match="--coordinators is needed"):
            plan_for("agent", Given(id="a"), Path("/opt/aimesh"), self.root(tmp_path))

    def test_a_program_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PreconditionError, match="/opt/nothing does not exist"):
            plan_for("agent", Given(), Path("/opt/nothing"), tmp_path)
        with pytest.raises(InvalidInputError, match="whole path"):
            plan_for("agent", Given(), Path("aimesh"), tmp_path)

    def test_a_program_in_a_home_directory_is_warned_of(self, tmp_path: Path) -> None:
        (tmp_path / "home/me").mkdir(parents=True)
        (tmp_path / "home/me/aimesh").touch()
        given = Given(id="edge", coordinators="10.0.0.1:8503")
        (warning,) = plan_for("gateway", given, Path("/home/me/aimesh"), tmp_path).warnings
        assert "/home/me/aimesh" in warning
