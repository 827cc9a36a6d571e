"""Envoy's matcher trees: a lookup by map where a list of routes would be tried one after the other.

Source: Envoy documentation, "Generic Matching"; xds.type.matcher.v3.Matcher. Every tree here says what happens when
nothing in it matches, so that no rule about falling back to an outer tree is relied on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import http_inputs_pb2

from coordinator.xds.snapshot import packed_any

Matcher = Any
"""xds.type.matcher.v3.Matcher, made through VirtualHost.matcher: its package has no types."""
OnMatch = Any
"""xds.type.matcher.v3.Matcher.OnMatch."""

_HOST = route_components_pb2.VirtualHost


def routes_action(routes: Sequence[route_components_pb2.Route]) -> OnMatch:
    """Ends a lookup: the first of `routes` whose own match holds."""
    on_match = _HOST().matcher.on_no_match
    on_match.action.name = "routes"
    on_match.action.typed_config.CopyFrom(packed_any(route_components_pb2.RouteList(routes=routes)))
    return on_match


def exact(header: str, found: Mapping[str, OnMatch], otherwise: OnMatch) -> OnMatch:
    """Looks the header's whole value up; `:path` is a header here, query included."""
    return _tree(header, found, otherwise, prefix=False)


def longest_prefix(header: str, found: Mapping[str, OnMatch], otherwise: OnMatch) -> OnMatch:
    """Looks up the longest key that the header's value begins with."""
    return _tree(header, found, otherwise, prefix=True)


def _tree(header: str, found: Mapping[str, OnMatch], otherwise: OnMatch, *, prefix: bool) -> OnMatch:
    if not found:  # Envoy refuses an empty map
        return otherwise
    on_match = _HOST().matcher.on_no_match
    tree = on_match.matcher.matcher_tree
    tree.input.name = header
    tree.input.typed_config.CopyFrom(packed_any(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=header)))
    entries = tree.prefix_match_map.map if prefix else tree.exact_match_map.map
    for key, value in sorted(found.items()):
        entries[key].CopyFrom(value)
    on_match.matcher.on_no_match.CopyFrom(otherwise)
    return on_match
