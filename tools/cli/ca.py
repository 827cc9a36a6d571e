"""`aimesh ca init | issue | show | renew | revoke | revoked`: the mesh's own certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.options import Json, StateDir
from tools.cli.revocation import revoke, revoked

if TYPE_CHECKING:
    from cryptography import x509

    from meshkit.certificates import Names
    from meshkit.tls import Role

app = typer.Typer(name="ca", help="The mesh's own certificate authority.", no_args_is_help=True)

Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the authority is kept.")]
Ips = Annotated[list[str] | None, typer.Option("--ip", help="An address at which others reach it. Any number of them.")]
Dns = Annotated[list[str] | None, typer.Option("--dns", help="A host name at which others reach it. Any number.")]


@app.command()
def init(directory: Directory = Path("ca"), as_json: Json = False) -> None:
    """Make an authority, the key that signs API keys, and an administrator's certificate.

    Who has DIR/ca.key can pass for anyone: keep the directory off the mesh's machines, or on one coordinator.

    Example: [bold]aimesh ca init --dir ca && aimesh --tls-dir ca/admin status[/bold]
    """
    from meshkit.certificates import CERTIFICATE_LIFETIME, make_names
    from meshkit.tls import Identity
    from tools.certificates import API_KEYS, CA_CERT, CA_KEY, JWKS, create_authority, issue
    from tools.cli.output import console, print_json

    create_authority(directory)
    issue(directory, make_names(Identity("admin", "admin"), (), ()), CERTIFICATE_LIFETIME, directory / "admin")
    if as_json:
        made = {"ca": CA_CERT, "ca_key": CA_KEY, "key_file": API_KEYS, "jwks": JWKS, "admin": "admin"}
        print_json({name: str(directory / file) for name, file in made.items()})
        return
    console().print(
        f"Made an authority in {directory}:\n"
        "  ca.pem, ca.key   the authority; every machine needs ca.pem, nobody else ca.key\n"
        "  api-keys.pem     signs API keys: coordinator.auth.key_file of every coordinator\n"
        "  jwks.json        checks API keys: for gateways\n"
        "  admin/           a certificate that may do everything\n"
        f"Next: aimesh ca issue coordinator c1 --ip ADDRESS --dir {directory}",
        soft_wrap=True,
    )


@app.command(name="issue")
def issue_(
    role: Annotated[str, typer.Argument(help="node, coordinator, gateway, etcd, client or admin.")],
    name: Annotated[str, typer.Argument(help="Its id: a node's is agent.node_id, a coordinator's coordinator.id.")],
    ip: Ips = None,
    dns: Dns = None,
    days: Annotated[int, typer.Option(help="How long it is valid.", min=1)] = 90,
    directory: Directory = Path("ca"),
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where ca.pem, cert.pem and key.pem go; DIR/ROLE-NAME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Issue a certificate, with a new key.

    Example: [bold]aimesh ca issue node gpu-7 --ip 10.0.0.7 --out /etc/aimesh/tls/agent[/bold]
    """
    from datetime import timedelta

    from meshkit.certificates import make_names
    from meshkit.credentials import FILES
    from tools.certificates import issue
    from tools.cli.output import console, print_json

    names = make_names(_identity(role, name), ip or (), dns or ())
    where = out or directory / f"{role}-{name}"
    issue(directory, names, timedelta(days=days), where)
    if as_json:
        print_json({**described(_certificate(where / FILES["cert"])), **written(where)})
        return
    console().print(f"Wrote ca.pem, cert.pem and key.pem for {names.identity.uri} to {where}.", soft_wrap=True)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A certificate in PEM.")],
    as_json: Json = False,
) -> None:
    """Show who a certificate is for and until when.

    Example: [bold]aimesh ca show /etc/aimesh/tls/agent/cert.pem[/bold]
    """
    from tools.cli.output import console, print_json

    found = described(_certificate(file))
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        console().print(f"{key:10} {', '.join(value) if isinstance(value, list) else value}", soft_wrap=True)


@app.command()
def renew(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The process's configuration.")],
    role: Annotated[str, typer.Option(help="Its table in it: agent or coordinator.")] = "agent",
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Replace a process's certificate, with a new key, through a coordinator. The process takes it up by itself.

    Example: [bold]AIMESH_COORDINATORS=10.0.0.1:8503 aimesh ca renew --config /etc/aimesh/agent.toml[/bold]
    """
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.renewal import renew_files, tls_of

    tls, addresses = tls_of(config, role)
    certificate = run(renew_files(tls, addresses, state_dir))
    if as_json:
        print_json({**described(certificate), "cert": str(tls.cert), "key": str(tls.key)})
        return
    console().print(f"Renewed {tls.cert}: valid until {described(certificate)['until']}.", soft_wrap=True)


app.command()(revoke)
app.command()(revoked)


def written(out: Path) -> dict[str, str]:
    """The files of a new identity in a directory, by what they are."""
    from meshkit.credentials import FILES

    return {kind: str(out / file) for kind, file in FILES.items()}


def _identity(role: str, name: str) -> Any:
    from meshkit.errors import InvalidInputError
    from meshkit.tls import ROLES, Identity

    known: tuple[Role, ...] = ROLES
    if role not in known:
        raise InvalidInputError(f"role {role!r} is unknown", hint=f"one of {', '.join(known)}")
    identity = Identity.parse(f"spiffe://aimesh/{role}/{name}")
    if identity is None:
        raise InvalidInputError(
            f"name {name!r} is not allowed",
            hint="use up to 63 letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return identity


def _certificate(file: Path) -> x509.Certificate:
    from meshkit.certificates import parse_certificate
    from meshkit.errors import NotFoundError

    try:
        return parse_certificate(file.read_bytes())
    except OSError as error:
        raise NotFoundError(f"cannot read {file}: {error.strerror}") from None


def described(certificate: x509.Certificate) -> dict[str, Any]:
    """What people want to know of a certificate."""
    from cryptography.hazmat.primitives.hashes import SHA256

    from meshkit.certificates import names_of
    from meshkit.errors import InvalidInputError

    try:
        names: Names | None = names_of(certificate)
    except InvalidInputError:
        names = None  # the authority's own, or another mesh's
    return {
        "identity": names.identity.uri if names else certificate.subject.rfc4514_string(),
        "addresses": [*names.ips, *names.dns] if names else [],
        "from": certificate.not_valid_before_utc.isoformat(),
        "until": certificate.not_valid_after_utc.isoformat(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "sha256": certificate.fingerprint(SHA256()).hex(),
    }
