import os
import subprocess
import sys

import pytest

from bcnet.supernet.kernels import library

SCRIPT = """
import torch
from torch.nn import functional as F
from bcnet.supernet.depthwise import depthwise_conv2d
from bcnet.supernet.fused_norm import batch_norm

torch.set_num_threads(2)
x = torch.randn(5, 40, 6, 6, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
weight = torch.ones(40, 1, 3, 3)
found, (mean, _) = batch_norm(x, None, None, 1e-5, relu=False)
torch.testing.assert_close(mean, x.mean((0, 2, 3)))
torch.testing.assert_close(found, F.batch_norm(x, None, None, training=True))


def gradients(conv, *tensors):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    conv(*tensors).square().sum().backward()
    return [tensor.grad.double() for tensor in tensors]


ours = gradients(lambda x, w: depthwise_conv2d(x, w, None, 1, 1), x, weight)
exact = gradients(lambda x, w: F.conv2d(x, w, None, 1, 1, groups=40), x.double(), weight.double())  # oneDNN's fp32 is wrong then
torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-3)
"""


@pytest.mark.skipif(library("batch_norm") is None, reason="no C++ compiler here")
def test_fewer_threads_than_asked_for_do_all_the_work():
    """OpenMP may grant a smaller team than torch thinks it has."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | {"OMP_THREAD_LIMIT": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
