import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from bcnet.config import load_as
from bcnet.dense.architecture import ExpectedCost
from bcnet.dense.config import DenseConfig, WeightsConfig
from bcnet.dense.experiment import DenseExperiment
from bcnet.dense.run import DenseRun
from bcnet.dense.schedule import Schedule
from bcnet.dense.supernet import Active
from bcnet.errors import Interrupted, UserError
from bcnet.training.checkpoint import load_checkpoint

QUICK = ["weights.epochs=3", "architecture.start_epoch=1", "weights.batch_size=128", "architecture.batch_size=100", "retrain.epochs=1"]
BUDGET = "cost.budget=flops=0.5"


def experiment(*overrides):
    return DenseExperiment(load_as(DenseConfig, "dense/digits", [*QUICK, *overrides]))


def test_every_step_is_planned_once():
    schedule = Schedule(epochs=4, start=2, weight_steps=3, architecture_steps=2)
    steps = [schedule.at(number) for number in range(schedule.total)]
    assert [one.number for one in steps if one.kind == "weights"] == list(range(12))
    assert [one.number for one in steps if one.kind == "architecture"] == list(range(4))
    assert [one.epoch for one in steps if one.ends_epoch] == [0, 1, 2, 3]
    assert [one.kind[0] for one in steps] == list("wwwwwwaawwwaawww")
    assert all(a.epoch <= b.epoch for a, b in pairwise(steps))


# Gradients -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def double():
    """A search in double precision, with the images and labels of a step."""
    search = experiment("weights.sampling=uniform").make_search()
    search.network.double().train()
    search.architecture.double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in search.architecture.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images, labels = search.batches.batch(0)
    return search, images[:24].double(), labels[:24]


def finite_difference(loss, parameter, place, step=1e-6):
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            parameter[place] += sign * step
            values.append(loss().item())
            parameter[place] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def places(parameter, count=4):
    flat = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(0))[:count]
    return [tuple(int(i) for i in torch.unravel_index(one, parameter.shape)) for one in flat]


def test_gradients_of_the_architecture_are_those_of_finite_differences(double):
    search, images, labels = double
    heads, stacks = search._sample(2, 0)
    cost = ExpectedCost(search.architecture, search.costs.costs["flops"])

    def loss():
        return search.architecture_loss(images, labels, heads, stacks) + 0.3 * cost().log()

    loss().backward()
    for parameter in search.architecture.parameters():
        assert parameter.grad.abs().max() > 1e-6
        for place in places(parameter, 6):
            assert parameter.grad[place].item() == pytest.approx(finite_difference(loss, parameter, place), rel=1e-4, abs=1e-7)


def test_gradients_of_the_weights_are_those_of_finite_differences_and_only_sampled_operations_have_one(double):
    search, images, labels = double
    heads, stacks = search._sample(1, 0)

    def loss():
        search.network.active = Active(search.architecture.edges().detach(), heads, stacks)
        return F.cross_entropy(search.network(images), labels)

    loss().backward()
    network = search.network
    trained = [network.heads[number][heads[number, 0]] for number in range(len(heads))]
    for operation in [network.stem, network.first, *trained]:
        weight = next(operation.parameters())
        for place in places(weight, 2):
            assert weight.grad[place].item() == pytest.approx(finite_difference(loss, weight, place), rel=1e-3, abs=1e-7)
    for number, mixed in enumerate(network.heads):
        for other, operation in enumerate(mixed):
            has_gradient = [p.grad is not None for p in operation.parameters()]
            assert all(has_gradient) if other == heads[number, 0] else not any(has_gradient)


# Steps -----------------------------------------------------------------------------------------------------------------


