"""What an installation consists of: files, commands, and what is left to do. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from string import Template

from tools.systemd.configs import CONFIG_DIR, config_path, config_text, credentials, data_dir, tls_dir
from tools.systemd.host import Host, RoleName

_MARGIN_S = {"agent": 60.0, "coordinator": 20.0, "gateway": 10.0, "etcd": 30.0}
"""What stopping takes beyond draining: for an agent, the goodbye and the end of Triton and its models."""
DEFAULT_DRAIN_S = {"agent": 30.0, "coordinator": 5.0, "gateway": 0.0, "etcd": 0.0}
_RENEWING: tuple[RoleName, ...] = ("agent", "coordinator")
"""Roles that get new certificates from a coordinator by themselves."""
_LOW_PORT = """\
# A port below 1024 needs this capability, which a user namespace of its own would make worthless.
[Service]
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
PrivateUsers=no
"""


@dataclass(frozen=True)
class PlannedFile:
    """A file with all its content."""

    path: str
    text: str
    config: bool = False
    """An operator's to change: never overwritten when it is there with other content, unless asked to."""


@dataclass(frozen=True)
class Plan:
    """An installation."""

    files: tuple[PlannedFile, ...]
    commands: tuple[tuple[str, ...], ...]
    """To run after the files are there, in this order."""
    next_steps: tuple[str, ...]
    """What the operator does now, one command or sentence each."""
    warnings: tuple[str, ...] = ()
    """What is wrong with this host, for people."""


def unit_name(role: RoleName) -> str:
    """The unit without its ending."""
    return f"aimesh-{role}"


def plan_install(host: Host, program: str, drain_s: float, *, with_config: bool = True) -> Plan:
    """The installation of one role. `program` is aimesh's (etcd's for etcd) with its path; `drain_s` is what the role's
    configuration gives requests in flight. Without the configuration when one is there that is to stay."""
    role = host.role
    found = [
        PlannedFile(f"/etc/systemd/system/{unit_name(role)}.service", unit_text(role, program, drain_s)),
        PlannedFile(f"/etc/sysusers.d/{unit_name(role)}.conf", _sysusers(role)),
        PlannedFile(f"/etc/tmpfiles.d/{unit_name(role)}.conf", _tmpfiles(role)),
    ]
    if with_config:
        found.append(PlannedFile(config_path(role), config_text(host), config=True))
    if host.tls and role in _RENEWING:
        found += [
            PlannedFile(
                f"/etc/systemd/system/{unit_name(role)}-renew.{kind}", _filled(f"aimesh-renew.{kind}", role, program)
            )
            for kind in ("service", "timer")
        ]
    if host.port < 1024:
        found.append(PlannedFile(f"/etc/systemd/system/{unit_name(role)}.service.d/10-low-port.conf", _LOW_PORT))
    commands = (
        ("systemd-sysusers", f"{unit_name(role)}.conf"),
        ("systemd-tmpfiles", "--create", f"{unit_name(role)}.conf"),
    )
    return Plan(tuple(found), commands, _next_steps(host))


def unit_text(role: RoleName, program: str, drain_s: float) -> str:
    """The role's unit."""
    return _filled(f"{unit_name(role)}.service", role, program, stop_s=f"{drain_s + _MARGIN_S[role]:g}")


def _filled(template: str, role: RoleName, program: str, **more: str) -> str:
    text = (files("tools.systemd") / "units" / template).read_text()
    return Template(text).substitute(
        role=role,
        program=program.replace("%", "%%"),
        config=config_path(role),
        environment=f"{CONFIG_DIR}/{role}.env",
        data=data_dir(role),
        tls=tls_dir(role),
        **more,
    )


def _sysusers(role: RoleName) -> str:
    name = unit_name(role)
    lines = [f'u {name} - "{name}" {data_dir(role)} /usr/sbin/nologin']
    if role == "agent":  # where a distribution gives the GPUs' device files to these groups
        lines += [f"m {name} video", f"m {name} render"]
    return "\n".join(lines) + "\n"


def _tmpfiles(role: RoleName) -> str:
    """Directories, and whose the files in them are, whoever put them there."""
    name = unit_name(role)
    return "\n".join(
        [
            f"d {CONFIG_DIR} 0755 root root -",
            f"d {CONFIG_DIR}/tls 0755 root root -",
            f"# {_whose_certificates(role)} Root owns the directory, or tmpfiles would not go below it.",
            f"d {tls_dir(role)} 0770 root {name} -",
            f"z {tls_dir(role)}/* 0600 {name} {name} -",
            f"z {config_path(role)} 0640 root {name} -",
            "# Secrets, as KEY=value; read by systemd.",
            f"z {CONFIG_DIR}/{role}.env 0600 root root -",
            f"d {data_dir(role)} {'0700' if role == 'etcd' else '0750'} {name} {name} -",
            "",
        ]
    )


def _whose_certificates(role: RoleName) -> str:
    if role in _RENEWING:
        return "The role renews its certificates itself."
    return "You put the next certificates here, from `aimesh ca issue`."


def _next_steps(host: Host) -> tuple[str, ...]:
    name = unit_name(host.role)
    steps: list[str] = []
    if wanted := credentials(host):
        steps += [
            f"put {', '.join(wanted)} into {tls_dir(host.role)} (docs/operations/install.md says how to make them)",
            f"systemd-tmpfiles --create {name}.conf",
        ]
    timer = f" {name}-renew.timer" if host.tls and host.role in _RENEWING else ""
    steps += ["systemctl daemon-reload", f"systemctl enable --now --no-block {name}{timer}"]
    if host.role == "etcd" and len(host.cluster) > 1:
        steps.append(f"the same on the other members: {name} is ready when {len(host.cluster) // 2 + 1} of them run")
    steps.append(f"systemctl status {name}; journalctl -fu {name}")
    return tuple(steps)
