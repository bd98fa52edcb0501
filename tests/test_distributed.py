"""Two processes learn what one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fullyconv import checkpoint
from fullyconv.runs import read_log

SCRIPT = """
import sys
import torch
torch.set_num_threads(1)
from fullyconv.building import build
from fullyconv.config import DataConfig, FitConfig
from fullyconv.datasets import dataset
from fullyconv.events import Evaluated, Step
from fullyconv.fitting import fit
from fullyconv.presets import fcn
from torch import nn

class Plain(nn.Module):  # no norm: its statistics are of one process's share of a batch
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)
    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))

out = sys.argv[1]
data = DataConfig(root="count=12 size=48x64", name="scenes", workers=0, crop=(32, 48))
train_data, val_data = (dataset("scenes", data.root, split=split) for split in ("train", "val"))
torch.manual_seed(0)
backbone = Plain()
config = fcn(2, backbone, classes=len(train_data.classes["out"]), weights=None, context=0)
model = build(config, backbone=backbone, classes=train_data.classes)
settings = FitConfig(
    steps=6, batch=4, accumulate=2, lr=0.05, optimizer="sgd", ema=0.5, warmup=0, class_weights="median", precision="32",
    device="cpu", evaluate_every=3, clip=1.0, reduction=sys.argv[2], keep=float(sys.argv[3]),
)
for event in fit(model, train_data, val_data, settings, data=data, out=out):
    if isinstance(event, Step):
        print("told", event.step, event.loss, flush=True)
    if isinstance(event, Evaluated):
        print("told", event.step, event.pictures, event.mean_iu, flush=True)
"""


def run(
    script: Path, out: Path, *said: str, processes: int, more: Mapping[str, str] | None = None
) -> list[list[float]]:
    """Start the script as ``torchrun`` does, and take the numbers that each process tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared: dict[str, object] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    shared |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test", **(more or {})}
    started = []
    for rank in range(processes):
        told = {
            **shared,
            **(more or {}),
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "TORCHELASTIC_RUN_ID": "test",
        }
        environment = os.environ | {name: str(value) for name, value in told.items() if processes > 1}
        command = [sys.executable, str(script), str(out), *said]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    lines = []
    try:
        for process in started:
            said, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors[-3000:]
            lines += [list(map(float, line.split()[1:])) for line in said.splitlines() if line.startswith("told")]
    finally:
        for process in started:
            process.kill()
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("said", [("mean", "1"), ("image", "0.5")])
def test_two_processes_learn_what_one_does_from_the_same_batches(tmp_path: Path, said: tuple[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone = run(script, tmp_path / "one", *said, processes=1)
    together = run(script, tmp_path / "two", *said, processes=2)
    # Each process tells the same, and sums that are taken in another order differ by about 1e-6.
    assert len(alone) == 8
    assert together == [pytest.approx(numbers, rel=1e-4) for numbers in 2 * alone]
    one, two = (checkpoint.load_state(tmp_path / name / "resume")[0] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-4, atol=1e-6)


STAGES = """
import sys
import torch
torch.set_num_threads(1)
from fullyconv.config import DataConfig, FitConfig, Recipe
from fullyconv.datasets import dataset
from fullyconv.presets import fcn
from fullyconv.training import train

root = "count=8 size=48x64"
classes = len(dataset("scenes", root).classes["out"])
stages = [
    {
        "name": f"{stride}s",
        "model": fcn(stride, "tinyvgg", classes=classes, weights=None),
        "data": DataConfig(root=root, name="scenes", workers=0),
        "fit": FitConfig(steps=2, batch=4, device="cpu"),
    }
    for stride in (8, 4)
]
heard = []
model = train(Recipe.parse({"stages": stages}), out=sys.argv[1], on_event=heard.append)
print("told", int(len(heard) > 0), sum(float(t.double().abs().sum()) for t in model.state_dict().values()), flush=True)
"""


FABRIC_RUN = {"LT_CLI_USED": "1", "LT_ACCELERATOR": "cpu", "LT_STRATEGY": "ddp", "LT_DEVICES": "2", "LT_NUM_NODES": "1"}
LAST = """
import atexit
import torch.distributed
atexit.register(lambda: print("told", int(torch.distributed.is_initialized()), flush=True))
"""


@pytest.mark.slow
def test_processes_leave_each_other_before_they_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAST + STAGES)
    _, chief, _, other = run(script, tmp_path / "run", processes=2)
    assert chief == other == [0]


@pytest.mark.slow
def test_fabric_run_trains_stages_into_one_folder(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAST + STAGES)
    (chief, weights), left, (other, same_weights), other_left = run(
        script, tmp_path / "run", processes=2, more=FABRIC_RUN
    )
    assert (chief, other) == (1, 0)  # one process tells what happens
    assert left == other_left == [0]
    assert weights == same_weights
    stored = checkpoint.load(tmp_path / "run").state_dict()
    assert sum(float(tensor.double().abs().sum()) for tensor in stored.values()) == weights
    events = [event for event in read_log(tmp_path / "run") if event["event"] == "step"]
    assert [(event["stage"], event["step"]) for event in events] == [("8s", 1), ("8s", 2), ("4s", 1), ("4s", 2)]
