"""Who calls, and whether they may: checked before any handler of a server sees the call.

A caller is known by the certificate of its connection and, in `authorization: Bearer <key>`, by an API key; what the
two allow adds up. Without TLS a caller without a key is "anyone" and may do everything: such servers are reached from
their own machine only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import grpc

from meshkit.errors import AimeshError, PermissionDeniedError, UnauthenticatedError
from meshkit.interceptors import Around, rewrap
from meshkit.scopes import EVERY_SCOPE, PUBLIC, Requirement, Scope, requirement, scopes_of, words
from meshkit.tls import Identity

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
Context = Any  # grpc.aio.ServicerContext, whose stubs leave out auth_context


@dataclass(frozen=True)
class Principal:
    """Who makes a call."""

    actor: str
    """As in audit events: "key:<name>", "<role>:<id>" of the certificate, or "anyone"."""
    scopes: frozenset[Scope]
    peer: str = ""
    """Where the call came from."""
    identity: Identity | None = None
    """Of the connection's certificate."""
    certificate: bytes = b""
    """The connection's certificate in PEM."""
    key_id: str = ""
    """Of the API key, when one was shown."""
    ends_at: float | None = None
    """When the key ends, in seconds since the epoch."""

    @property
    def authenticated(self) -> bool:
        """Whether the caller showed who it is; a gateway shows only which gateway it came through."""
        return bool(self.key_id) or (self.identity is not None and self.identity.role != "gateway")


@dataclass(frozen=True)
class KeyHolder:
    """A valid API key's holder."""

    id: str
    name: str
    scopes: frozenset[Scope]
    ends_at: float | None
    """Seconds since the epoch; None for never."""


ANYONE = Principal("anyone", EVERY_SCOPE)
_current: ContextVar[Principal] = ContextVar("principal", default=ANYONE)
_method: ContextVar[str] = ContextVar("method", default="")


def current_principal() -> Principal:
    """Who makes the call that is being handled."""
    return _current.get()


def current_method() -> str:
    """The full method of the call that is being handled; empty outside of calls."""
    return _method.get()


def act_as(actor: str, method: str = "") -> None:
    """Says who makes the call that is being handled, where only its handler can find out.

    Outside of calls, with a word in place of the method: who acts in this task from now on.
    """
    _current.set(replace(_current.get(), actor=actor))
    if method:
        _method.set(method)


def check_speaks_for_node(node_id: str) -> None:
    """Raises PermissionDeniedError when the caller's certificate is another node's."""
    identity = current_principal().identity
    if identity is not None and (identity.role, identity.id) != ("node", node_id):
        raise PermissionDeniedError(
            f"{identity.uri} may not speak for node {node_id!r}",
            hint=f"give that agent a certificate of its own: aimesh ca issue node {node_id}",
            reason="WRONG_NODE",
        )


def identify(context: Context, *, tls: bool, check_key: Callable[[str], KeyHolder] | None) -> Principal:
    """The caller, from its connection and metadata.

    `check_key` reads an API key's text and raises UnauthenticatedError when it is not valid; None where no keys are
    taken. Raises what it raises.
    """
    peer = _peer(context)
    holder = check_key(text) if check_key is not None and (text := _bearer(context)) else None
    identity, certificate = _certificate(context) if tls else (None, b"")
    if holder is None and not tls:
        return Principal("anyone", EVERY_SCOPE, peer)
    given = scopes_of(identity) if identity else frozenset()
    through = _through(peer, identity, context)
    if holder is None:
        actor = f"{identity.role}:{identity.id}" if identity else "unknown"
        return Principal(actor, given, through, identity, certificate)
    scopes = given | holder.scopes
    return Principal(f"key:{holder.name}", scopes, through, identity, certificate, holder.id, holder.ends_at)


