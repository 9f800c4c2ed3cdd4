"""Operations that are faster on the CPU in C++ than in PyTorch, one module each; PyTorch does what they do not take.

That each pays is shown by ``benchmarks/results/speed_amd_epyc_2026-11-20.md`` (AMD EPYC, 2 vCPUs, MobileNet in bf16):

- `batch_norm`: BN and the ReLU behind it in one pass. Before that, BN backward took 31 % of a training step and ReLU backward
  19 %; now both together take 13 %, and 6 % forward.
- `depthwise`: the backward pass of depthwise convolutions, 1.3 to 58 times as fast as PyTorch's; now 6 % of a step.
- `pointwise`: not faster but right: strided 1x1 convolutions whose gradients oneDNN gets wrong on some CPUs.
- `library`: compiles and loads the kernels of both; `status` says whether they are there.
"""

from bcnet.kernels.library import status

__all__ = ["status"]