def test_a_weight_step_leaves_what_it_did_not_sample_and_the_architecture_as_they_were():
    search = experiment().make_search()
    before = {name: value.clone() for name, value in search.network.named_parameters()}
    search.run(until_step=1)
    heads, _ = search._sample(1, 0)
    for number, mixed in enumerate(search.network.heads):
        for other in range(len(mixed)):
            same = all(torch.equal(before[f"heads.{number}.{other}.{name}"], p) for name, p in mixed[other].named_parameters())
            assert same == (other != heads[number, 0])
    assert all(not parameter.any() for parameter in search.architecture.parameters())


def test_an_architecture_step_leaves_the_weights_as_they_were():
    search = experiment().make_search()
    search.run(until_step=search.schedule.weight_steps)
    before = {name: value.clone() for name, value in search.network.named_parameters()}
    search.run(until_step=search.step + 1)
    assert all(torch.equal(before[name], value) for name, value in search.network.named_parameters())
    assert all(parameter.abs().max() > 0 for parameter in search.architecture.parameters())
    assert all(parameter.requires_grad for parameter in search.network.parameters())


@pytest.mark.parametrize(("sampling", "is_fair"), [("fair", True), ("probable", False)])
def test_fair_sampling_trains_every_operation_equally_often(sampling, is_fair):
    search = experiment(f"weights.sampling={sampling}", "weights.epochs=5", "architecture.start_epoch=4").make_search()
    search.run(until_step=20)  # of the weights alone: whole rounds of two operations
    counts = search.operations
    assert counts.heads.sum(1).tolist() == [20] * len(counts.heads)
    assert (counts.deviation == 0) == is_fair


def test_the_cost_s_term_follows_budget_warm_up_and_temperature():
    search = experiment(BUDGET, "weights.epochs=6", "architecture.temperature=4", "architecture.final_temperature=1").make_search()
    assert [search.temperature(epoch) for epoch in (0, 1, 5)] == pytest.approx([4, 4, 1])
    low = experiment("cost.budget=flops=1.0", "cost.rate=1", "cost.weight=0").make_search()
    low.run()
    assert low.cost_weight < 0  # everything is within the budget, so networks may cost more
    tight = experiment("cost.budget=flops=0.31", "cost.rate=1", "cost.weight=0", "cost.limit=0.5").make_search()
    tight.run()
    assert 0 < tight.cost_weight <= 0.5
    warm = experiment("cost.warmup_epochs=3", "cost.weight=0.4").make_search()
    assert [warm.cost_factor(epoch) for epoch in (1, 2, 4, 5)] == pytest.approx([0.1, 0.2, 0.4, 0.4])


