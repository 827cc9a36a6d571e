"""How routes look on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.routing.v1 import routing_pb2


def explained(name: str, headers: Mapping[str, str], found: routing_pb2.ExplainRouteResponse) -> RenderableType:
    """What `aimesh routes explain` prints."""
    sent = ", ".join(f"{key}: {value}" for key, value in sorted(headers.items())) or "no headers"
    return Group(
        Text(f"A request for {name} with {sent}, at revision {found.revision}"),
        Text(""),
        *_way("Through the gateway", found.gateway),
        Text(""),
        *_way(f"From a gRPC program on xds:///{name}", found.programs),
        Text(""),
        rules_table(found.rules),
    )


def shown(deployment: routing_pb2.Deployment, rules: Sequence[routing_pb2.RuleEffect]) -> RenderableType:
    """What `aimesh routes show` prints."""
    table = Table(box=None, pad_edge=False)
    for title in ("VERSION", "REPLICAS", "WEIGHT"):
        table.add_column(title)
    for target in deployment.targets:
        table.add_row(target.version, str(target.replicas), str(target.weight))
    return Group(table, Text(""), rules_table(rules))


def rules_table(rules: Sequence[routing_pb2.RuleEffect]) -> Table:
    """Each rule with what the two engines make of it; one that does not do all of it is marked."""
    table = Table(box=None, pad_edge=False)
    table.add_column("RULE", ratio=2)
    table.add_column("GATEWAY", ratio=4)
    table.add_column("GRPC PROGRAMS", ratio=4)
    for rule in rules:
        same = rule.programs == rule.gateway
        programs = Text("the same") if same else Text(rule.programs, style="yellow" if rule.partial else "")
        table.add_row(Text(("! " if rule.partial else "  ") + rule.rule), Text(rule.gateway), programs)
    return table


def _way(title: str, way: routing_pb2.Way) -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    yield Text(f"  decided by    {way.decided_by}")
    for reason in way.passed_over:
        yield Text(f"  passed over   {reason}")
    for share in way.shares:
        yield from _share(share)
    for copy in way.copies:
        yield Text(f"  copied to     {copy.deployment} {copy.version}: {copy.percent:g} % of the requests")
    yield Text(f"  time          {_times(way)}")
    retried = f"{way.retries} more on {way.retry_on.replace(',', ', ')}, waiting up to {_shown(way.retry_back_off)}"
    yield Text(f"  tries         {retried if way.retries else 'one'}")


def _share(share: routing_pb2.Share) -> Iterator[Text]:
    role = f"{share.percent:.3g} %"
    limit = f", at most {share.max_requests} in flight" if share.max_requests else ""
    yield Text(f"  {role:12}  {share.deployment} {share.version}, replicas: {share.balancer}{limit}")
    for each in share.endpoints:
        if not each.address:
            yield Text(f"                  {each.node}: out: {each.reason}")
            continue
        percent = f" {each.percent:.3g} %" if each.percent else ""
        reason = f" ({each.reason})" if each.reason else ""
        yield Text(f"                  {each.node} {each.address}{percent}{reason}")
    if not share.endpoints:
        yield Text("                  no endpoints")


def _times(way: routing_pb2.Way) -> str:
    known = (("timeout", "the call"), ("try_timeout", "one try"), ("hedge_delay", "until the next copy"))
    said = [f"{what} {_shown(getattr(way, field))}" for field, what in known if _has(way, field)]
    return ", ".join(said) or "the caller's own deadline"


def _has(message: Message, field: str) -> bool:
    return bool(message.HasField(field))


def _shown(duration: duration_pb2.Duration) -> str:
    ms = duration.ToNanoseconds() / 1e6
    return f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s"
