"""etcd over asyncio: the few calls that a coordinator needs, on the stubs that etcd-sdk-python generates.

Every call has a deadline and goes to the next endpoint when one does not answer. A guarded transaction may therefore
be sent twice; when the first took effect, the second's comparison fails, and the caller reads again, as after any
conflict.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import structlog
from pyetcd import etcdrpc

from coordinator.settings import EtcdSettings
from meshkit.channel import aio_channel
from meshkit.errors import AimeshError, UnavailableError

log = structlog.get_logger()

Answer = TypeVar("Answer")
PROGRESS_S = 1.0
"""How often a watch asks etcd whether there was nothing new, or just no word."""
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class CompactedError(AimeshError):
    """The revision asked for is gone; list again and watch from there."""


class RefusedError(UnavailableError):
    """etcd answered, but would not: for those who depend on it the same as no answer, until an operator has acted."""


class LeaseGoneError(RefusedError):
    """The lease named has lapsed or was revoked."""


@dataclass(frozen=True)
class KeyValue:
    """One key at one revision. `value` is None when the key was deleted."""

    key: str
    value: bytes | None
    mod_revision: int
    create_revision: int = 0
    lease: int = 0


@dataclass(frozen=True)
class Unchanged:
    """A comparison: the key was last changed at this revision; 0 means that it does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True)
class Created:
    """A comparison: the key was created at this revision (by the holder that still owns it)."""

    key: str
    create_revision: int


