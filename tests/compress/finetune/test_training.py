"""Fine-tuning: what a step costs, that it learns, that a killed run ends as if it had not been."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_device import DEVICE, PretendedDevice
from torch import nn

from pruneport.compress.allocation.cost import count_cost
from pruneport.compress.finetune.deterministic import deterministic
from pruneport.compress.finetune.distill import Teacher
from pruneport.compress.finetune.schedule import cut, is_due
from pruneport.compress.finetune.setup import dense_plan, trained_plan, with_output_layer
from pruneport.compress.finetune.state import TrainState, optimizer_tensors, read_state, write_state
from pruneport.compress.finetune.training import Job, train
from pruneport.compress.graph.output_layers import find_output_layers
from pruneport.compress.options import PruneOptions, TrainOptions
from pruneport.compress.prune import prune
from pruneport.compress.records import LatencyReached, LatencyRound
from pruneport.compress.surgery.apply import apply_plan
from pruneport.compress.surgery.compose import compose
from pruneport.compress.surgery.rebuild import rebuild_network
from pruneport.errors import CheckpointError, InputError, TrainingError
from pruneport.models.digits.tasks import write_digits_task
from pruneport.models.images.tasks import Task, open_task
from pruneport.models.options import PreparationOptions, SourceOptions
from pruneport.models.record import Source
from pruneport.models.source import build_dense, open_source
from tests.support.slow_values import each_quick

_DIGITS = SourceOptions(source="pruneport:digits_resnet", weights="DEFAULT")
_PREPARATION = PreparationOptions(mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mirrored")
    write_digits_task("mirrored", folder)
    return folder


@pytest.fixture(scope="module")
def task(folder: Path) -> Task:
    return open_task(folder, _PREPARATION, (1, 8, 8))


@pytest.fixture
def job(tmp_path: Path, folder: Path, task: Task) -> Callable[..., Job]:
    """A training of the digits network on mirrored digits, begun with a fresh head."""

    def make(name: str = "state", pruning: PruneOptions | None = None, **options: Any) -> Job:
        network, source = open_source(_DIGITS)
        network, plan = with_output_layer(network, dense_plan(network, source), task)
        path = tmp_path / name
        write_state(path, TrainState(plan=plan, weights=dict(network.state_dict()), config={}))
        chosen = {"task": folder, "augment": "crop", "evaluations": 1, "optimizer": "sgd"} | options
        return Job(state=path, task=task, options=TrainOptions(**chosen), pruning=pruning)

    return make


def test_it_learns_and_counts_every_pass(job: Callable[..., Job], task: Task) -> None:
    steps = 60
    state = train(job(steps=steps, evaluations=3))
    errors = [event.error for event in state.events]
    assert [event.step for event in state.events] == [20, 40, 60]
    assert errors[-1] < 0.15 < errors[0] < 0.9
    # By hand: a 3 x 3 convolution of C to D channels on N pixels takes 9 N C D multiply-accumulates.
    stem, block1 = 9 * 64 * 32, 2 * 9 * 64 * 32 * 32
    block2, block3 = 9 * 16 * 32 * 64 + 9 * 16 * 64 * 64 + 16 * 32 * 64, 2 * 9 * 16 * 64 * 64
    pooled = 64 * 16  # fvcore counts the average pooling
    norms = state.plan.dense.macs - (stem + block1 + block2 + block3 + 640)
    assert 0 <= norms < 0.02 * state.plan.dense.macs
    assert pooled <= norms
    assert state.flops == pytest.approx(steps * 32 * 6 * state.plan.dense.macs, rel=1e-12)
    done = trained_plan(state, task).training
    assert done is not None
    assert done.top1 == 1 - errors[-1]
    assert done.classes == tuple("0123456789")


@pytest.mark.slow
def test_a_budget_is_spent_and_not_passed(job: Callable[..., Job]) -> None:
    step = 32 * 6 * count_cost(open_source(_DIGITS)[0], (1, 8, 8)).macs
    state = train(job(budget=7.9 * step))
    assert state.step == 7
    assert state.flops <= 7.9 * step < state.flops + step
    for devices in (1, 2):
        with pytest.raises(TrainingError, match=r"^a step of 32 images costs .* more than the budget"):
            train(job(f"on {devices}", budget=0.5 * step, devices=devices, accelerator="cpu"))


_SCRIPT = """
import sys, pickle
from pathlib import Path
import torch
from pruneport.compress.finetune.training import train
if __name__ == "__main__":
    torch.set_num_threads(1)
    train(pickle.loads(Path(sys.argv[1]).read_bytes()))
