"""`aimesh demo`: the whole mesh in a minute."""

from __future__ import annotations

import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from tools.cli.target import Mesh

QUESTION = "In one sentence: what does a computer network do?"
SENTENCES = [
    "The server room is too hot.",
    "It is very warm where the machines stand.",
    "I would like a cup of tea.",
]
LANGUAGE, EMBEDDING, VERSION = "smollm2", "minilm", "1.0.0"


def demo(
    nodes: Annotated[int, typer.Option(help="Nodes of the mesh.", min=1)] = 3,
    state_dir: Annotated[
        Path | None,
        typer.Option("--state-dir", metavar="DIR", help="Keep the mesh's data here; a temporary place if not given."),
    ] = None,
) -> None:
    """Start a mesh of three nodes, deploy two models, ask them, show what runs where, and stop it all.

    Example: [bold]aimesh demo[/bold]
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with ExitStack() as stack:
        place = state_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-demo-")))
        mesh = _start(stack, place.absolute(), nodes)
        _deploy(mesh, min(2, nodes))
        _ask(mesh)
        _show(mesh)
        _step("Stopping everything that was started")
    typer.echo()
    _say_how_to_go_on()


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the demo as Ctrl-C does: everything is stopped on the way out."""
    raise KeyboardInterrupt


def _start(stack: ExitStack, place: Path, nodes: int) -> Mesh:
    from tools.cli.progress import PartsView
    from tools.cli.target import find_mesh
    from tools.local import control
    from tools.local.supervisor import Request

    _step(f"Starting etcd, a coordinator, {nodes} nodes with Triton, and a gateway in {place}")
    stack.callback(_stop, place)
    with PartsView() as view:
        control.up_detached(Request(place, nodes), view.show)
    return find_mesh(place)


def _stop(place: Path) -> None:
    from tools.cli.progress import PartsView
    from tools.local import control

    with PartsView() as view:
        control.down(place, view.show)


def _deploy(mesh: Mesh, replicas: int) -> None:
    from inference.demo import demo_models
    from inference.packaging import package
    from tools.cli.client import run
    from tools.cli.deployments import wait_with_progress
    from tools.cli.models import push_with_progress
    from tools.cli.placement import apply

    _step("Pushing and deploying two models")
    for name, path in zip((LANGUAGE, EMBEDDING), demo_models(), strict=True):
        with package(path, name, VERSION) as packed:
            push_with_progress(mesh, packed)
        run(apply(mesh, name, VERSION, replicas))
    for name in (LANGUAGE, EMBEDDING):
        wait_with_progress(mesh, name, VERSION, timeout_s=120.0)


def _ask(mesh: Mesh) -> None:
    from tools.cli.ask import Sampling, embed, similarities
    from tools.cli.client import run
    from tools.cli.inference import print_chat, similarity_table
    from tools.cli.output import console

    _step(f"aimesh chat {LANGUAGE} {QUESTION!r}")
    run(print_chat(mesh, LANGUAGE, QUESTION, "", Sampling(max_tokens=96, temperature=0.0), 120.0))
    _step(f"aimesh embed {EMBEDDING} …")
    vectors = run(embed(mesh, EMBEDDING, SENTENCES, 60.0))
    console().print(similarity_table(SENTENCES, similarities(vectors)))


def _show(mesh: Mesh) -> None:
    from tools.cli.client import run
    from tools.cli.models_view import versions_table
    from tools.cli.output import console
    from tools.cli.registry import list_versions
    from tools.cli.status_command import get_status
    from tools.cli.status_view import nodes_table, routes_table

    _step("aimesh status; aimesh models list")
    status = run(get_status(mesh))
    for table in (nodes_table(status), versions_table(run(list_versions(mesh))), routes_table(mesh, status)):
        console().print(table)
        typer.echo()


def _step(text: str) -> None:
    from tools.cli.output import console

    console().print(f"\n▸ {text}", style="bold", markup=False, soft_wrap=True)


def _say_how_to_go_on() -> None:
    from tools.cli.output import console

    console().print(
        "That was a whole mesh. To keep one:\n"
        "  aimesh up --nodes 3 --detach\n"
        "  aimesh models push MODEL.gguf --name my-model --version 1.0.0\n"
        "  aimesh deploy my-model --replicas 2\n"
        '  aimesh chat my-model "Hello!"\n'
        "  aimesh status --watch\n"
        "  aimesh down",
        soft_wrap=True,
    )
