"""Trained weights of a user's own: whatever file they are in, they fit or one line says why not."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import bcnet
from bcnet.errors import UserError
from bcnet.models.factory import build_model
from bcnet.models.padded import PaddedResNet
from bcnet.models.weights import load_weights, read_weights


def digits(seed, num_classes=10):
    return build_model("digits/resnet", num_classes, seed=seed)


def wrapped_in(kind, model):
    state = model.state_dict()
    match kind:
        case "plain":
            return state
        case "data parallel":
            return {f"module.{key}": tensor for key, tensor in state.items()}
        case "compiled and parallel, in a checkpoint":
            names = {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}
            return {"epoch": 3, "state_dict": names, "optimizer": {"lr": 0.1}}
        case "timm":
            return {"arch": "x", "state_dict": digits(9).state_dict(), "state_dict_ema": state}
        case "averaged":
            return {"model": digits(9).state_dict(), "ema": AveragedModel(model).state_dict()}
        case "without counters":
            return {"model": {key: tensor for key, tensor in state.items() if "num_batches" not in key}}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "kind", ["plain", "data parallel", "compiled and parallel, in a checkpoint", "timm", "averaged", "without counters"]
)
def test_weights_are_found_in_what_people_save(tmp_path, kind, legacy):
    model, other = digits(1), digits(2)
    torch.save(wrapped_in(kind, model), tmp_path / "weights.pth", _use_new_zipfile_serialization=not legacy)
    load_weights(other, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_so_they_are_in_safetensors(tmp_path):
    model, other = digits(1), digits(2)
    save_file({f"model.{key}": tensor for key, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(model.classifier.weight, other.classifier.weight)


def test_weights_that_do_not_fit_are_described_in_one_line(tmp_path):
    state = {f"module.{key}": tensor for key, tensor in digits(1, num_classes=3).state_dict().items() if "blocks.2.conv2" not in key}
    torch.save(state | {"module.more": torch.ones(3)}, tmp_path / "w.pt")
    model = digits(2)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UserError) as caught:
        load_weights(model, tmp_path / "w.pt", "digits/resnet")
    text = str(caught.value)
    assert "\n" not in text
    for part in ("does not fit digits/resnet", "5 tensors missing: blocks.2.conv2.0.weight, ", "1 tensor unexpected: more"):
        assert part in text, text
    assert "2 tensors of another size: classifier.weight (3x16 in the file, 10x16 in the model)" in text
    assert text.endswith("tried: the names as they are, without 'module.'")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_what_a_module_of_lightning_holds_besides_is_named_and_left(tmp_path, capsys):
    model, other = digits(1), digits(2)
    names = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"state_dict": names | {"loss.weight": torch.ones(10), "accuracy.total": torch.ones(())}}, tmp_path / "w.ckpt")
    load_weights(other, tmp_path / "w.ckpt")
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert "w.ckpt: 2 tensors beside the network's not used: loss.weight, accuracy.total" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = digits(1).state_dict()
    state["blocks.2.conv2.0.weight"][0, 0, 1, 1] = value
    torch.save(state, tmp_path / "w.pt")
    model = digits(2)
    before = model.classifier.weight.clone()
    with pytest.raises(UserError, match=r"w\.pt: blocks\.2\.conv2\.0\.weight: not all values are finite"):
        load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.classifier.weight, before)


def test_every_prefix_is_tried_and_the_misfit_names_what_is_in_the_file(tmp_path):
    model, other = digits(1), digits(2)
    beside = {f"model.{key}": tensor for key, tensor in nn.Linear(2, 2).state_dict().items()}
    torch.save(beside | {f"net.{key}": tensor for key, tensor in model.state_dict().items()}, tmp_path / "w.ckpt")
    load_weights(other, tmp_path / "w.ckpt")
    assert torch.equal(model.classifier.weight, other.classifier.weight)
    state = model.state_dict()
    state["net.weight"] = state.pop("classifier.weight")
    torch.save(state, tmp_path / "w.ckpt")
    with pytest.raises(UserError, match=r"1 tensor missing: classifier\.weight; 1 tensor unexpected: net\.weight; tried"):
        load_weights(other, tmp_path / "w.ckpt")


def test_buffers_of_a_models_own_may_be_infinite(tmp_path):
    model = digits(1)
    model.register_buffer("best", torch.tensor(float("inf")))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_weights(model, tmp_path / "w.pt")


class Evil:
    def __reduce__(self):
        return (Path("evil-was-here").touch, ())


def test_files_that_hold_no_tensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    torch.save(digits(0), "whole.pth")
    torch.save({"epoch": 3}, "empty.pth")
    Path("text.pth").write_text("no weights")
    Path("text.safetensors").write_text("no weights")
    cases = {"evil.pth": "could run code", "whole.pth": "could run code", "empty.pth": "no tensors by name", "gone.pth": "no such file"}
    for name, message in (cases | {"text.pth": "damaged", "text.safetensors": "damaged"}).items():
        with pytest.raises(UserError, match=message) as caught:
            read_weights(Path(name))
        assert "\n" not in str(caught.value)
    assert not Path("evil-was-here").exists()


class Published(nn.Module):
    """ResNet for CIFAR as akamaster/pytorch_resnet_cifar10 publishes its weights: zeros on both sides of what a shortcut brings."""

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
            self.pad = (outputs - inputs) // 2

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x)).relu()

    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1, self.linear = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.Linear(64, 10)
        for number, (before, own) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            first = self.Block(before, own, 1 if own == before else 2)
            setattr(self, f"layer{number}", nn.Sequential(first, *(self.Block(own, own, 1) for _ in range(blocks - 1))))

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("depth", [8, 20])
def test_a_published_resnet_is_the_same_function_here(tmp_path, depth):
    torch.manual_seed(0)
    published, own = Published((depth - 2) // 6), PaddedResNet(depth=depth).eval()
    images = torch.randn(4, 3, 32, 32)
    published.train()(images)  # so that statistics are none of the initial ones
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in published.state_dict().items()}}, tmp_path / "w.th")
    load_weights(own, tmp_path / "w.th")
    with torch.no_grad():
        torch.testing.assert_close(own(images), published.eval()(images), rtol=1e-4, atol=1e-5)
    saved = tmp_path / "own.pt"  # names of our own are not taken for published ones
    torch.save(own.state_dict(), saved)
    other = PaddedResNet(depth=depth).eval()
    load_weights(other, saved)
    with torch.no_grad():
        assert torch.equal(own(images), other(images))


def test_streams_and_hidden_channels_of_a_padded_resnet_are_groups_of_their_own():
    space = bcnet.trace(build_model("cifar/resnet20_padded", 10), (3, 32, 32))
    assert [group.channels for group in space.groups] == [16, 16, 16, 16, 32, 16, 32, 32, 64, 32, 64, 64]
    assert [name for name, _ in space.fixed] == ["classifier"]


@pytest.mark.parametrize(("depth", "flops", "params"), [(20, 40_551_040, 269_722), (56, 125_485_696, 853_018)])
def test_costs_of_padded_resnets_are_the_published_ones(depth, flops, params):
    """0.27M and 0.85M parameters, 41M and 126M multiply-adds (He et al., 2016, and the table beside the published weights)."""
    from bcnet.space.cost import CostTable

    costs = CostTable(bcnet.trace(build_model(f"cifar/resnet{depth}_padded", 10), (3, 32, 32), proof=False))
    assert (costs.of_model("flops"), costs.of_model("params")) == (flops, params)


def test_the_published_weights_fit():
    folder = Path(os.environ.get("BCNET_DATA", "")) / "pretrained"
    if not folder.is_dir():
        pytest.skip("BCNET_DATA does not name a folder with pretrained/ in it")
    for depth, mark in ((20, "12fca82f"), (56, "4bfd9763")):
        model = build_model(f"cifar/resnet{depth}_padded", 10)
        load_weights(model, folder / f"resnet{depth}-cifar10-{mark}.th")
        assert float(model.stem[1].running_var.min()) != 1