"""


def _step_of_a_copy(state: Path) -> int:
    """Reading the state itself opens it twice, and it may be replaced in between."""
    return read_state(shutil.copyfile(state, state.with_name("copy"))).step


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(job: Callable[..., Job], tmp_path: Path) -> None:
    import pickle

    pruning = PruneOptions(flops=0.5, round_to=4)
    options = {"steps": 40, "schedule": "loss", "cuts": 2, "save_every": 0.0, "evaluations": 4, "optimizer": "adamw"}
    whole = train(job("whole", pruning, **options))
    killed = job("killed", pruning, **options)
    (tmp_path / "job").write_bytes(pickle.dumps(killed))
    (tmp_path / "script.py").write_text(_SCRIPT)
    with subprocess.Popen([sys.executable, tmp_path / "script.py", tmp_path / "job"]) as process:
        while _step_of_a_copy(killed.state) < 15 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    stopped = read_state(killed.state)
    assert 15 <= stopped.step < 40
    resumed = train(killed)
    assert resumed.step == whole.step == 40
    assert resumed.plan.pruned == whole.plan.pruned
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert [replace(event, seconds=0) for event in resumed.events] == [replace(e, seconds=0) for e in whole.events]


@pytest.mark.parametrize("optimizer", each_quick(["adamw", "sgd"], 2))
def test_an_interrupted_run_goes_on_bit_for_bit(optimizer: str, job: Callable[..., Job]) -> None:
    options = {"steps": 12, "save_every": 0.0, "evaluations": 3, "optimizer": optimizer}
    whole = train(job("whole", **options))
    interrupted = job("interrupted", **options)

    def stop(message: str) -> None:
        if message == "step 8: measuring accuracy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, stop)
    assert read_state(interrupted.state).step == 7
    resumed = train(interrupted)
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert all(torch.equal(resumed.momenta[name], whole.momenta[name]) for name in whole.momenta)


@pytest.mark.slow
def test_a_run_stopped_after_branches_were_dropped_goes_on_bit_for_bit(job: Callable[..., Job]) -> None:
    pruning = PruneOptions(flops=0.45, depth="auto", max_pruning_ratio=0.001)
    options = {"steps": 16, "save_every": 0.0, "evaluations": 4, "schedule": "loss", "cuts": 2, "distill": 0.5}
    whole = train(job("whole", pruning, **options))
    assert {branch.name for branch in whole.plan.branches} == {"blocks.0", "blocks.2"}
    interrupted = job("interrupted", pruning, **options)

    def stop(message: str) -> None:
        if message == "step 8: measuring accuracy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, stop)
    halfway = read_state(interrupted.state)
    assert len(halfway.plan.branches) == 1
    resumed = train(interrupted)
    assert resumed.plan.branches == whole.plan.branches
    for ours, theirs in ((resumed.weights, whole.weights), (resumed.momenta, whole.momenta)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        gone = tuple(f"{name}." for branch in whole.plan.branches for name in branch.modules)
        assert not [name for name in ours if name.rpartition("/")[2].startswith(gone)]
    again = rebuild_network(resumed.plan, resumed.weights)
    assert count_cost(again, (1, 8, 8)) == resumed.plan.pruned


@pytest.mark.slow
def test_the_schedule_reaches_its_target(job: Callable[..., Job]) -> None:
    state = train(job(steps=60, schedule="loss", cuts=3, pruning=PruneOptions(flops=0.5, round_to=2), evaluations=6))
    assert state.cuts == 3
    assert state.plan.pruned.macs == pytest.approx(0.5 * state.plan.dense.macs, rel=0.03)
    macs = [event.macs for event in state.events]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) >= 3
    assert state.events[-1].error < 0.25
    again = rebuild_network(state.plan, state.weights)
    assert count_cost(again, (1, 8, 8)) == state.plan.pruned


def test_a_schedule_that_gets_no_further_says_so_and_trains_on(job: Callable[..., Job]) -> None:
    pruning = PruneOptions(flops=0.15, round_to=16)
    state = train(job(steps=9, schedule="loss", cuts=2, pruning=pruning, warmup=0.0))
    assert state.step == 9
    assert state.plan.note is not None
    assert "short of `flops=0.15`: no widths are left" in state.plan.note
    assert 0.15 < state.plan.pruned.macs / state.plan.dense.macs < 1


@pytest.mark.slow
def test_a_schedule_ends_where_a_coarse_step_has_reached_its_target(job: Callable[..., Job]) -> None:
    begun = job(steps=6, schedule="loss", cuts=3, pruning=PruneOptions(flops=0.9, round_to=32), warmup=0.0)
    state = train(begun)
    assert state.cuts == 3
    assert state.plan.note is None
    assert state.plan.pruned.macs / state.plan.dense.macs <= 0.9


def test_composed_plans_remove_what_both_remove() -> None:
    network, source = open_source(_DIGITS)
    first = prune(network, source, PruneOptions(flops=0.7, round_to=1))
    second = prune(first.network, source, PruneOptions(flops=0.6, round_to=1))
    plan = compose(first.plan, second.plan)
    once = copy.deepcopy(network)
    apply_plan(once, plan.groups, plan.attributes, plan.sizes)
    assert all(torch.equal(one, two) for one, two in zip(once.parameters(), second.network.parameters(), strict=True))
    assert plan.pruned == second.plan.pruned
    assert plan.dense == first.plan.dense


def test_a_cut_keeps_the_momenta_of_what_stays() -> None:
    network, source = open_source(_DIGITS)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = parameter.detach().clone()  # then both moments are functions of the weight alone
    optimizer.step()
    for parameter in network.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else parameter
    state = TrainState(
        plan=dense_plan(network, source),
        weights={},
        config={},
        momenta={key: value.clone() for key, value in optimizer_tensors(network, optimizer).items()},
    )
    images = open_task_of_nothing()
    smaller, plan, momenta = cut(network, state, PruneOptions(round_to=4), 0.6, images)
    assert count_cost(smaller.eval(), (1, 8, 8)).macs < 0.65 * plan.dense.macs
    for name, parameter in smaller.named_parameters():
        assert torch.allclose(momenta[f"exp_avg/{name}"], 0.1 * parameter, atol=1e-8)
        assert momenta[f"step/{name}"] == 1


def open_task_of_nothing() -> Any:
    """A criterion of the weights looks at no images."""
    return None


@pytest.mark.parametrize(
    ("given", "due"),
    [
        ({"progress": 0.04}, False),  # warming up
        ({"progress": 0.1}, True),  # the first waits for nothing
        ({"progress": 0.1, "cuts": 1, "average": 1.5, "level": 1.0}, False),
        ({"progress": 0.1, "cuts": 1, "average": 1.01, "level": 1.0}, True),
        ({"progress": 0.1, "cuts": 1, "average": 1.01, "level": 1.0, "since": 3}, False),
        ({"progress": 0.4, "cuts": 1, "average": 9.0, "level": 1.0}, True),  # too late to wait
        ({"progress": 0.9, "cuts": 4}, False),  # all made
    ],
)
def test_a_cut_waits_for_the_loss(given: dict[str, Any], due: bool) -> None:
    network, source = open_source(_DIGITS)
    state = TrainState(plan=dense_plan(network, source), weights={}, config={})
    state.step = given.get("since", 20)
    for name in ("cuts", "average", "level"):
        setattr(state, name, given.get(name, getattr(state, name)))
    assert is_due(state, given["progress"], 0.05, 4) is due


@pytest.mark.slow
def test_two_processes_train_as_one(job: Callable[..., Job], tmp_path: Path, folder: Path) -> None:
    """Without BatchNorm, whose statistics each process has of its own, two half batches make the same step."""
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))\n"
    )
    options = SourceOptions(source=f"{tmp_path / 'plain.py'}:build", input_shape=(1, 8, 8))
    network, source = open_source(options)
    plan = dense_plan(network, replace(source, output_layers={"3": 10}))
    results = []
    for devices in (1, 2):
        begun = job(f"on {devices}", steps=3, devices=devices, accelerator="cpu", keep_head=True)
        write_state(begun.state, TrainState(plan=plan, weights=network.state_dict(), config={}))
        results.append(train(begun).weights)
    one, two = results
    assert not torch.equal(one["3.weight"], network.state_dict()["3.weight"])
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


_CROWDED = """
import torch
from torch import nn


