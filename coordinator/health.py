"""What gRPC health says of a coordinator: by service, and by condition for those who ask what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from coordinator.mirror import Mirror

ETCD = "aimesh.health/etcd"
"""NOT_SERVING while the coordinator is frozen: it serves what it has and takes no decisions."""
BRAKE = "aimesh.health/brake"
"""NOT_SERVING while the mass-failure brake is on."""
MIRROR = "aimesh.health/mirror"
"""NOT_SERVING while the coordinator may not have seen all of etcd's changes."""
_PACE_S = 0.1


def health_of(
    services: Sequence[str], readers: Sequence[str], *, frozen: bool, braked: bool, behind: bool
) -> dict[str, bool]:
    """Whether each name serves. `readers` are the services that a frozen coordinator goes on serving.

    "" is the process as a whole: it serves when all of its services do.
    """
    found = {name: not frozen or name in readers for name in services}
    return {"": not frozen, **found, ETCD: not frozen, BRAKE: not braked, MIRROR: not (behind or frozen)}


async def tell_health(
    mirror: Mirror,
    services: Sequence[str],
    readers: Sequence[str],
    tell: Callable[[Mapping[str, bool]], Awaitable[None]],
) -> None:
    """Tells what changes, until cancelled."""
    told: dict[str, bool] = {}
    while True:
        frozen, braked, behind = bool(mirror.frozen), bool(mirror.state.braked), bool(mirror.behind_s())
        health = health_of(services, readers, frozen=frozen, braked=braked, behind=behind)
        if health != told:
            await tell(health)
            told = health
        await asyncio.sleep(_PACE_S)
