"""Programs that keep to the contract of a task's folder, in the place of what users train: no torch, no waiting."""

from __future__ import annotations

from pathlib import Path

WORKER = """
import json, os, pathlib, signal, sys, time

folder = pathlib.Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
wish = task["spec"].get("hyperparameters", {})
stop = []
if not wish.get("deaf"):
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def say(**event):
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\\n")


def checkpoint(step):
    if step >= int(wish.get("full_from", step + 1)) and not (folder / "room").exists():
        say(noCheckpoint="that of step %d was given up: the disk is full" % step)
        return
    target = folder / "checkpoints" / str(step)
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    new = target.with_name("new")
    new.mkdir()
    (new / f"rank{os.environ['RANK']}.bin").write_bytes(b"%d of " % step + os.environ["RANK"].encode())
    new.rename(target)
    say(checkpoint={"step": step})


if wish.get("forks") and not os.fork():
    while True:
        signal.pause()
if wish.get("dies"):
    os.kill(os.getpid(), signal.SIGKILL)
if not task.get("go"):
    if os.environ["RANK"] == "0":
        say(port=7000)
        say(link={"bandwidth": 1e9, "latencyS": 1e-3, "workers": 2})
    say(waiting=True)
    while not (folder / "go.json").exists():
        if stop:
            sys.exit(0)
        time.sleep(0.01)
    task = json.loads((folder / "go.json").read_text())
    os.environ["MASTER_ADDR"], _, os.environ["MASTER_PORT"] = task.get("rendezvous", "").rpartition(":")
print("environment", json.dumps({k: v for k, v in os.environ.items()}), flush=True)
print("sees", sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()), flush=True)
step = int(task.get("resume", {}).get("step", 0))
if "hold_mib" in wish:
    held = b"x" * (int(wish["hold_mib"]) << 20)
if "exit" in wish:
    print("about to end", flush=True)
    sys.exit(int(wish["exit"]))
if "raises" in wish:
    say(error={"message": wish["raises"], "mayRetry": False})
    sys.exit(1)
if "once" in wish and not (folder / "was").exists():
    (folder / "was").touch()
    os.kill(os.getpid(), signal.SIGKILL)
while step < int(wish.get("steps", 5)):
    if not wish.get("deaf") and (stop or (folder / "stop").exists()):
        checkpoint(step)
        say(done={"step": step, "stopped": True})
        sys.exit(0)
    step += 1
    time.sleep(float(wish.get("step_s", 0.01)))
    say(point={"step": str(step), "loss": 1.0 / step}, samplesPerS=32.0)
    if step % int(wish.get("every", 1000)) == 0:
        checkpoint(step)
if os.environ["RANK"] == "0":
    (folder / "export").mkdir()
    (folder / "export" / "config.pbtxt").write_text(wish.get("config", ""))
    (folder / "export" / "1").mkdir()
    (folder / "export" / "1" / "model.py").write_text("class TritonPythonModel: ...")
say(done={"step": step, "values": {"loss": 0.25}})
"""

LISTENS = """
import json, os, pathlib, signal, socket, sys

folder = pathlib.Path(sys.argv[1])
with socket.socket() as listening:
    listening.bind((os.environ["MASTER_ADDR"], 0))
    listening.listen()
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"port": listening.getsockname()[1]}) + "\\n")
    signal.pause()
"""

STANDS_IN = {
    "worker": """
import runpy

def work(process=None):
    runpy.run_module("training.program", run_name="__main__")

if __name__ == "__main__":
    work()
""",
    "process": "def run(work, arguments): work()",
    "contract": "def read_task(folder): ...",
    "run/preload": "def preload(task): ...\ndef settle(threads): ...",
}
"""What the real zygote calls, without torch."""

PLANNER = """
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
samples = len(list((folder / "data").iterdir()))
with open(folder / "events.jsonl", "a") as file:
    file.write(json.dumps({"plan": {"strategy": "STRATEGY_DDP", "samples": samples}}) + "\\n")
    file.write(json.dumps({"done": {}}) + "\\n")
"""

AGGREGATOR = LISTENS.replace(
    "    signal.pause()",
    """    import time
    while not (folder / "stop").exists():
        time.sleep(0.02)
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"done": {"step": 3, "stopped": True}}) + "\\\\n")""".replace("\\\\", "\\"),
)


def write_programs(root: Path) -> Path:
    """A folder for PYTHONPATH in which `training` is these."""
    package = root / "training"
    for path in (package, package / "federated", package / "run"):
        path.mkdir(parents=True)
        (path / "__init__.py").touch()
    for name, text in STANDS_IN.items():
        (package / f"{name}.py").write_text(text)
    (package / "program.py").write_text(WORKER)
    (package / "zygote.py").write_text((Path(__file__).parents[3] / "training" / "zygote.py").read_text())
    (package / "planner.py").write_text(PLANNER)
    (package / "federated" / "aggregator.py").write_text(AGGREGATOR)
    return root