class Crowded(nn.Sequential):
    def forward(self, inputs):
        if self.training and len(inputs) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(inputs)


def build():
    return Crowded(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_that_does_not_hold_a_step_is_named(job: Callable[..., Job], tmp_path: Path, devices: int) -> None:
    """The state that was saved stays, for a run with smaller steps."""
    (tmp_path / "crowded.py").write_text(_CROWDED)
    options = SourceOptions(source=f"{tmp_path / 'crowded.py'}:build", input_shape=(1, 8, 8))
    network, source = open_source(options)
    plan = dense_plan(network, replace(source, output_layers={"1": 10}))
    begun = job(steps=3, devices=devices, accelerator="cpu", keep_head=True)
    write_state(begun.state, TrainState(plan=plan, weights=network.state_dict(), config={}))
    with pytest.raises(TrainingError, match=rf"memory does not hold a step of {32 // devices} images\. Lower `batch_"):
        train(begun)
    smaller = replace(begun, options=replace(begun.options, batch_size=8 * devices, steps=1))
    assert train(smaller).step == 1


@pytest.mark.slow
def test_a_cut_is_scored_where_the_training_runs(job: Callable[..., Job]) -> None:
    state = read_state(job().state)
    network = rebuild_network(state.plan, state.weights)
    options, images = PruneOptions(criterion="block-hessian", ranking="sensitivity"), job().task.train
    plans = []
    for device in (torch.device("cpu"), DEVICE):
        pretended = PretendedDevice()
        with pretended:
            _, plan, _ = cut(network, state, options, 0.6, images, device=device)
        assert (pretended.count > 100) == (device == DEVICE)
        plans.append(plan)
    assert [group.kept for group in plans[0].groups] == [group.kept for group in plans[1].groups]


_TWO_CUTS = """
import sys, pickle
from functools import partial
from pathlib import Path
import torch
from lightning_fabric import Fabric
from pruneport.compress.finetune.training import _Training
from pruneport.progress import silent


def cut(fabric, jobs, folder):
    for number, job in enumerate(jobs):
        torch.save(cut_one(fabric, job), folder / f"{number} on {fabric.global_rank}")


def cut_one(fabric, job):
    training = _Training(fabric, job, silent)
    for name, buffer in training._network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(fabric.global_rank)))
    before = {name: value.clone() for name, value in training._network.named_buffers()}
    try:
        training._cut()
        failed = None
    except Exception as error:
        failed = repr(error)
    plan = training._state.plan.to_json()
    after = dict(training._network.state_dict())
    return {"before": before, "after": after, "plan": plan, "failed": failed}


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs, folder = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")  # both have imported torch then
    fabric.launch(partial(cut, jobs=jobs, folder=folder))
"""


@pytest.mark.slow
def test_all_processes_make_the_cut_of_the_first(job: Callable[..., Job], tmp_path: Path) -> None:
    """BatchNorm's statistics are each process's own, and a criterion that looks at activations scores by them."""
    given, script = tmp_path / "jobs", tmp_path / "cut.py"
    script.write_text(_TWO_CUTS)
    asked = {"steps": 3, "devices": 2, "accelerator": "cpu", "cuts": 1, "schedule": "loss"}
    pruning = [PruneOptions(flops=share, criterion="taylor", ranking="global") for share in (0.5, 1e-6)]
    pruning.append(PruneOptions(flops=0.5, depth="auto", max_pruning_ratio=0.001))
    jobs = [job(f"state {number}", pruning=entry, **asked) for number, entry in enumerate(pruning)]
    given.write_bytes(pickle.dumps(jobs))
    subprocess.run([sys.executable, str(script), str(given), str(tmp_path)], check=True, timeout=900)
    for number in range(len(jobs)):
        first, second = (torch.load(tmp_path / f"{number} on {rank}") for rank in (0, 1))
        assert any(not torch.equal(first["before"][name], second["before"][name]) for name in first["before"])
        assert first["plan"] == second["plan"]
        assert first["failed"] is None is second["failed"], "out of reach is said in the plan"
        if number != 1:
            assert all(torch.equal(value, second["after"][name]) for name, value in first["after"].items())
            assert json.loads(first["plan"])["groups" if number == 0 else "branches"]
        else:
            assert "the schedule ended at 1.000" in first["plan"]


def test_a_gpu_trains_by_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    said: list[str] = []
    with deterministic(torch.device("cpu"), said.append):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda"), said.append):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)  # has none on the CPU either
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(said) == 1
    assert said[0].startswith("put_ has no deterministic algorithm on this device: a run that is stopped")


def test_a_teacher_is_no_distance_from_itself() -> None:
    network, source = open_source(_DIGITS)
    teacher = Teacher(source, "head", None, torch.device("cpu"))
    inputs = torch.randn(4, 1, 8, 8)
    features = network.pool(network.blocks(network.stem(inputs))).flatten(1)  # type: ignore[operator]
    assert teacher.distance(inputs, features).item() < 1e-10
    assert teacher.distance(inputs, torch.zeros_like(features)).item() == pytest.approx(
        (features.square().mean() / features.var()).item(), rel=1e-5
    )
    assert teacher.macs == count_cost(network, (1, 8, 8)).macs


def test_distillation_is_counted(job: Callable[..., Job]) -> None:
    state = train(job(steps=2, distill=0.5))
    assert state.flops == 2 * 32 * (6 * state.plan.dense.macs + 2 * count_cost(open_source(_DIGITS)[0], (1, 8, 8)).macs)


def test_a_new_head_is_counted_in_both(task: Task) -> None:
    three = replace(task, train=replace(task.train, classes=("a", "b", "c")))
    network, source = open_source(_DIGITS)
    pruned = prune(network, source, PruneOptions(flops=0.5))
    reached = LatencyReached(
        asked=0.5,
        where="here",
        clock="wall",
        batch=1,
        step=8,
        networks=24,
        fit_error=None,
        rounds=(LatencyRound(predicted=0.5, measured=0.5),),
        chosen=0,
    )
    smaller, plan = with_output_layer(pruned.network, replace(pruned.plan, latency=reached), three)
    assert plan.latency is None, "it was measured with another output layer"
    assert plan.source.output_layers == {"head": 3}
    assert count_cost(smaller, (1, 8, 8)) == plan.pruned
    dense = build_dense(plan.source)
    assert count_cost(dense, (1, 8, 8)) == plan.dense
    assert torch.equal(dense.head.weight, smaller.head.weight)  # type: ignore[union-attr, arg-type]
    assert next(group.width for group in plan.groups if group.name == "head") == 3
    assert torch.equal(dense.stem[0].weight, network.stem[0].weight)  # type: ignore[index]
    with pytest.raises(InputError, match=r"`keep_head`: the network has 10 outputs and .* has 3 classes"):
        with_output_layer(network, pruned.plan, three, keep=True)


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3)
        self.one, self.two = nn.Linear(8, 4), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x)
        return self.one(y.mean((2, 3))), self.two(y).mean((2, 3))


