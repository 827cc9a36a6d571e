"""`aimesh infer`, `chat` and `embed`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.cli.options import Json, StateDir

if TYPE_CHECKING:
    from rich.table import Table

    from tools.cli.ask import Sampling
    from tools.cli.target import Mesh

Name = Annotated[str, typer.Argument(help="The deployed model.", metavar="NAME")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait for the whole answer.", min=0.1)]


def infer(
    name: Name,
    inputs: Annotated[
        list[str],
        typer.Option("--input", "-i", metavar="TENSOR=VALUE", help="JSON, or @file.npy. Once for each input."),
    ],
    timeout: Timeout = 60.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Ask a model with tensors. They are held against its signature before anything is sent.

    Example: [bold]aimesh infer adder --input 'x=\\[\\[1, 2, 3]]' --input y=@y.npy[/bold]
    """
    from tools.cli.ask import infer as ask
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.tensors import to_json

    answers = run(ask(find_mesh(state_dir), name, inputs, timeout))
    if not as_json:
        console().print(_outputs_table(answers))
        return
    documents = [
        {
            "outputs": {
                key: {"shape": list(array.shape), "dtype": _dtype(array), "data": to_json(array)}
                for key, array in outputs.items()
            }
        }
        for outputs in answers
    ]
    print_json(documents[0] if len(documents) == 1 else {"answers": documents})


def chat(
    name: Name,
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    max_tokens: Annotated[int, typer.Option(help="At most this long an answer, in tokens.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0 for always the likeliest word.", min=0.0)] = 0.2,
    system: Annotated[str, typer.Option(help="What the model is told before the prompt.")] = "",
    timeout: Timeout = 300.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Ask a language model; its answer is printed as it arrives.

    Example: [bold]aimesh chat smollm2 "Why is the sky blue?"[/bold]
    """
    from tools.cli.ask import Sampling
    from tools.cli.client import run
    from tools.cli.output import print_json
    from tools.cli.target import find_mesh

    sampling = Sampling(max_tokens, temperature)
    text = run(print_chat(find_mesh(state_dir), name, prompt, system, sampling, timeout, quiet=as_json))
    if as_json:
        print_json({"model": name, "text": text})


def embed(
    name: Name,
    texts: Annotated[list[str], typer.Argument(help="One or more texts.", metavar="TEXT...")],
    timeout: Timeout = 60.0,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Turn texts into vectors; two or more are compared, 1 meaning alike. --json gives the vectors.

    Example: [bold]aimesh embed minilm "a cat sat down" "the kitten rested"[/bold]
    """
    from tools.cli.ask import embed as ask
    from tools.cli.ask import similarities
    from tools.cli.client import run
    from tools.cli.output import console, print_json
    from tools.cli.target import find_mesh
    from tools.cli.tensors import summary

    vectors = run(ask(find_mesh(state_dir), name, texts, timeout))
    if as_json:
        matrix = similarities(vectors).tolist()
        print_json({"model": name, "embeddings": vectors.tolist(), "similarities": matrix})
    elif len(texts) == 1:
        console().print(f"{vectors.shape[1]} dimensions: {summary(vectors[0])}")
    else:
        console().print(similarity_table(texts, similarities(vectors)))


async def print_chat(
    mesh: Mesh, name: str, prompt: str, system: str, sampling: Sampling, timeout_s: float, *, quiet: bool = False
) -> str:
    """Streams the answer to standard output, unless quiet; gives the whole text."""
    from tools.cli.ask import chat as ask

    pieces = []
    async for piece in ask(mesh, name, prompt, system, sampling, timeout_s):
        pieces.append(piece)
        if not quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()
    if not quiet:
        sys.stdout.write("\n")
    return "".join(pieces)


def similarity_table(texts: list[str], matrix: Any) -> Table:
    """Every text against every other."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("")
    for number in range(1, len(texts) + 1):
        table.add_column(f"({number})", justify="right")
    for number, (text, row) in enumerate(zip(texts, matrix, strict=True), 1):
        table.add_row(f"({number}) {text}", *(f"{value:.3f}" for value in row))
    return table


def _outputs_table(answers: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from tools.cli.tensors import summary

    table = Table("output", "type", "shape", "values", box=None, header_style="dim", pad_edge=False)
    for outputs in answers:
        for name, array in outputs.items():
            table.add_row(name, _dtype(array), str(list(array.shape)), summary(array))
    return table


def _dtype(array: Any) -> str:
    from inference.signature import data_type_of_array

    return data_type_of_array(array)
