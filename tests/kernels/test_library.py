import os
import subprocess
import sys

import pytest
import torch

from bcnet import kernels
from bcnet.kernels import library as loader
from bcnet.kernels.batch_norm import batch_norm
from bcnet.kernels.library import library

SCRIPT = """
import torch
from torch.nn import functional as F
from bcnet.kernels.depthwise import depthwise_conv2d
from bcnet.kernels.batch_norm import batch_norm

torch.set_num_threads(2)
x = torch.randn(5, 40, 6, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
weight = torch.ones(40, 1, 3, 3)
mean, var = torch.zeros(40), torch.zeros(40)
found = batch_norm(x, None, None, mean, var, training=True, momentum=1.0, eps=1e-5, relu=False)
torch.testing.assert_close(mean, x.mean((0, 2, 3)))
torch.testing.assert_close(found, F.batch_norm(x, None, None, training=True))


def gradients(conv, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    conv(*tensors).square().sum().backward()
    return [tensor.grad.double() for tensor in tensors]


ours = gradients(lambda x, w: depthwise_conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 40), x, weight)
exact = gradients(lambda x, w: F.conv2d(x, w, None, 1, 1, groups=40), x.double(), weight.double())  # oneDNN's fp32 is wrong then
torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.skipif(library("batch_norm") is None, reason="no C++ compiler here")
def test_fewer_threads_than_asked_for_do_all_the_work():
    """OpenMP may grant a smaller team than torch thinks it has."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | {"OMP_THREAD_LIMIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def normalized(x):
    return batch_norm(x, None, None, None, None, training=True, momentum=0.1, eps=1e-5, relu=True)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


IMAGES = torch.ones(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says another thing there")
def test_a_missing_compiler_is_told_once_and_only_where_it_matters(monkeypatch, capsys, fresh):
    monkeypatch.setenv("CXX", "no-such-compiler")
    off = "off: there is no C++ compiler called 'no-such-compiler' to compile the kernels with"
    assert kernels.status() == {"batch_norm": off, "depthwise": off}
    normalized(IMAGES.to("meta"))
    normalized(IMAGES.contiguous())
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert normalized(IMAGES) is None
        assert library("depthwise") is None
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("bcnet: note: there is no C++ compiler called 'no-such-compiler'")
    assert "takes longer. Install a C++ compiler such as g++" in note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says another thing there")
def test_a_compiler_that_fails_is_quoted(monkeypatch, capsys, fresh, tmp_path):
    compiler = script(
        tmp_path / "c++", "echo In file included from somewhere >&2; echo x.cpp:1: error: no omp.h >&2; echo more >&2; exit 1"
    )
    monkeypatch.setenv("CXX", compiler)
    assert normalized(IMAGES) is None
    (note,) = capsys.readouterr().err.splitlines()
    assert f"{compiler!r} does not compile the batch_norm kernels (x.cpp:1: error: no omp.h); PyTorch does" in note


def test_other_systems_are_told_that_kernels_are_for_linux(monkeypatch, capsys, fresh):
    monkeypatch.setattr(loader, "_on_linux", lambda: False)
    assert kernels.status()["depthwise"] == "off: the compiled kernels are for Linux only"
    assert normalized(IMAGES) is None
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("bcnet: note: the compiled kernels are for Linux only; ")
    assert "Install" not in note


def test_kernels_that_nobody_wants_are_not_missed(monkeypatch, capsys, fresh):
    monkeypatch.setenv("BCNET_KERNELS", "off")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert normalized(IMAGES) is None
    assert kernels.status() == dict.fromkeys(("batch_norm", "depthwise"), "off: BCNET_KERNELS=off")
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(library("batch_norm") is None, reason="no C++ compiler here")
def test_compiled_kernels_are_said_to_be():
    assert kernels.status()["batch_norm"] == "compiled"
