"""What the command line makes of names, tags, splits and prompts' places."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.errors import InvalidInputError
from tools.cli.models_catalog import parse_changes
from tools.cli.models_view import compatibility_table, version_tables
from tools.cli.prompt_text import fill, places, read_prompt
from tools.cli.reference import Reference, exact, parse_reference
from tools.cli.routing import parse_split, split_targets
from tools.cli.said import read_said

Target = routing_pb2.Target


def test_a_version_is_named_in_three_ways() -> None:
    assert parse_reference("m") == Reference("m")
    assert parse_reference("m:1.0.0") == Reference("m", version="1.0.0")
    assert parse_reference("m@champion") == Reference("m", alias="champion")
    assert exact("m:1.0.0", "") == ("m", "1.0.0")
    for wrong in ("", ":1.0.0", "@a", "m:", "m@", "m:1.0.0@a"):
        with pytest.raises(InvalidInputError, match="names no version"):
            parse_reference(wrong)
    with pytest.raises(InvalidInputError, match="names no version"):
        exact("m@champion", "")


def test_tags_are_set_and_removed() -> None:
    assert parse_changes(["a=1", "b-", "c=x-", "d="]) == ({"a": "1", "c": "x-", "d": ""}, ["b"])
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InvalidInputError, match="tag"):
            parse_changes(wrong)


def test_a_changed_split_goes_on_following_aliases() -> None:
    held = [Target(version="1.0.0", alias="champion", replicas=3, weight=100)]
    assert split_targets(held, parse_split(["1.0.0=90", "2.0.0=10"]), None) == [
        Target(version="1.0.0", alias="champion", replicas=3, weight=90),
        Target(version="2.0.0", replicas=3, weight=10),
    ]
    assert split_targets(held, parse_split(["@champion=1", "@next=1"]), 2) == [
        Target(alias="champion", replicas=2, weight=1),
        Target(alias="next", replicas=2, weight=1),
    ]


def test_places_are_filled_or_named() -> None:
    text = "Dear {{ user }}, {{user}}!\n{{ not a place }} {x} {{ day_2 }}"
    assert places(text) == ["user", "day_2"]
    filled = fill(text, {"user": "{{ day_2 }}", "day_2": "\\1"})
    assert filled == "Dear {{ day_2 }}, {{ day_2 }}!\n{{ not a place }} {x} \\1"
    with pytest.raises(InvalidInputError, match="no value for day_2"):
        fill(text, {"user": "a"})
    with pytest.raises(InvalidInputError, match="no place for colour"):
        fill("plain", {"colour": "red"})


@given(st.text())
def test_a_text_without_places_is_itself(text: str) -> None:
    if not places(text):
        assert fill(text, {}) == text


def test_a_prompt_is_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("Grüße {{ user }}", encoding="utf-8")
    packed, text = read_prompt(path, "greeting", "1.0.0")
    assert text == "Grüße {{ user }}"
    assert (packed.version.kind, packed.version.files[0].size) == (registry_pb2.KIND_PROMPT, 18)
    for content, said in ((b"\xff\xfe", "byte 0 is 0xff"), (b" \n", "is empty")):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=said):
            read_prompt(path, "greeting", "1.0.0")
    with pytest.raises(InvalidInputError, match="is no file"):
        read_prompt(tmp_path, "greeting", "1.0.0")


def test_what_a_push_says_is_read_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "new.md").write_text("Better.\n")
    said = read_said(tmp_path, f"@{tmp_path}/new.md", "", ["commit=abc"], "", ["stage=new"], ["champion"])
    version = registry_pb2.ModelVersion()
    said.tell(version)
    assert (version.changelog, version.provenance.source) == ("Better.\n", tmp_path.name)
    assert dict(version.provenance.details) == {"commit": "abc"}
    with pytest.raises(InvalidInputError, match="--changelog @nowhere"):
        read_said(tmp_path, "@nowhere", "", None, "", None, None)
    with pytest.raises(InvalidInputError, match="--detail"):
        read_said(tmp_path, "", "", ["commit"], "", None, None)


def test_a_version_is_shown_with_all_that_is_known_of_it() -> None:
    version = registry_pb2.ModelVersion(
        name="m", version="1.1.0", runtime="llama", replaces="1.0.0", changelog="New.\n"
    )
    version.provenance.MergeFrom(registry_pb2.Provenance(pushed_by="key:ci", source="job 7", details={"commit": "abc"}))
    version.identification.MergeFrom(
        registry_pb2.Identification(
            format="gguf",
            framework="llama.cpp",
            architecture="LlamaForCausalLM",
            family="transformer",
            parameters=1234,
            warnings=["odd"],
        )
    )
    version.requirements.triton_version = "2.51.0"
    held = registry_pb2.GetModelResponse(model=registry_pb2.Model(name="m", aliases={"champion": "1.1.0"}))
    held.model.tags["1.1.0"].values["stage"] = "good"
    took = held.measured["1.1.0"]
    took.memory_bytes, took.node_id = 1 << 30, "n1"
    took.load_time.FromMilliseconds(1500)
    console = Console(width=120, markup=False)
    with console.capture() as shown:
        console.print(version_tables(version, held))
    for line in (
        "needs    0 B memory, Triton ≥ 2.51.0",
        "took     1.0 GiB memory, loaded in 1.5 s on n1",
        "found    gguf of llama.cpp, LlamaForCausalLM (transformer), 1.2 k parameters",
        "warning  odd",
        "by key:ci",
        "from     job 7",
        "commit = abc",
        "replaces 1.0.0",
        "aliases  champion",
        "tags     stage=good",
        "New.",
    ):
        assert shown.get().count(line) == 1, line


def test_what_keeps_a_node_from_a_version_is_in_the_table() -> None:
    nodes = [
        registry_pb2.NodeCompatibility(node="n1", compatible=True, memory_bytes=1 << 30),
        registry_pb2.NodeCompatibility(node="n2", reasons=["has no runtime llama", "needs a GPU"]),
    ]
    console = Console(width=120, markup=False)
    with console.capture() as shown:
        console.print(compatibility_table(nodes, "llama"))
    able, unable, more = shown.get().splitlines()[1:]
    assert "✓" in able
    assert "✗" in unable
    assert "has no runtime llama" in unable
    assert "needs a GPU" in more
