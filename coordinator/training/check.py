"""A job as it is submitted: checked field by field, with its defaults filled in. Raises InvalidInputError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from google.protobuf import duration_pb2

from aimesh.training.v1 import training_pb2
from coordinator.training.record import seconds
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version

TASKS = ("classifier", "regressor", "autoencoder", "language")
BUILTIN = ("digits", "iris", "wine", "breast_cancer", "diabetes")
FORMS = (".npz", ".safetensors", ".npy", ".csv", ".jsonl", ".txt")
PARTITIONS = ("iid", "dirichlet", "labels")

MOST_WORKERS = 4096
MOST_CLIENTS = 100_000
MOST_SHARDS = 1000
MOST_PAIRS = 128
MOST_VALUE = 4096
"""Characters of one hyperparameter: all of them lie in etcd."""
MOST_SPEC = 256 * 1024
"""Bytes of all that is asked for: it is written with every move of the job, and sent to every worker."""
MOST_BATCH = 2**31 - 1
MOST_S = 366 * 24 * 3600.0
MOST_PRIORITY = 1000

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


def check_job(spec: training_pb2.JobSpec) -> training_pb2.JobSpec:
    """A copy with every default filled in."""
    made = training_pb2.JobSpec()
    made.CopyFrom(spec)
    _check(_NAME.fullmatch(made.name), "name", made.name, "[a-z0-9][a-z0-9-]{0,40}")
    if made.ByteSize() > MOST_SPEC:
        raise _bad(f"the job has {made.ByteSize()} bytes", f"at most {MOST_SPEC}; upload what is large as data")
    _check_entry(made)
    _check_data(made)
    _check_base(made.base_model)
    _check_pairs("hyperparameters", made.hyperparameters)
    _check(made.strategy in training_pb2.Strategy.values(), "strategy", made.strategy, "see training.proto")
    made.strategy = made.strategy or training_pb2.STRATEGY_AUTO
    _check_length(made)
    _check_federated(made)
    _check_resources(made.resources)
    _check_policies(made)
    _check_output(made)
    return made


def _check_entry(spec: training_pb2.JobSpec) -> None:
    kind = spec.WhichOneof("entry")
    if kind is None:
        raise _bad("the job has neither task nor code", f"task is one of {', '.join(TASKS)}; code is your own trainer")
    if kind == "task":
        _check(spec.task in TASKS, "task", spec.task, f"one of {', '.join(TASKS)}")
    else:
        _check(
            _DIGEST.fullmatch(spec.code.archive), "code.archive", spec.code.archive, "the digest of an uploaded blob"
        )
        _check(_ENTRY.fullmatch(spec.code.entry), "code.entry", spec.code.entry, "MODULE:ATTRIBUTE, as train:Trainer")


def _check_data(spec: training_pb2.JobSpec) -> None:
    data = spec.data
    named = [name for name in ("builtin", "path") if getattr(data, name)] + (["shards"] if data.shards else [])
    if len(named) > 1:
        raise _bad(f"data has {' and '.join(named)}", "one of builtin, shards and path")
    if not named and spec.WhichOneof("entry") == "task":
        raise _bad("the job has no data", "one of data.builtin, data.shards and data.path")
    if data.builtin:
        _check(data.builtin in BUILTIN, "data.builtin", data.builtin, f"one of {', '.join(BUILTIN)}")
    if data.path:
        fine = data.path.startswith("/") and data.path.isprintable() and ".." not in data.path.split("/")
        _check(fine and len(data.path) <= MOST_VALUE, "data.path", data.path, "an absolute path on every node")
    _check(0 <= data.holdout <= 0.5, "data.holdout", data.holdout, "0 to 0.5")
    _check_shards(data)
    _check_partition(spec)


def _check_shards(data: training_pb2.Data) -> None:
    if len(data.shards) > MOST_SHARDS:
        raise _bad(f"data has {len(data.shards)} shards", f"at most {MOST_SHARDS}")
    for shard in data.shards:
        known = _FILE.fullmatch(shard.name) and shard.name.endswith(FORMS)
        _check(known, "data.shards.name", shard.name, f"a file's name that ends with one of {', '.join(FORMS)}")
        _check(_DIGEST.fullmatch(shard.digest), f"data.shards: {shard.name}: digest", shard.digest, "a sha256 in hex")
        fine = not shard.chunk_list or _DIGEST.fullmatch(shard.chunk_list)
        _check(fine, f"data.shards: {shard.name}: chunk_list", shard.chunk_list, "a sha256 in hex, or nothing")
        if not shard.bytes:
            raise _bad(f"shard {shard.name} is empty", "leave it out")
    names = [shard.name for shard in data.shards]
    if twice := {name for name in names if names.count(name) > 1}:
        raise _bad(f"data.shards names {sorted(twice)[0]} twice", "each name once")


def _check_partition(spec: training_pb2.JobSpec) -> None:
    if not spec.data.HasField("partition"):
        return
    partition = spec.data.partition
    if spec.strategy != training_pb2.STRATEGY_FEDERATED:
        raise _bad("data.partition is of federated jobs", "leave it out, or set strategy to federated")
    _check(partition.kind in PARTITIONS, "data.partition.kind", partition.kind, f"one of {', '.join(PARTITIONS)}")
    _check(_number(partition.alpha, 0, 1e6), "data.partition.alpha", partition.alpha, "above 0")
    partition.alpha = partition.alpha or 0.5
    partition.labels_per_client = partition.labels_per_client or 2


def _check_base(base: str) -> None:
    if base:
        name, colon, version = base.partition(":")
        _check(colon, "base_model", base, "NAME:VERSION")
        check_model_name(name)
        check_version(version)


def _check_length(spec: training_pb2.JobSpec) -> None:
    if bool(spec.epochs) == bool(spec.steps):
        both = "both epochs and steps" if spec.epochs else "neither epochs nor steps"
        raise _bad(f"the job has {both}", "one of them says how long it trains")
    if spec.strategy == training_pb2.STRATEGY_FEDERATED and not spec.steps:
        raise _bad("a federated job has epochs", "steps are its rounds; federated.local_epochs is of each round")
    spec.batch_size = spec.batch_size or 32
    _check(spec.batch_size <= MOST_BATCH, "batch_size", spec.batch_size, f"at most {MOST_BATCH}")
    _check(abs(spec.priority) <= MOST_PRIORITY, "priority", spec.priority, f"-{MOST_PRIORITY} to {MOST_PRIORITY}")


def _check_resources(need: training_pb2.Resources) -> None:
    need.min_workers = need.min_workers or 1
    need.max_workers = need.max_workers or need.min_workers
    if need.max_workers < need.min_workers:
        raise _bad(
            f"resources.max_workers {need.max_workers} is below min_workers {need.min_workers}", "raise it, or leave it"
        )
    _check(need.max_workers <= MOST_WORKERS, "resources.max_workers", need.max_workers, f"at most {MOST_WORKERS}")
    _check(need.gpus <= MOST_PAIRS, "resources.gpus", need.gpus, f"at most {MOST_PAIRS}")
    _check(_number(need.cpu_cores, 0, 1e5), "resources.cpu_cores", need.cpu_cores, "cores, 0 or more")
    if need.gpu_memory_bytes and not need.gpus:
        raise _bad("resources.gpu_memory_bytes is set without gpus", "set resources.gpus, or leave it out")
    _check_pairs("resources.node_labels", need.node_labels)


def _check_policies(spec: training_pb2.JobSpec) -> None:
    checkpoint, restarts = spec.checkpoint, spec.restarts
    _check_duration("checkpoint.every", checkpoint.every, spec.checkpoint.HasField("every"))
    if not checkpoint.every_steps and not checkpoint.HasField("every"):
        checkpoint.every.FromSeconds(60)
    checkpoint.keep = checkpoint.keep or 2
    _check(checkpoint.keep <= 1000, "checkpoint.keep", checkpoint.keep, "at most 1000")
    if not restarts.HasField("failures"):
        restarts.failures = 3
    _check_duration("stall_timeout", spec.stall_timeout, spec.HasField("stall_timeout"))
    _check_duration("max_duration", spec.max_duration, spec.HasField("max_duration"))
    if not spec.HasField("stall_timeout"):
        spec.stall_timeout.FromSeconds(600)


def _check_federated(spec: training_pb2.JobSpec) -> None:
    if spec.strategy != training_pb2.STRATEGY_FEDERATED:
        if spec.HasField("federated"):
            raise _bad("federated is set, and the strategy is another", "leave it out, or set strategy to federated")
        return
    made = spec.federated
    known = made.aggregation in training_pb2.Aggregation.values()
    _check(known, "federated.aggregation", made.aggregation, "see training.proto")
    made.aggregation = made.aggregation or training_pb2.AGGREGATION_FEDAVG
    made.clients_per_node = made.clients_per_node or 1
    _clients(spec, made)
    made.fraction = made.fraction or 1.0
    _check(0 < made.fraction <= 1, "federated.fraction", made.fraction, "above 0, at most 1")
    made.min_clients = made.min_clients or 1
    _check(made.min_clients <= made.clients, "federated.min_clients", made.min_clients, f"at most {made.clients}")
    _check_duration("federated.round_deadline", made.round_deadline, made.HasField("round_deadline"))
    if not made.HasField("round_deadline"):
        made.round_deadline.FromSeconds(60)
    made.local_epochs = made.local_epochs or 1
    for name, default in (("most_norm", 10.0), ("delta", 1e-5), ("server_learning_rate", 1.0)):
        setattr(made, name, getattr(made, name) or default)
    if made.aggregation == training_pb2.AGGREGATION_FEDPROX:
        made.proximal = made.proximal or 0.01
    if made.aggregation == training_pb2.AGGREGATION_TRIMMED_MEAN:
        made.trim = made.trim or 0.1
    _check(_number(made.trim, 0, 0.5) and made.trim < 0.5, "federated.trim", made.trim, "below 0.5")
    _check(_number(made.delta, 0, 1) and made.delta < 1, "federated.delta", made.delta, "above 0, below 1")
    for name in ("proximal", "most_norm", "clip", "noise", "server_learning_rate"):
        _check(_number(getattr(made, name), 0, 1e12), f"federated.{name}", getattr(made, name), "0 or more")
    if made.noise and not made.clip:
        raise _bad("federated.noise is set without clip", "noise is a multiple of clip: set both")


def _clients(spec: training_pb2.JobSpec, made: training_pb2.Federated) -> None:
    """Clients and workers follow from each other."""
    need = spec.resources
    if made.clients:
        nodes = -(-made.clients // made.clients_per_node)
        need.max_workers = need.max_workers or nodes
        need.min_workers = need.min_workers or min(nodes, need.max_workers)
        if need.max_workers * made.clients_per_node < made.clients:
            raise _bad(
                f"{made.clients} clients have no room on {need.max_workers} workers of {made.clients_per_node}",
                "raise resources.max_workers or federated.clients_per_node",
            )
    else:
        made.clients = (need.max_workers or need.min_workers or 1) * made.clients_per_node
    _check(made.clients <= MOST_CLIENTS, "federated.clients", made.clients, f"at most {MOST_CLIENTS}")


def _check_output(spec: training_pb2.JobSpec) -> None:
    spec.output.model = spec.output.model or spec.name
    check_model_name(spec.output.model)
    if spec.output.version:
        check_version(spec.output.version)


def _check_pairs(field: str, pairs: Mapping[str, str]) -> None:
    if len(pairs) > MOST_PAIRS:
        raise _bad(f"{field} has {len(pairs)} entries", f"at most {MOST_PAIRS}")
    for name, value in pairs.items():
        fine = name and len(name) <= 128 and len(value) <= MOST_VALUE
        _check(fine, field, f"{name}={value}"[:80], f"names of 1 to 128 characters, values of at most {MOST_VALUE}")


def _check_duration(field: str, value: duration_pb2.Duration, given: bool) -> None:
    if given:
        _check(0 < seconds(value) <= MOST_S, field, f"{seconds(value):g} s", f"above 0, at most {MOST_S:g} s")


def _number(value: float, least: float, most: float) -> bool:
    return math.isfinite(value) and least <= value <= most


def _check(fine: object, field: str, value: object, form: str) -> None:
    if not fine:
        raise _bad(f"{field} {value!r} is not possible", form)


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_JOB")