def test_heads_are_found() -> None:
    assert find_output_layers(_TwoHeads().eval(), (3, 8, 8)) == {"one": 4, "two": 5}
    network, source = open_source(SourceOptions(source="torchvision:squeezenet1_1", input_shape=(3, 64, 64)))
    assert find_output_layers(network, source.input_shape) == {"classifier.1": 1000}


def test_states_are_read_back_or_refused(tmp_path: Path) -> None:
    network, source = open_source(_DIGITS)
    path = tmp_path / "state"
    state = TrainState(plan=dense_plan(network, source), weights=dict(network.state_dict()), config={"a": [1, 2]})
    state.losses, state.average = [0.1, 3], 1 / 3
    write_state(path, state)
    again = read_state(path)
    assert (again.losses, again.average, again.config) == ([0.1, 3], 1 / 3, {"a": [1, 2]})
    assert again.plan.source == Source(**vars(source))
    content = path.read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="not the state of a training"):
        read_state(path)
    path.write_bytes(content.replace(rb"\"format_version\": 1}", rb"\"format_version\": 9}"))
    with pytest.raises(CheckpointError, match="format 9"):
        read_state(path)


def test_a_loss_that_blows_up_is_named(job: Callable[..., Job]) -> None:
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; lower `learning_rate`"):
        train(job(steps=60, learning_rate=1e6))


def test_a_pruned_representation_has_no_teacher(job: Callable[..., Job]) -> None:
    pruning = PruneOptions(flops=0.5, round_to=1, prune_representation=True)
    with pytest.raises(TrainingError, match="`distill` compares representations"):
        train(job(pruning=pruning, steps=2, distill=0.5, schedule="loss"))
