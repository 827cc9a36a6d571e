"""The mass-failure brake and the rule of who takes requests: pure, so that every coordinator comes to the same answer.

When many nodes fall silent at once, the network or the coordinators are more likely at fault than the nodes. While more
than a stated share of them is silent, the routes of the silent ones stay, nobody is judged dead and nothing is moved,
until nodes are back, proof is there (a refused connection), or an operator forgets them. See docs/adr/0005.
"""

from __future__ import annotations

from collections.abc import Mapping

from aimesh.membership.v1 import membership_pb2

LEAST_VANISHED = 2
"""One silent node is a silent node, whatever share it is of a small mesh."""
_MOST_NAMED = 5

Nodes = Mapping[str, membership_pb2.Node]


def vanished(nodes: Nodes, members: Nodes) -> list[str]:
    """Ids of the nodes that are gone without a word or a proof, sorted.

    `nodes` are those with a live lease, `members` all that ever joined and did not leave. Nodes that were judged dead,
    or whose host refuses connections, are known to be away: they are no news.
    """
    return sorted(node_id for node_id, member in members.items() if _is_vanished(nodes.get(node_id), member))


def why_braked(nodes: Nodes, members: Nodes, share: float) -> str:
    """Why the brake is on, for people; empty while it is off. `share` is that of the nodes not judged dead, 0 to 1."""
    gone = vanished(nodes, members)
    counted = sum(member.state != membership_pb2.NODE_STATE_DEAD for member in members.values())
    if len(gone) < LEAST_VANISHED or len(gone) <= share * counted:
        return ""
    named = ", ".join(gone[:_MOST_NAMED]) + (f" and {len(gone) - _MOST_NAMED} more" if gone[_MOST_NAMED:] else "")
    return f"{len(gone)} of {counted} nodes are silent at once ({named}), more than {share:.0%}"


def takes_requests(node: membership_pb2.Node, *, leased: bool, braked: bool) -> bool:
    """Whether requests may be sent to a node's Triton: the one rule that routes follow.

    `leased` says that the node has a live lease. An agent's word counts while it speaks; when it is silent, what a
    probe of Triton found; before the first probe, what the agent said last.
    """
    if leased and node.state == membership_pb2.NODE_STATE_READY:
        return True
    if node.state in (membership_pb2.NODE_STATE_JOINING, membership_pb2.NODE_STATE_DRAINING):
        return False
    if node.probe == membership_pb2.PROBE_SILENT:
        return braked and node.state != membership_pb2.NODE_STATE_DEAD
    if node.probe == membership_pb2.PROBE_UNSPECIFIED:
        return node.state == membership_pb2.NODE_STATE_READY
    return node.probe == membership_pb2.PROBE_ANSWERS


def _is_vanished(node: membership_pb2.Node | None, member: membership_pb2.Node) -> bool:
    if node is not None:
        return node.state == membership_pb2.NODE_STATE_SUSPECT and node.probe == membership_pb2.PROBE_SILENT
    away = member.state in (membership_pb2.NODE_STATE_DEAD, membership_pb2.NODE_STATE_DRAINING)
    return not away and member.probe != membership_pb2.PROBE_REFUSED
