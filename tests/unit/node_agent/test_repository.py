from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError, PreconditionError
from node_agent.repository import Repository


class Place:
    """A repository with a `llama` runtime and blobs made as they are needed."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self.blobs.mkdir()
        (root / "runtimes" / "llama").mkdir(parents=True)
        (root / "runtimes" / "llama" / "model.py").write_text("template")
        self.repository = Repository(root, root / "runtimes", "/venv", lambda digest: self.blobs / digest)
        self.repository.clear()

    def version(self, runtime: str, files: dict[str, str], name: str = "m") -> registry_pb2.ModelVersion:
        recorded = []
        for path, content in files.items():
            digest = hashlib.sha256(content.encode()).hexdigest()
            (self.blobs / digest).write_text(content)
            recorded.append(registry_pb2.ModelFile(path=path, digest=digest, size=len(content)))
        return registry_pb2.ModelVersion(name=name, version="1.0.0", runtime=runtime, files=recorded)

    def tree(self, name: str = "m") -> dict[str, str]:
        root = self.repository.root / name
        return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_runtimes_template_with_the_files_beside_it(place: Place) -> None:
    version = place.version("llama", {"model.gguf": "weights", "extra/vocab.txt": "words"})
    place.repository.lay_out(version)
    tree = place.tree()
    assert tree.pop("config.pbtxt").startswith('name: "m"')
    assert tree == {"1/model.py": "template", "1/model.gguf": "weights", "1/extra/vocab.txt": "words"}
    laid_out = place.repository.root / "m" / "1" / "model.gguf"
    assert laid_out.stat().st_nlink == 2, "blobs are linked, not copied"


def test_the_users_own_model_as_it_is(place: Place) -> None:
    own = 'name: "other" backend: "python"'
    version = place.version("python", {"config.pbtxt": own, "1/model.py": "mine", "1/data.bin": "d"})
    place.repository.lay_out(version)
    tree = place.tree()
    assert 'name: "m"' in tree["config.pbtxt"]
    assert "/venv" in tree["config.pbtxt"]
    assert tree["1/model.py"] == "mine"
    assert (place.blobs / version.files[0].digest).read_text() == own, "the blob itself is not written to"


def test_a_new_version_takes_the_place_of_the_old(place: Place) -> None:
    place.repository.lay_out(place.version("llama", {"old.gguf": "1"}))
    place.repository.lay_out(place.version("llama", {"new.gguf": "2"}))
    assert set(place.tree()) == {"config.pbtxt", "1/model.py", "1/new.gguf"}
    place.repository.remove("m")
    place.repository.remove("m")
    assert list(place.repository.root.iterdir()) == []


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "", ".", "a//b", "a/./b", "a\0b"])
@pytest.mark.parametrize("runtime", ["llama", "python"])
def test_path_tricks_are_refused(place: Place, path: str, runtime: str) -> None:
    version = place.version(runtime, {"config.pbtxt": "", path: "evil"})
    with pytest.raises(InvalidInputError, match="no path below"):
        place.repository.lay_out(version)
    assert list(place.repository.root.iterdir()) == [], "nothing half laid out"


@pytest.mark.parametrize("name", ["..", "a/b", "", "a\0"])
def test_names_that_are_no_folder_are_refused(place: Place, name: str) -> None:
    with pytest.raises(InvalidInputError, match="name of a folder"):
        place.repository.lay_out(place.version("llama", {"f": "x"}, name=name))


def test_a_failed_layout_leaves_the_old_one(place: Place) -> None:
    place.repository.lay_out(place.version("llama", {"good.gguf": "1"}))
    with pytest.raises(PreconditionError, match="runtime 'tpu'"):
        place.repository.lay_out(place.version("tpu", {"f": "x"}))
    assert "1/good.gguf" in place.tree()


@pytest.mark.parametrize(
    ("runtime", "files", "said"),
    [
        ("python", {"1/model.py": "x"}, "has no config.pbtxt"),
        ("python", {"config.pbtxt": "not a config"}, "no Triton model configuration"),
        ("llama", {"model.py": "x"}, "runtime's own file"),
    ],
)
def test_unusable_versions_say_why(place: Place, runtime: str, files: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        place.repository.lay_out(place.version(runtime, files))


def test_a_model_is_laid_out_for_its_gpu(place: Place) -> None:
    version = place.version("llama", {"model.gguf": "weights"})
    version.requirements.gpu_memory_bytes = 1
    place.repository.lay_out(version, gpu=3)
    assert "gpus: 3" in place.tree()["config.pbtxt"]
