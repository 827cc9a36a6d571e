"""Other people's text in the gateway's own replies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.xds.replies import literal


@given(st.text(max_size=3000))
def test_no_text_makes_a_reply_that_envoy_refuses(text: str) -> None:
    """Envoy refuses a direct response of more than 4,096 bytes, and all routes with it."""
    shown = literal(text * 3)
    assert len(json.dumps({"error": shown}).encode()) <= 4096
    assert "%" not in shown.replace("%%", "")


@pytest.mark.parametrize("char", ["a", "%", '"', "\\", "\x00", "\n", "\x7f", "é", "錯", "😀"])
def test_no_character_repeated_makes_a_reply_that_envoy_refuses(char: str) -> None:
    shown = literal(char * 5000)
    assert len(json.dumps({"error": shown}).encode()) < 4096
    assert len(shown.encode()) < 4096


def test_a_text_is_cut_between_characters() -> None:
    assert literal("錯" * 5000).endswith("錯...")
