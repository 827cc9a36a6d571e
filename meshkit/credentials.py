"""What programs and people show to the mesh: the authority they trust, a certificate, an API key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from meshkit.channel import aio_channel, coordinator_channel
from meshkit.errors import InvalidInputError, PreconditionError
from meshkit.tls import is_loopback

FILES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
"""What the files in a directory of `aimesh ca issue` are called."""
API_KEY = "api-key"
"""What an API key beside them is called."""


@dataclass(frozen=True)
class ClientCredentials:
    """Of a program that calls the mesh."""

    ca: Path | None = None
    """The mesh's authority; None for plain text."""
    cert: Path | None = None
    key: Path | None = None
    api_key: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> ClientCredentials:
        """AIMESH_TLS_CA, AIMESH_TLS_CERT and AIMESH_TLS_KEY, or a directory of them in AIMESH_TLS_DIR; AIMESH_API_KEY.

        A gateway asks for a key only, so AIMESH_TLS_CA may stand alone. Raises InvalidInputError when a certificate is
        named without its key, or without an authority.
        """
        paths: dict[str, Path] = {}
        if folder := environ.get("AIMESH_TLS_DIR"):
            paths = {name: Path(folder) / file for name, file in FILES.items() if (Path(folder) / file).exists()}
            if "ca" not in paths:
                raise InvalidInputError(f"AIMESH_TLS_DIR: there is no {FILES['ca']} in {folder}")
        for name in FILES:
            if named := environ.get(f"AIMESH_TLS_{name.upper()}"):
                paths[name] = Path(named)
        if ("cert" in paths) != ("key" in paths) or ("cert" in paths and "ca" not in paths):
            raise InvalidInputError(
                f"only {', '.join(sorted(paths))} of ca, cert and key are given",
                hint="set AIMESH_TLS_CA, AIMESH_TLS_CERT and AIMESH_TLS_KEY, or AIMESH_TLS_DIR",
            )
        return cls(**paths, api_key=environ.get("AIMESH_API_KEY", ""))

    @classmethod
    def from_directory(cls, folder: Path) -> ClientCredentials:
        """The files of `aimesh ca issue` in a directory, and an API key if one lies beside them."""
        key = folder / API_KEY
        return cls(
            **{name: folder / file for name, file in FILES.items()},
            api_key=key.read_text().strip() if key.exists() else "",
        )

    def coordinator_channel(self, target: str) -> grpc.aio.Channel:
        """A channel to a coordinator's `host:port` that shows them; with TLS no other server gets to see a call.

        Raises PreconditionError naming the file that cannot be read, InvalidInputError when others could read the key.
        """
        return coordinator_channel(target, credentials=self._tls(target), interceptors=self._shown())

    def gateway_channel(self, target: str) -> grpc.aio.Channel:
        """The same to a gateway, which is known by the address that it is reached at. Raises the same."""
        return aio_channel(target, credentials=self._tls(target), interceptors=self._shown())

    def _shown(self) -> Sequence[grpc.aio.ClientInterceptor]:
        return _bearer(self.api_key) if self.api_key else ()

    def _tls(self, target: str) -> grpc.ChannelCredentials | None:
        if self.api_key and self.ca is None and not is_loopback(target.rpartition(":")[0]):
            raise InvalidInputError(
                f"an API key is not sent to {target} in plain text: whoever listens would have it",
                hint="name the mesh's authority: set AIMESH_TLS_CA or AIMESH_TLS_DIR; or unset AIMESH_API_KEY",
                reason="TLS_REQUIRED",
            )
        if self.ca is None:
            return None
        return grpc.ssl_channel_credentials(*(_read(path) for path in (self.ca, self.key, self.cert)))


def _read(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        raise PreconditionError(f"cannot read {path}: {error.strerror}", reason="TLS_FILE") from None


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    def __init__(self, add: Callable[[Any], Any]) -> None:
        self._add = add

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._add(client_call_details), request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, add: Callable[[Any], Any]) -> None:
        self._add = add

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._add(client_call_details), request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, add: Callable[[Any], Any]) -> None:
        self._add = add

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._add(client_call_details), request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, add: Callable[[Any], Any]) -> None:
        self._add = add

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._add(client_call_details), request_iterator)


def _bearer(api_key: str) -> Sequence[Any]:
    """One interceptor a kind of call, as grpc.aio wants them. (Call credentials would work over TLS only.)"""

    def add(details: Any) -> Any:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {api_key}"))
        return details._replace(metadata=metadata)

    return _UnaryUnary(add), _UnaryStream(add), _StreamUnary(add), _StreamStream(add)
