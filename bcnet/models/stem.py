"""Networks that were made for photographs, on small images: the stem without its strides and pooling."""

from torch import nn

from bcnet.errors import UserError

_MOST = 3  # convolutions that a stem has


def cifar_stem(model: nn.Module) -> nn.Module:
    """Let a network for photographs see 32x32 images as those for CIFAR do, in place.

    Its first convolution becomes 3x3 with stride 1, drawn anew by PyTorch's own initialiser where its kernel was larger; others of
    the stem lose their stride; the max pooling behind the stem is left out.

    Args:
        model: whose first convolution reads the images.

    Returns:
        The model.

    Raises:
        UserError: it does not begin with a convolution, or that is as small already.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.MaxPool2d)]
    first = names[0] if names else ""
    conv = model.get_submodule(first)
    if not isinstance(conv, nn.Conv2d) or conv.groups > 1 or conv.stride == conv.kernel_size:
        raise UserError(f"{type(model).__name__} has no stem of convolutions: leave out cifar_stem")
    if max(conv.kernel_size) <= 3 and max(conv.stride) == 1:
        raise UserError(f"{type(model).__name__} begins with a small convolution of stride 1 already: leave out cifar_stem")
    _replace(model, first, _small(conv))
    pool = next((place for place, name in enumerate(names) if isinstance(model.get_submodule(name), nn.MaxPool2d)), None)
    ends_in_pool = pool is not None and pool <= _MOST and "." not in names[pool]  # of the model itself: whatever is before it is the stem
    for place, name in enumerate(names[1:], start=1):
        if place == pool:
            _replace(model, name, nn.Identity())
            break
        beside = name.partition(".")[0] == first.partition(".")[0] and name.count(".") == first.count(".")
        if not (beside or ends_in_pool) or place == _MOST:
            break  # blocks begin
        model.get_submodule(name).stride = (1, 1)  # type: ignore[assignment]
    return model


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.kernel_size != (3, 3):
        return nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=conv.bias is not None)
    conv.stride = (1, 1)
    return conv


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
