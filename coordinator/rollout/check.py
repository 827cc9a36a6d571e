"""What a rollout must be to be possible at all, and its defaults. Pure; each check names the value that is wrong."""

from __future__ import annotations

import itertools

from google.protobuf import duration_pb2

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.course import is_over
from coordinator.state import State
from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError
from meshkit.names import check_model_name, check_version, version_key
from meshkit.signing import check_allowed

METRICS = (
    "error_rate",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "throughput_rps",
    "queue_ms",
    "memory_bytes",
    "gpu_memory_bytes",
    "tokens_per_s",
    "cost_per_request",
)
QUALITY = ("exact_match", "accuracy", "precision", "recall", "f1", "embedding_similarity")
DEFAULT_STEPS = (5, 25, 50, 100)
DEFAULT_HOLD_S = 30.0
DEFAULT_KEEP_S = 300.0
DEFAULT_SHADOW_S = 60.0
DEFAULT_EXPERIMENT_S = 600.0
DEFAULT_STEP_TIMEOUT_S = 600.0
MOST_S = 30 * 24 * 3600.0
MOST_STEPS = 50
MOST_REPLICAS = 10_000
_LEAST_MIRROR_PERCENT = 0.0001


def filled(spec: rollout_pb2.RolloutSpec) -> rollout_pb2.RolloutSpec:
    """A copy with the defaults that need no state. Raises InvalidInputError for what can never be right."""
    made = rollout_pb2.RolloutSpec()
    made.CopyFrom(spec)
    check_model_name(made.name)
    kind = made.WhichOneof("strategy")
    if kind is None:
        raise _bad("the rollout has no strategy", "one of rolling, blue_green, canary, shadow, experiment")
    if kind == "experiment":
        _fill_experiment(made)
    elif not made.version:
        raise _bad("the rollout names no version", "say NAME:VERSION")
    check_version(made.version)
    if kind == "canary":
        _fill_canary(made.canary)
    elif kind == "blue_green":
        _fill_s(made.blue_green.HasField("keep"), "blue_green.keep", made.blue_green.keep, DEFAULT_KEEP_S)
    elif kind == "shadow":
        _fill_shadow(made.shadow)
    if made.replicas > MOST_REPLICAS:
        raise _bad(f"{made.replicas} replicas are not possible", f"ask for at most {MOST_REPLICAS}")
    _fill_s(made.HasField("step_timeout"), "step_timeout", made.step_timeout, DEFAULT_STEP_TIMEOUT_S, above=0)
    _fill_s(made.HasField("watch"), "watch", made.watch, 0)
    return made


def old_target(state: State, spec: rollout_pb2.RolloutSpec) -> routing_pb2.Target:
    """The version that has the requests now: the only target with a weight.

    Raises NotFoundError, PreconditionError where there are several, or the deployment is changing over.
    """
    deployment = state.deployments.get(spec.name)
    if deployment is None:
        raise NotFoundError(
            f"model {spec.name!r} is not deployed",
            hint=f"run: aimesh deploy {spec.name}",
            reason="DEPLOYMENT_NOT_FOUND",
        )
    routed = [target for target in deployment.targets if target.weight]
    if len(routed) != 1:
        split = ", ".join(f"{target.version} = {target.weight}" for target in routed)
        raise PreconditionError(
            f"the requests of {spec.name} are split between versions ({split}), so there is no old one",
            hint=f"give one of them all, then start: aimesh routes set {spec.name} --split {routed[0].version}=100",
            reason="ROLLOUT_NOT_POSSIBLE",
        )
    targets = {target.version for target in deployment.targets}
    held = {version for assigned in state.assignments.values() for name, version in assigned if name == spec.name}
    if left := sorted(held - targets):
        raise PreconditionError(
            f"{spec.name} is still being changed over: {', '.join(left)} has not gone yet",
            hint="wait until it has; see: aimesh status",
            reason="ROLLOUT_NOT_POSSIBLE",
        )
    return routed[0]


def check_against(state: State, spec: rollout_pb2.RolloutSpec) -> None:
    """Holds a filled spec against what is recorded and what runs.

    Raises NotFoundError for a version that does not exist, InvalidInputError, PreconditionError.
    """
    check_no_other(state.rollouts.get(spec.name))
    old = old_target(state, spec)
    versions = new_versions(spec, old)
    for version in versions:
        if (spec.name, version) not in state.versions:
            known = sorted((each for name, each in state.versions if name == spec.name), key=version_key)
            raise NotFoundError(
                f"model {spec.name!r} has no version {version!r}",
                hint=f"it has {', '.join(known)}",
                reason="VERSION_NOT_FOUND",
            )
        check_allowed(state.versions[spec.name, version], state.trust)
    if not versions:
        raise _bad(f"{spec.name}:{old.version} has all requests already", "name another version")
    if spec.WhichOneof("strategy") in ("shadow", "experiment") or spec.allow_downgrade:
        return
    if version_key(spec.version) < version_key(old.version):
        raise _bad(
            f"version {spec.version} is lower than {old.version}, which runs",
            "if that is meant: --allow-downgrade",
        )