# Stopping and resuming -------------------------------------------------------------------------------------------------


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_a_search_that_was_killed_and_stopped_goes_on_and_ends_the_same_bit_for_bit(tmp_path):
    settings = [*QUICK, BUDGET, "checkpoint_seconds=0.001", "weights.sampling=probable", "weights.epochs=5"]
    config = load_as(DenseConfig, "dense/digits", settings)
    whole = DenseRun.create(tmp_path / "whole", config)
    whole.train()
    arguments = [*settings, "--out", str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    life = subprocess.Popen(
        [sys.executable, "-m", "bcnet", "dense", "train", "dense/digits", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    while life.poll() is None and not (checkpoint.exists() and load_checkpoint(checkpoint)["step"] >= 4):
        time.sleep(0.01)
    life.kill()
    life.wait()
    first = load_checkpoint(checkpoint)["step"]
    assert 4 <= first < whole.trainer.total_steps

    stopped = DenseRun.create(tmp_path / "killed", config, resume=True)
    search, ordinary = stopped.trainer, stopped.trainer._after_step

    def stop_between():
        ordinary()
        if search.step == first + 3:
            signal.raise_signal(signal.SIGTERM)

    search._after_step = stop_between
    with pytest.raises(Interrupted, match=f"SIGTERM; saved at step {first + 3} of"):
        stopped.train()
    again = DenseRun.create(tmp_path / "killed", config, resume=True)
    again.train()
    states = [load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed")]
    assert states[0]["step"] == whole.trainer.total_steps
    assert same(*states)
    records = [DenseRun.open(tmp_path / name).derive() for name in ("whole", "killed")]
    assert records[0].model_dump(exclude={"search_seconds"}) == records[1].model_dump(exclude={"search_seconds"})


class LaterWeights(WeightsConfig):
    novelty: bool = False


class LaterConfig(DenseConfig):
    weights: LaterWeights = LaterWeights()


def test_a_setting_that_comes_later_keeps_older_searches_and_tells_new_ones_apart():
    known = experiment().identity()
    assert DenseExperiment(load_as(LaterConfig, "dense/digits", QUICK)).identity() == known
    assert DenseExperiment(load_as(LaterConfig, "dense/digits", [*QUICK, "weights.novelty=true"])).identity() != known
    for other in (
        "seed=1",
        "weights.superkernel=true",
        "data.num_val=200",
        "grid.adjoin=2",
        "cost.budget=flops=0.5",
        "architecture.lr=0.5",
    ):
        assert experiment(other).identity() != known


def test_a_checkpoint_of_another_search_or_a_damaged_one_is_refused(tmp_path):
    config = load_as(DenseConfig, "dense/digits", QUICK)
    run = DenseRun.create(tmp_path / "run", config)
    run.trainer.run(until_step=2)
    with pytest.raises(UserError, match="already holds a run; continue it by --resume"):
        DenseRun.create(tmp_path / "run", config)
    other = load_as(DenseConfig, "dense/digits", [*QUICK, "grid.last=40"])
    with pytest.raises(UserError, match=r"searched with another grid\.last"):
        DenseRun.create(tmp_path / "run", other, resume=True)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or not a file of tensors"):
        DenseRun.open(tmp_path / "run").searched.run()


# Several processes -----------------------------------------------------------------------------------------------------

TWO = """
import sys, torch
from torch import distributed
from bcnet.config import load_as
from bcnet.dense.config import DenseConfig
from bcnet.dense.experiment import DenseExperiment

same_images, settings = sys.argv[1] == "same", sys.argv[2:]

def made():
    return DenseExperiment(load_as(DenseConfig, "dense/digits", settings)).make_search()

def parameters(search):
    return torch.cat([p.detach().flatten() for p in (*search.network.parameters(), *search.architecture.parameters())])

alone, search = made(), made()  # before there is a group: they take whole batches
distributed.init_process_group("gloo")
search = search if same_images else made()
search.run()
mine = parameters(search)
both = [torch.empty_like(mine) for _ in range(2)]
distributed.all_gather(both, mine)
assert torch.equal(*both)
distributed.barrier()
distributed.destroy_process_group()
alone.run()
assert torch.equal(parameters(alone), mine) == same_images
"""


@pytest.mark.parametrize("superkernel", ["true", "false"])
def test_two_processes_on_the_same_images_search_as_one_does(tmp_path, two_processes, superkernel):
    script = tmp_path / "search.py"
    script.write_text(TWO)
    result = two_processes(script, "same", *QUICK, f"weights.superkernel={superkernel}")
    assert result.returncode == 0, result.stderr[-3000:]


def test_two_processes_on_different_images_stay_equal_and_one_of_them_writes(tmp_path, two_processes):
    script = tmp_path / "search.py"
    script.write_text(TWO)
    result = two_processes(script, "different", *QUICK)
    assert result.returncode == 0, result.stderr[-3000:]
    command = tmp_path / "command.py"
    command.write_text("import sys\nfrom bcnet.__main__ import main\nmain(sys.argv[1:])\n")
    folder = tmp_path / "run"
    result = two_processes(command, "dense", "train", "dense/digits", *QUICK, "--budget", "flops=0.5", "--out", folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("searched") == 1
    assert DenseRun.open(folder).record().best.costs["flops"] <= DenseRun.open(folder).record().budget.limit
    result = two_processes(command, "dense", "retrain", folder, "retrain.epochs=1", "--seeds", "0")
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(DenseRun.open(folder).retrained()[0].acc) == 1