@dataclass(frozen=True)
class Put:
    """Writes a key, under a lease when one is given."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Delete:
    """Deletes a key; no error when it is not there."""

    key: str


@dataclass(frozen=True)
class Batch:
    """Changes of one or more whole revisions, in order; the last is `revision`. Empty when there was nothing new."""

    revision: int
    changes: Sequence[KeyValue]


class Etcd:
    """A client of one etcd cluster. `connect` first, `close` last."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._files = _files(settings)
        self._channels = _open(settings, self._files)
        self._retired: list[grpc.aio.Channel] = []
        self._current = 0
        self._token = ""

    async def connect(self) -> str:
        """Logs in when a user is set and gives etcd's version. Raises UnavailableError when no endpoint answers."""
        await self._login()
        status = await self._call(
            lambda channel, options: etcdrpc.MaintenanceStub(channel).Status(etcdrpc.StatusRequest(), **options)
        )
        return str(status.version)

    async def close(self) -> None:
        """Ends all connections."""
        for channel in (*self._channels, *self._retired):
            await channel.close(None)

    async def list(self, prefix: str) -> tuple[int, Sequence[KeyValue]]:
        """All keys below a prefix and the revision at which they were read."""
        request = etcdrpc.RangeRequest(key=prefix.encode(), range_end=_end(prefix))
        answer = await self._call(lambda channel, options: etcdrpc.KVStub(channel).Range(request, **options))
        return answer.header.revision, [_key_value(kv) for kv in answer.kvs]

    async def oldest(self, prefix: str, most: int) -> Sequence[KeyValue]:
        """At most so many keys below a prefix, those created first at the front."""
        request = etcdrpc.RangeRequest(
            key=prefix.encode(),
            range_end=_end(prefix),
            limit=most,
            sort_order=etcdrpc.RangeRequest.ASCEND,
            sort_target=etcdrpc.RangeRequest.CREATE,
        )
        answer = await self._call(lambda channel, options: etcdrpc.KVStub(channel).Range(request, **options))
        return [_key_value(kv) for kv in answer.kvs]

    async def count(self, prefix: str) -> int:
        """How many keys there are below a prefix."""
        request = etcdrpc.RangeRequest(key=prefix.encode(), range_end=_end(prefix), count_only=True)
        answer = await self._call(lambda channel, options: etcdrpc.KVStub(channel).Range(request, **options))
        return int(answer.count)

    async def get(self, *keys: str) -> tuple[int, Sequence[KeyValue]]:
        """The keys at one revision, in order; mod_revision 0 and value None where there is none.

        One Range a key, the others at the revision of the first, and no transaction that only reads: etcd up to 3.5.5
        panics when the caller of one goes away, or its deadline passes, while it runs ("unexpected error during txn").
        """
        revision, first = await self._get_one(keys[0], 0)
        rest = [await self._get_one(key, revision) for key in keys[1:]]
        return revision, [first, *(found for _, found in rest)]

    async def _get_one(self, key: str, revision: int) -> tuple[int, KeyValue]:
        """A key at a revision, or now when that is 0, and etcd's revision now."""
        request = etcdrpc.RangeRequest(key=key.encode(), revision=revision)
        answer = await self._call(lambda channel, options: etcdrpc.KVStub(channel).Range(request, **options))
        return answer.header.revision, _key_value(answer.kvs[0]) if answer.kvs else KeyValue(key, None, 0)

    async def txn(self, guards: Iterable[Unchanged | Created], changes: Iterable[Put | Delete]) -> int | None:
        """Makes all changes at one revision if every guard holds. The revision, or None when a guard failed."""
        request = etcdrpc.TxnRequest(compare=[_compare(g) for g in guards], success=[_operation(c) for c in changes])
        answer = await self._call(lambda channel, options: etcdrpc.KVStub(channel).Txn(request, **options))
        return int(answer.header.revision) if answer.succeeded else None

    async def grant(self, ttl_s: int) -> int:
        """A new lease of ttl_s seconds."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._call(lambda channel, options: etcdrpc.LeaseStub(channel).LeaseGrant(request, **options))
        return int(answer.ID)

    async def revoke(self, lease: int) -> None:
        """Ends a lease and deletes its keys; no error when it has lapsed already."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            await self._call(lambda channel, options: etcdrpc.LeaseStub(channel).LeaseRevoke(request, **options))
        except LeaseGoneError:
            return

    async def keep_alive(self, leases: Sequence[int], timeout_s: float | None = None) -> set[int]:
        """Renews leases in one round trip. Gives those that have lapsed.

        Each endpoint is given timeout_s seconds, when that is less than the settings'.
        """

        async def renew(channel: grpc.aio.Channel, options: dict[str, Any]) -> set[int]:
            stream = etcdrpc.LeaseStub(channel).LeaseKeepAlive(
                iter([etcdrpc.LeaseKeepAliveRequest(ID=lease) for lease in leases]), **options
            )
            return {answer.ID async for answer in stream if answer.TTL <= 0}

        return await self._call(renew, timeout_s) if leases else set()

    async def watch(self, prefix: str, after: int) -> AsyncGenerator[Batch, None]:
        """Changes below a prefix after a revision, for ever.

        An empty batch first says that the watch stands; then at least one comes every PROGRESS_S seconds, empty when
        there was no change. Raises CompactedError when the revision is gone, UnavailableError when the stream breaks or
        etcd says nothing for the settings' timeout_s seconds.
        """
        create = etcdrpc.WatchCreateRequest(key=prefix.encode(), range_end=_end(prefix), start_revision=after + 1)
        current = self._current
        stub = etcdrpc.WatchStub(self._channels[current])
        # A member that is cut off from its quorum must end the watch: it would stay silent for ever.
        call = stub.Watch(metadata=(*self._metadata(), ("hasleader", "true")))
        asking = asyncio.create_task(_ask_progress(call, etcdrpc.WatchRequest(create_request=create)))
        try:
            while isinstance(answer := await self._next(call), etcdrpc.WatchResponse):
                if answer.compact_revision:
                    raise CompactedError(f"revision {after} was compacted; the oldest is {answer.compact_revision}")
                if answer.canceled:
                    if _about_auth(answer.cancel_reason):
                        await self._login()
                    raise UnavailableError(f"etcd ended the watch: {answer.cancel_reason}")
                changes = [_change(event) for event in answer.events]
                yield Batch(changes[-1].mod_revision if changes else after, changes)
        except grpc.aio.AioRpcError as error:
            self._rotate(current)
            raise _translate(error) from None
        except TimeoutError:
            self._rotate(current)
            silence = f"etcd at {self._settings.endpoints[current]} said nothing for {self._silence_s():g} s"
            raise UnavailableError(silence) from None
        finally:
            call.cancel()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        raise UnavailableError("etcd ended the watch")

    async def _next(self, call: Any) -> Any:
        async with asyncio.timeout(self._silence_s()):
            return await call.read()

    def _silence_s(self) -> float:
        return max(self._settings.timeout_s, 2 * PROGRESS_S)

    async def _call(
        self, make: Callable[[grpc.aio.Channel, dict[str, Any]], Awaitable[Answer]], timeout_s: float | None = None
    ) -> Answer:
        """One call with a deadline, at the current endpoint, then at each other one; logs in again when told to."""
        most_s = min(self._settings.timeout_s, timeout_s or self._settings.timeout_s)
        failure: grpc.aio.AioRpcError | None = None
        for _ in range(len(self._channels) + 1):
            current = self._current
            options = {"timeout": most_s, "metadata": self._metadata()}
            try:
                return await make(self._channels[current], options)
            except grpc.aio.AioRpcError as error:
                failure = error
                if _token_expired(error) and self._settings.username:
                    await self._login()
                elif error.code() in _ELSEWHERE:
                    self._rotate(current)
                else:
                    break
        assert failure is not None
        raise _translate(failure)

    async def _login(self) -> None:
        if not self._settings.username:
            return
        self._token = ""
        request = etcdrpc.AuthenticateRequest(name=self._settings.username, password=self._settings.password)
        answer = await self._call(lambda channel, options: etcdrpc.AuthStub(channel).Authenticate(request, **options))
        self._token = answer.token

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self._token),) if self._token else ()

    def _rotate(self, failed: int) -> None:
        """Goes on to the next endpoint, unless another call has done so already; with new certificates if there are."""
        if failed == self._current:
            self._current = (self._current + 1) % len(self._channels)
        try:
            files = _files(self._settings)
        except OSError as error:
            log.warning("etcd.tls_not_renewed", reason=str(error))
            return
        if files != self._files:
            log.info("etcd.tls_renewed")
            self._files = files
            self._retired += self._channels  # calls on them go on until they end
            self._channels = _open(self._settings, files)