def check_no_other(rollout: rollout_pb2.Rollout | None) -> None:
    """Raises PreconditionError while another rollout of the deployment is not over."""
    if rollout is not None and not is_over(rollout):
        raise running(rollout)


def running(rollout: rollout_pb2.Rollout) -> PreconditionError:
    """The error of whatever may not be done while a rollout is on its way."""
    name, state = rollout.spec.name, rollout_pb2.RolloutState.Name(rollout.state).removeprefix("ROLLOUT_STATE_")
    return PreconditionError(
        f"{name} has a rollout to {rollout.spec.version} that is not over ({state})",
        hint=f"wait for it (aimesh rollout watch {name}), or end it: aimesh rollout abort {name}",
        reason="ROLLOUT_RUNNING",
    )


def new_versions(spec: rollout_pb2.RolloutSpec, old: routing_pb2.Target) -> list[str]:
    """The versions that it brings, without the one that runs."""
    arms = [arm.version for arm in spec.experiment.arms]
    named = arms if spec.WhichOneof("strategy") == "experiment" else [spec.version]
    return [version for version in named if version != old.version]


def _fill_canary(canary: rollout_pb2.Canary) -> None:
    if not canary.steps:
        canary.steps.extend(DEFAULT_STEPS)
    steps = list(canary.steps)
    shown = ",".join(map(str, steps))
    if len(steps) > MOST_STEPS:
        raise _bad(f"{len(steps)} steps are too many", f"at most {MOST_STEPS}")
    if any(not 0 < step <= 100 for step in steps):
        raise _bad(f"steps {shown}: each must be from 1 to 100 percent", "for example 5,25,50,100")
    if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
        raise _bad(f"steps {shown} do not rise", "for example 5,25,50,100")
    if steps[-1] != 100:
        raise _bad(f"steps {shown} never reach 100 percent", f"end them with it: {shown},100")
    _fill_s(canary.HasField("hold"), "canary.hold", canary.hold, DEFAULT_HOLD_S)


def _fill_shadow(shadow: rollout_pb2.Shadow) -> None:
    shadow.percent = shadow.percent or 100
    if not _LEAST_MIRROR_PERCENT <= shadow.percent <= 100:
        raise _bad(f"shadow.percent {shadow.percent:g} is not possible", f"{_LEAST_MIRROR_PERCENT} to 100")
    _fill_s(shadow.HasField("duration"), "shadow.duration", shadow.duration, DEFAULT_SHADOW_S, above=0)


def _fill_experiment(spec: rollout_pb2.RolloutSpec) -> None:
    arms, versions = spec.experiment.arms, [arm.version for arm in spec.experiment.arms]
    if len(arms) < 2:
        raise _bad(f"an experiment with {len(arms)} arms compares nothing", "name at least two versions")
    for version in versions:
        check_version(version)
    if len(set(versions)) < len(versions):
        raise _bad(f"the arms {', '.join(versions)} name a version twice", "name each once")
    total = sum(arm.percent for arm in arms)
    if total != 100 or not all(arm.percent for arm in arms):
        shown = " + ".join(str(arm.percent) for arm in arms)
        raise _bad(f"the arms' shares {shown} sum to {total} percent", "each at least 1, together 100")
    if not spec.experiment.header:
        raise _bad("the experiment names no header that tells callers apart", "for example --header x-user")
    if spec.version and spec.version != versions[0]:
        raise _bad(f"version {spec.version} is not the first arm's, {versions[0]}", "leave it out")
    spec.version = versions[0]
    _fill_s(
        spec.experiment.HasField("duration"),
        "experiment.duration",
        spec.experiment.duration,
        DEFAULT_EXPERIMENT_S,
        above=0,
    )


def _fill_s(
    there: bool, field: str, value: duration_pb2.Duration, default_s: float, *, above: float = -1
) -> None:  # whether a field is set
    """Fills a duration in seconds; it must be above a bound and at most MOST_S."""
    if not there:
        value.FromNanoseconds(int(default_s * 1e9))
    given_s = value.ToNanoseconds() / 1e9
    if not above < given_s <= MOST_S or given_s < 0:
        raise _bad(
            f"{field} of {given_s:g} s is not possible", f"{'more than 0' if above == 0 else '0'} to {MOST_S:g} s"
        )


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_ROLLOUT")
