from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.placement import place
from coordinator.registry.compatibility import GIB, compatible, is_older
from coordinator.state import State


def node(
    runtimes: dict[str, str] | None = None, triton: str = "2.51.0", memory: int = 8, gpus: tuple[int, ...] = ()
) -> membership_pb2.Node:
    return membership_pb2.Node(
        id="n1",
        state=membership_pb2.NODE_STATE_READY,
        runtimes=runtimes,
        capacity=membership_pb2.Capacity(
            memory_bytes=memory * GIB, gpus=[membership_pb2.Gpu(memory_bytes=each * GIB) for each in gpus]
        ),
        report=membership_pb2.ModelReport(triton=membership_pb2.Triton(version=triton)),
    )


def version(**needs: object) -> registry_pb2.ModelVersion:
    requirements = registry_pb2.Requirements(**needs)  # type: ignore[arg-type]
    return registry_pb2.ModelVersion(name="m", version="1.0.0", runtime="torch", requirements=requirements)


@pytest.mark.parametrize(
    ("needs", "on", "reason"),
    [
        ({}, node({"llama": "0.3.2"}), "has no runtime torch"),
        ({"runtime_version": "2.9"}, node({"torch": "2.8.1+cpu"}), "runtime torch is 2.8.1+cpu, needs 2.9"),
        ({"triton_version": "2.52.0"}, node(), "Triton is 2.51.0, needs 2.52.0"),
        ({"memory_bytes": 9 * GIB}, node(), "needs 9.00 GiB of memory, it has 8.00 GiB"),
        ({"gpu_memory_bytes": GIB}, node(), "needs a GPU with 1.00 GiB, it has none"),
        ({"gpu_memory_bytes": 30 * GIB}, node(gpus=(16, 24)), "needs a GPU with 30.00 GiB, its largest has 24.00 GiB"),
        ({"node_labels": {"zone": "b"}}, node(), "label zone is '', not 'b'"),
    ],
)
def test_each_reason_is_told(needs: dict[str, object], on: membership_pb2.Node, reason: str) -> None:
    found = compatible(version(**needs), on)
    assert (found.compatible, list(found.reasons)) == (False, [reason])


@pytest.mark.parametrize(
    ("needs", "on"),
    [
        ({"runtime_version": "99"}, node()),  # an agent that does not say
        ({"runtime_version": "2.9"}, node({"torch": "2.9.1+cu128"})),
        ({"runtime_version": "2.9"}, node({"torch": "unknown"})),
        ({"triton_version": "99"}, node(triton="")),
        ({"gpu_memory_bytes": 24 * GIB, "memory_bytes": 8 * GIB}, node(gpus=(16, 24))),
    ],
)
def test_what_fits_or_is_not_known_is_compatible(needs: dict[str, object], on: membership_pb2.Node) -> None:
    assert compatible(version(**needs), on).compatible


def test_what_was_measured_counts_in_place_of_the_estimate() -> None:
    measured = registry_pb2.Measured(memory_bytes=9 * GIB)
    assert not compatible(version(memory_bytes=GIB), node(), measured).compatible
    assert compatible(version(memory_bytes=9 * GIB), node(), registry_pb2.Measured(memory_bytes=GIB)).compatible
    assert not compatible(version(memory_bytes=9 * GIB), node(), registry_pb2.Measured()).compatible


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=4)


@given(numbers, numbers)
def test_versions_are_ordered_by_number(a: list[int], b: list[int]) -> None:
    one, other = (".".join(map(str, each)) for each in (a, b))
    padded = [each + [0] * (4 - len(each)) for each in (a, b)]
    assert is_older(one, other) is (padded[0] < padded[1])
    assert is_older(f"{one}+cu128", other) is is_older(one, other)


@pytest.mark.parametrize(
    ("needs", "limit"), [({"triton_version": "3.0"}, "triton"), ({"runtime_version": "9"}, "runtime")]
)
def test_placement_goes_by_it_and_says_so(needs: dict[str, object], limit: str) -> None:
    wanted = routing_pb2.Deployment(name="m", targets=[routing_pb2.Target(version="1.0.0", replicas=1, weight=1)])
    old = node({"torch": "2.0"})
    state = State(nodes={"n1": old}, versions={("m", "1.0.0"): version(**needs)}, deployments={"m": wanted})
    placed = place(state)
    assert not placed.assignments
    [rejection] = placed.rejections[("m", "1.0.0")]
    assert (rejection.node, rejection.limit) == ("n1", limit)
    assert [rejection.message] == list(compatible(version(**needs), old).reasons)
