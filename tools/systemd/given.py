"""From what `aimesh install` was given to a plan: this host's defaults, programs, a configuration that is there."""

from __future__ import annotations

import socket
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meshkit.errors import InvalidInputError, PreconditionError
from tools.doctor.software import judge_etcd, run_program
from tools.local.etcd import etcd_binary
from tools.systemd.apply import below
from tools.systemd.configs import config_path
from tools.systemd.host import DEFAULT_PORTS, Host, RoleName, check, parse_cluster
from tools.systemd.plan import DEFAULT_DRAIN_S, Plan, plan_install

_HOMES = ("/home", "/root", "/run/user")
_ELSEWHERE = "install aimesh with a Python of the system, for example: python3.11 -m venv /opt/aimesh"


@dataclass(frozen=True)
class Given:
    """The options; None where one was not given."""

    id: str | None = None
    address: str | None = None
    port: int | None = None
    coordinators: str | None = None
    etcd: str | None = None
    cluster: str | None = None
    enroll: bool = False
    insecure: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no setting was given at all."""
        return self == Given()


def plan_for(role: RoleName, given: Given, program: Path | None, root: Path) -> Plan:
    """The plan. With nothing given and a configuration there, that one stays and the rest is planned around it.

    Raises InvalidInputError naming the option that is wrong or missing, PreconditionError when the program is missing.
    """
    executable = _program(role, program, root)
    path = below(root, config_path(role))
    if given.nothing and path.exists():
        plan = plan_install(_present(role, path), str(executable), _drain_s(role, path), with_config=False)
    else:
        plan = plan_install(check(_host(role, given)), str(executable), DEFAULT_DRAIN_S[role])
    return replace(plan, warnings=tuple(_warnings(role, executable, root)))


def require_visible(role: RoleName, program: Path | None, root: Path) -> None:
    """Raises PreconditionError when the program is where units do not see it."""
    for path in _out_of_sight(_program(role, program, root), root):
        raise PreconditionError(_hidden(path), hint=_ELSEWHERE, reason="PROGRAM_IN_HOME")


def _host(role: RoleName, given: Given) -> Host:
    name = given.id if given.id is not None else socket.gethostname().partition(".")[0].lower()
    address = given.address if given.address is not None else "127.0.0.1"
    return Host(
        role=role,
        id=name,
        address=address,
        port=given.port if given.port is not None else DEFAULT_PORTS[role],
        coordinators=_addresses(given.coordinators),
        etcd=_addresses(given.etcd),
        cluster=parse_cluster(given.cluster) if given.cluster is not None else ((name, address),),
        enroll=given.enroll,
        insecure=given.insecure,
    )


def _addresses(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _present(role: RoleName, path: Path) -> Host:
    """As much of an installed role as the rest of its installation depends on: the port, and whether it uses TLS.

    The certificates are there already, so none are asked for.
    """
    if role == "etcd":
        return Host(role, "etcd", "127.0.0.1", DEFAULT_PORTS[role])
    table = _table(role, path)
    address = "127.0.0.1" if "tls" not in table else "0.0.0.0"  # noqa: S104  # stands for any that needs TLS
    return Host(role, role, address, int(table.get("port", DEFAULT_PORTS[role])))


def _drain_s(role: RoleName, path: Path) -> float:
    return DEFAULT_DRAIN_S[role] if role == "etcd" else float(_table(role, path).get("drain_s", DEFAULT_DRAIN_S[role]))


def _table(role: RoleName, path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text()).get(role, {})
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{path} is not valid TOML: {error}") from None
    return table if isinstance(table, dict) else {}


def _program(role: RoleName, program: Path | None, root: Path) -> Path:
    """The program with its path, as the unit will start it."""
    if program is None:
        return Path(etcd_binary()) if role == "etcd" else Path(sys.executable).with_name("aimesh")
    if not program.is_absolute():
        raise InvalidInputError(f"--program {program} must be a whole path, from /")
    if not below(root, str(program)).is_file():
        raise PreconditionError(
            f"{below(root, str(program))} does not exist", hint="give --program as it is on that host"
        )
    return program


def _warnings(role: RoleName, program: Path, root: Path) -> Iterator[str]:
    for path in _out_of_sight(program, root):
        yield f"{_hidden(path)}: {_ELSEWHERE}"
    if role == "etcd" and root == Path("/"):
        finding = judge_etcd(run_program(str(program), "--version"), str(program))
        if finding.level != "ok":
            yield f"{finding.seen}: {finding.advice}"


def _out_of_sight(program: Path, root: Path) -> Iterator[Path]:
    """The program and the Python that it runs on, where one is below a home directory."""
    python = (Path(sys.base_prefix),) if program.parent == Path(sys.executable).parent and root == Path("/") else ()
    yield from (path for path in (program, *python) if any(path.is_relative_to(home) for home in _HOMES))


def _hidden(path: Path) -> str:
    return f"{path} is where the units see nothing (ProtectHome=yes)"
