"""Every error, exit code and reason has a page that is linked from the index, and no page is of something gone."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from meshkit.errors import LEAVES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "operations"
PAGES = DOCS / "errors"
ROOMS = ("meshkit", "coordinator", "node_agent", "inference", "training", "tools")
WITHOUT_A_LEAF = {0, 1, 130}
pytestmark = pytest.mark.xdist_group("error pages")  # the code is read once
PARTS = ("**Cause.** ", "**Check.** ", "**Do.** ")


@cache
def raised() -> dict[str, set[str]]:
    """Every reason that the code states, with the classes that it is stated for."""
    found: dict[str, set[str]] = {}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "reason=" in text else ():
                if isinstance(node, ast.Call):
                    for keyword in node.keywords:
                        if keyword.arg == "reason" and _is_reason(keyword.value):
                            found.setdefault(ast.literal_eval(keyword.value), set()).add(ast.unparse(node.func))
    return found


def _is_reason(value: ast.expr) -> bool:
    constant = isinstance(value, ast.Constant) and isinstance(value.value, str)
    return constant and re.fullmatch(r"[A-Z][A-Z0-9_]+", ast.literal_eval(value)) is not None


def reasons() -> set[str]:
    return set(raised())


def exit_codes() -> set[int]:
    return {leaf.exit_code for leaf in LEAVES} | WITHOUT_A_LEAF


def wanted() -> set[str]:
    return {f"exit-{code}.md" for code in exit_codes()} | {f"{reason}.md" for reason in reasons()}


def test_every_error_has_a_page_and_every_page_an_error() -> None:
    there = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    missing, stale = sorted(wanted() - there), sorted(there - wanted())
    assert not missing, "write these in docs/operations/errors/, after the example of the others"
    assert not stale, "nothing in the code has these reasons any more"


def test_the_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (PAGES / "README.md").read_text()))
    assert not sorted(wanted() - linked), "add these to docs/operations/errors/README.md"


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
def test_the_page_of_a_leaf_names_it(leaf: type) -> None:
    text = (PAGES / f"exit-{leaf.exit_code}.md").read_text()  # type: ignore[attr-defined]
    assert leaf.__name__ in text
    assert leaf.code.name in text  # type: ignore[attr-defined]
    assert leaf.__name__ in (DOCS / "exit-codes.md").read_text()


def test_the_page_of_a_reason_names_its_error() -> None:
    leaves = {leaf.__name__ for leaf in LEAVES}
    pages = {reason: (PAGES / f"{reason}.md").read_text() for reason in reasons() if (PAGES / f"{reason}.md").exists()}
    wrong = {
        reason: sorted(kinds & leaves)
        for reason, kinds in raised().items()
        if kinds & leaves and reason in pages and not any(f"`{kind}`" in pages[reason] for kind in kinds & leaves)
    }
    assert not wrong


def test_every_page_says_the_cause_what_to_check_and_what_to_do() -> None:
    pages = [path for path in PAGES.glob("*.md") if path.name not in ("README.md", "exit-0.md")]
    lacking = {path.name: part for path in pages for part in PARTS if part not in path.read_text()}
    assert not lacking


def test_links_between_the_pages_lead_somewhere() -> None:
    broken = []
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} → {target}")
    assert not broken