def authorize(principal: Principal, method: str, needs: Requirement) -> None:
    """Raises UnauthenticatedError or PermissionDeniedError when the caller may not call the method."""
    if PUBLIC in needs.scopes or principal.scopes & needs.scopes:
        return
    if principal.identity is not None and principal.identity.role in needs.roles and not principal.key_id:
        return
    if not needs.scopes and not needs.roles:
        raise PermissionDeniedError(f"{method} declares no scope, so nobody may call it", reason="NO_SCOPE_DECLARED")
    wanted = " or ".join(words(needs.scopes))
    if not principal.authenticated:
        raise UnauthenticatedError(
            f"{method} needs the scope {wanted}, and the call carries no API key",
            hint="set AIMESH_API_KEY (aimesh keys create), or call with a certificate that has the scope",
        )
    held = ", ".join(words(principal.scopes)) or "none"
    raise PermissionDeniedError(
        f"{method} needs the scope {wanted}; {principal.actor} has {held}",
        hint="use a key with that scope: aimesh keys create NAME --scope ...",
    )


@dataclass(eq=False)
class _Call:
    """One that is being made, and can be ended."""

    principal: Principal
    """Without its identity when the call does not depend on the certificate once it was admitted."""
    limit: asyncio.Timeout
    ended: AimeshError | None = field(default=None, init=False)
    """Why it was ended, once it was."""


class AuthInterceptor(Around):
    """Lets a handler run only for callers that may, and only for as long as what they showed is valid."""

    def __init__(self, identify: Callable[[Context], Principal], now: Callable[[], float] = time.time) -> None:
        """`identify` tells who calls; `now` gives seconds since the epoch."""
        self._identify = identify
        self._now = now
        self._calls: set[_Call] = set()

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler for those that may."""
        return rewrap(handler, lambda inner: self._unary(inner, method), lambda inner: self._streaming(inner, method))

    def end_calls(self, why: Callable[[Principal], AimeshError | None]) -> None:
        """Ends the calls that are being made with a key, and the streams with a certificate, for which there is a why.

        A single answer to a certificate is soon given, and may be the one to who revokes his own.
        """
        for call in self._calls:
            if call.ended is None and not call.limit.expired() and (error := why(call.principal)):
                call.ended = error
                call.limit.reschedule(asyncio.get_running_loop().time())

    def _unary(self, inner: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            async with self._admitted(context, method, stream=False):
                return await inner(request, context)

        return call

    def _streaming(self, inner: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> None:
            async with self._admitted(context, method, stream=True):
                answers = inner(request, context)
                if not hasattr(answers, "__aiter__"):  # a handler that writes through the context
                    await answers
                    return
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        await context.write(answer)

        return call

    @contextlib.asynccontextmanager
    async def _admitted(self, context: Context, method: str, *, stream: bool) -> AsyncIterator[None]:
        """The time of a call that may be made; a call's task is its own, so what is set here ends with it."""
        principal = self._identify(context)
        authorize(principal, method, requirement(method))
        _current.set(principal)
        _method.set(method)
        if not principal.key_id and not (stream and principal.identity):
            yield
            return
        async with self._while_valid(principal if stream else replace(principal, identity=None)):
            yield

    @contextlib.asynccontextmanager
    async def _while_valid(self, principal: Principal) -> AsyncIterator[None]:
        left = None if principal.ends_at is None else max(0.0, principal.ends_at - self._now())
        call = _Call(principal, asyncio.timeout(left))
        try:
            async with call.limit:
                self._calls.add(call)
                yield
        except TimeoutError:
            if not call.limit.expired():
                raise
            raise call.ended or UnauthenticatedError(f"the API key of {principal.actor} has ended") from None
        finally:
            self._calls.discard(call)


def _bearer(context: Context) -> str:
    """The API key's text; empty when none is shown."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return ""


def _certificate(context: Context) -> tuple[Identity | None, bytes]:
    found = context.auth_context()
    uris = found.get("peer_uri", [])
    certificate = found.get("x509_pem_cert", [b""])[0]
    return (Identity.parse(uris[0].decode()) if len(uris) == 1 else None), certificate


def _peer(context: Context) -> str:
    return str(context.peer())


def _through(peer: str, identity: Identity | None, context: Context) -> str:
    """Where a call came from: a gateway says for whom it calls, and is believed; nobody else is."""
    if identity is None or identity.role != "gateway":
        return peer
    for key, value in context.invocation_metadata() or ():
        if key == "x-forwarded-for" and isinstance(value, str):
            return f"{value.rpartition(',')[2].strip()} through gateway {identity.id}"
    return f"{peer} (gateway {identity.id})"
