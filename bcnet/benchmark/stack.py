"""Several networks of one shape as one: small networks spend their time between operations, so train them side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from bcnet.data.batches import EvalBatches, TrainBatches
from bcnet.training.strategies import Pass


class NetworkStack(nn.Module):
    """``S`` networks that differ in their parameters only; none of them sees another.

    One step on the mean loss of the stack, weighted by ``S`` (`passes`), is one step of every network on its own mean
    loss, as long as the optimizer treats every entry by itself (SGD does; clipping the gradient norm does not).

    Args:
        networks: of the same architecture.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(networks)
        self._skeleton = [networks[0]]  # in a list, so that its parameters are not those of this module
        parameters, buffers = stack_module_state(list(networks))
        self._names = list(parameters), list(buffers)
        self._shaped = {name for name, tensor in (parameters | buffers).items() if tensor.ndim > 1}
        # kept as (S * O, I, ...) rather than (S, O, I, ...): vectors stay vectors for the optimizer's weight decay
        for name, tensor in parameters.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor.detach().flatten(0, 1)))
        for name, tensor in buffers.items():
            self.register_buffer(name.replace(".", "/"), tensor.flatten(0, 1) if tensor.ndim > 1 else tensor)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(S * N, C, H, W)``, network by network, to logits ``(S * N, classes)``."""
        skeleton = self._skeleton[0].train(self.training)
        parameters, buffers = ({name: self._of_each(name) for name in group} for group in self._names)

        def one(parameters: dict[str, Tensor], state: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(skeleton, (parameters, state), (x,))
            return logits

        stacked = images.unflatten(0, (self.size, -1))
        logits: Tensor = vmap(one, randomness="different")(parameters, buffers, stacked)
        return logits.flatten(0, 1)

    def _of_each(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name.replace(".", "/"))
        return tensor.unflatten(0, (self.size, -1)) if name in self._shaped else tensor

    def passes(self, step: int) -> list[Pass]:
        """The passes of a step for the trainer."""
        return [Pass(weight=float(self.size))]


class StackedBatches:
    """The batches of several networks, each with its own order and augmentation.

    Args:
        parts: one per network, of equal sizes.
    """

    def __init__(self, parts: Sequence[TrainBatches]) -> None:
        self.parts = parts
        self.steps_per_epoch, self.batch_size = parts[0].steps_per_epoch, parts[0].batch_size

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(S * N, C, H, W)`` and labels ``(S * N,)``, network by network."""
        images, labels = zip(*(part.batch(step) for part in self.parts), strict=True)
        return torch.cat(images), torch.cat(labels)


def accuracies(stack: NetworkStack, batches: EvalBatches) -> list[float]:
    """Accuracy of every network of a stack, in 0..1."""
    stack.eval()
    correct = torch.zeros(stack.size, dtype=torch.int64, device=next(stack.parameters()).device)
    with torch.no_grad():
        for images, labels in batches:
            logits = stack(images.repeat(stack.size, 1, 1, 1))
            correct += (logits.argmax(1).view(stack.size, -1) == labels).sum(1)
    return [value / len(batches) for value in correct.tolist()]
