from __future__ import annotations

import pytest

from node_agent.reasons import OUT_OF_MEMORY, STUB_DIED, plain_reason

_FRAME = "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: {};\n"


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        (
            _FRAME.format("ValueError: no such weights\n\nAt:\n  /repository/m/1/model.py(7): initialize\n"),
            "ValueError: no such weights",
        ),
        (_FRAME.format("first\nsecond\nthird"), "first second"),
        (_FRAME.format("Stub process 'm_0' is not healthy."), STUB_DIED),
        ("failed to load 'm', no version is available", "failed to load 'm', no version is available"),
        ("", ""),
    ],
)
def test_tritons_words_without_frame_and_trace(said: str, plain: str) -> None:
    assert plain_reason(said) == plain


def test_memory_is_named_only_when_a_process_died() -> None:
    assert plain_reason(_FRAME.format("Stub process 'm_0' is not healthy."), 1) == f"{STUB_DIED}; {OUT_OF_MEMORY}"
    assert plain_reason(_FRAME.format("ValueError: no"), 1) == "ValueError: no"


def test_what_is_long_is_cut() -> None:
    assert len(plain_reason("x" * 1000)) == 300