async def _ask_progress(call: Any, create: Any) -> None:
    """Opens the watch and then asks for its progress, until the call ends; the reader hears why it did."""
    try:
        await call.write(create)
        while True:
            await asyncio.sleep(PROGRESS_S)
            await call.write(etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest()))
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return


def _files(settings: EtcdSettings) -> tuple[bytes | None, ...]:
    """(ca, key, cert) as they are now. Raises OSError."""
    return tuple(path.read_bytes() if path else None for path in (settings.ca, settings.key, settings.cert))


def _open(settings: EtcdSettings, files: tuple[bytes | None, ...]) -> list[grpc.aio.Channel]:
    """A channel to each endpoint."""
    credentials = grpc.ssl_channel_credentials(*files) if any(files) else None
    # etcd ends connections that ping without a call in flight.
    quiet: list[tuple[str, int | str]] = [("grpc.keepalive_permit_without_calls", 0)]
    return [aio_channel(endpoint, credentials=credentials, options=quiet) for endpoint in settings.endpoints]


def _end(prefix: str) -> bytes:
    """The first key after all keys with the prefix (a prefix of ours never ends in 0xff)."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _change(event: Any) -> KeyValue:
    if event.type == 1:  # mvccpb.Event.DELETE
        return KeyValue(event.kv.key.decode(), None, event.kv.mod_revision)
    return _key_value(event.kv)


def _compare(guard: Unchanged | Created) -> Any:
    if isinstance(guard, Unchanged):
        return etcdrpc.Compare(
            result=etcdrpc.Compare.EQUAL,
            target=etcdrpc.Compare.MOD,
            key=guard.key.encode(),
            mod_revision=guard.mod_revision,
        )
    return etcdrpc.Compare(
        result=etcdrpc.Compare.EQUAL,
        target=etcdrpc.Compare.CREATE,
        key=guard.key.encode(),
        create_revision=guard.create_revision,
    )


def _operation(change: Put | Delete) -> Any:
    if isinstance(change, Put):
        return etcdrpc.RequestOp(
            request_put=etcdrpc.PutRequest(key=change.key.encode(), value=change.value, lease=change.lease)
        )
    return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=change.key.encode()))


def _token_expired(error: grpc.aio.AioRpcError) -> bool:
    return error.code() == grpc.StatusCode.UNAUTHENTICATED or _about_auth(error.details() or "")


def _about_auth(message: str) -> bool:
    """Whether etcd wants a new token: its tokens go when it restarts, and when users or roles change."""
    return "invalid auth token" in message or "revision of auth store is old" in message


def _translate(error: grpc.aio.AioRpcError) -> AimeshError:
    if error.code() in _ELSEWHERE:
        return UnavailableError(
            f"etcd does not answer: {error.details()}", hint="check that etcd runs at coordinator.etcd.endpoints"
        )
    kind = LeaseGoneError if "lease not found" in (error.details() or "") else RefusedError
    return kind(f"etcd refused: {error.code().name}: {error.details()}", reason="ETCD_REFUSED")
