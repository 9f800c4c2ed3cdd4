"""Which channels of a network go together, seen while it runs.

The network is run, and every operation that PyTorch executes is looked at before the next one. Every entry of every dimension of
every parameter has a label; operations hand labels on: a convolution gives its results the labels of its weight's outputs, and ties
those of its inputs to the weight's. Channels that must be kept or dropped together are those whose labels are tied.

No source code is read, so anything goes that can be run: control flow, views, hooks. What is not known here keeps its channels
whole: an operation without a rule fixes the labels that reach it.
"""

import bisect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

Labels = npt.NDArray[np.int64]  # of the entries of one dimension; -1 where there is none
INPUT = "the input of the model"
OUTPUTS = "the outputs of the model"
FIXED_SIZE = "its channels meet a tensor of fixed size"

_FACTORIES = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "linspace", "empty_strided", "scalar_tensor"}
_FACTORIES |= {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"}
# Every entry of the result comes from the same entry of the arguments, though PyTorch does not tag them so.
_POINTWISE = {"native_dropout", "bernoulli", "uniform", "normal", "random", "exponential", "fill", "zero", "copy", "hardswish"}
_POINTWISE |= {"_prelu_kernel", "rrelu_with_noise", "masked_fill", "log_sigmoid_forward", "_to_copy", "lift_fresh", "detach", "alias"}
_POINTWISE |= {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "_fused_dropout", "native_alpha_dropout"}
# Nor these, in older versions.
_POINTWISE |= {"celu", "elu", "hardshrink", "hardsigmoid", "hardtanh", "leaky_relu", "mish", "relu6", "rrelu", "selu", "softplus"}
_POINTWISE |= {"softshrink", "threshold", "isfinite", "rad2deg"}
_MOVES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze", "slice", "select"}
_MOVES |= {"split", "split_with_sizes", "unbind", "repeat", "flip", "roll", "index_select", "index", "pixel_shuffle", "unfold"}
_MOVES |= {"pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal", "im2col", "expand"}
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_PARTS = {"slice", "split", "split_with_sizes"}  # take some of the entries of a dimension
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "max", "min", "prod"}
_REDUCTIONS |= {"any", "all", "logsumexp", "argmax", "argmin", "median", "nansum", "count_nonzero", "aminmax"}
_ALONG = {"_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk", "logcumsumexp", "_safe_softmax"}
_IN_COUNTS = ("num_features", "channels", "num_channels")  # what a module without parameters may call its number of input channels
_OUT_COUNTS = ("out_chs",)  # and of output channels
_SPATIAL = re.compile(r"pool(\d)d|upsample_[a-z_]*?(\d)d|(?:reflection|replication)_pad(\d)d")
_BATCH_NORMS = re.compile(r"batch_norm")
_ATTENTION = re.compile(r"scaled_dot_product")


@dataclass
class Use:
    """How a layer's weight is used in convolutions or matrix products.

    Attributes:
        kind: ``conv`` or ``linear``.
        inputs: labels of the channels that it sums over, or that a grouped convolution reads.
        outputs: labels of the channels that it gives.
        out_dim: the weight's dimension of outputs.
        in_dim: the weight's dimension of inputs.
        channels_per_group: input channels per group of a grouped convolution; 0 if it is not grouped.
        kernel: kernel positions.
        positions: output positions of one image, summed over calls.
        along: labels of channels that are positions here, as for a convolution over channels.
        tensor: name of the parameter that the weight is, or is made from.
    """

    kind: str
    inputs: Labels
    outputs: Labels
    out_dim: int
    in_dim: int
    channels_per_group: int
    kernel: int
    positions: int = 0
    along: Labels | None = None
    tensor: str = "weight"


@dataclass
class _Marks:
    """Labels of every dimension of a tensor, and whether it depends on the network's input."""

    labels: list[Labels | None]
    from_input: bool


@contextmanager
def countable(model: nn.Module) -> Iterator[None]:
    """Attention and recurrent layers run as the operations that they are made of; in one of their own nothing could be counted."""
    fast, recurrent = torch.backends.mha.get_fastpath_enabled(), any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")  # of whatever sets these flags
            with torch.backends.mkldnn.flags(enabled=False) if recurrent else nullcontext():
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Channels(TorchDispatchMode):
    """Watches a network run, and says which channels of which parameters go together.

    Args:
        model: the network; it is run, not changed, but for its BN statistics in training mode.

    Attributes:
        tensors: (module, name) -> labels of every dimension, of every parameter and buffer with dimensions larger than one.
        order: modules in order of first use of their parameters.
        uses: module -> `Use`.
        sized: modules that keep the number of channels of their input or output as an attribute -> (name of it, labels).
        across: leaf modules that normalise over channels -> (dimension of channels in their input, in their output).
        flops: multiply-adds of one image that belong to no layer.
        reads_values: whether Python code looked at a value that depends on the input, and may have branched on it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.tensors: dict[tuple[str, str], list[Labels | None]] = {}
        self.order: dict[str, None] = {}
        self.uses: dict[str, Use] = {}
        self.across: dict[str, tuple[int, int]] = {}
        self.sized: dict[str, tuple[str, Labels]] = {}
        self.flops = 0
        self.reads_values = False
        self.units: list[tuple[Labels, int]] = []
        self.fixed: list[tuple[Labels, str]] = []
        self._ties: list[tuple[Labels, Labels]] = []
        self._count = 0
        self._starts: list[int] = []
        self._owners: list[tuple[str, str, int]] = []
        self._marks: Any = WeakIdKeyDictionary()
        self._keys: dict[int, list[tuple[str, str]]] = {}  # of a parameter or buffer: the modules that own it, and its names there
        self._stack: list[tuple[str, nn.Module]] = []
        self._entered: dict[str, list[tuple[int, int]]] = {}
        self._mixed: dict[str, int] = {}
        self._counting = True
        self._scale = 1
        for name, module in model.named_modules():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self._register(name, key, tensor)

    # What is found ----------------------------------------------------------------------------------------------------

    def watch(self, images: Tensor, *, counting: bool = True) -> Any:
        """Run the network on images ``(N, C, H, W)``; count multiply-adds if asked.

        Raises:
            Exception: whatever the network raises.
        """
        self._counting, self._scale = counting, len(images)
        self._marks[images] = _Marks([None] * images.ndim, True)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), countable(self.model), self._modules_entered(), self:
            outputs = self.model(images)
        for output in tree_leaves(outputs):
            if isinstance(output, Tensor):
                for labels in self._of(output).labels:
                    self._fix(labels, OUTPUTS)
        return outputs

    def components(self) -> npt.NDArray[np.int64]:
        """For every label the number of the set of labels that are tied to it."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        a = np.concatenate([pair[0] for pair in self._ties] or [np.zeros(0, np.int64)])
        b = np.concatenate([pair[1] for pair in self._ties] or [np.zeros(0, np.int64)])
        graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(self._count, self._count))
        result: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
        return result

    # Labels -----------------------------------------------------------------------------------------------------------

    def _fresh(self, size: int) -> Labels:
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

    def _made(self, tensor: Tensor, dim: int) -> Labels | None:
        """Labels of a dimension that is as large as code says: no channels are the images of the batch, which come first."""
        size = tensor.shape[dim]
        is_batch = dim == 0 and tensor.ndim > 1 and size == self._scale
        return self._fresh(size) if size > 1 and not is_batch else None

    def _register(self, module: str, key: str, tensor: Tensor) -> None:
        known = self._marks.get(tensor)
        if known is None:
            labels: list[Labels | None] = []
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    self._starts.append(self._count)
                    self._owners.append((module, key, dim))
                labels.append(self._fresh(size) if size > 1 else None)
            known = self._marks[tensor] = _Marks(labels, False)
        self._keys.setdefault(id(tensor), []).append((module, key))
        self.tensors[module, key] = known.labels

    def _owner(self, labels: Labels | None) -> tuple[str, str, int] | None:
        """Whose dimension these labels are: (module, tensor, dimension), if they are a whole one's."""
        if labels is None or not len(labels) or labels.min() < 0:
            return None
        owner = self._owners[bisect.bisect_right(self._starts, int(labels[0])) - 1] if self._starts else None
        if owner is None:
            return None
        own = self.tensors[owner[0], owner[1]][owner[2]]
        return owner if own is not None and len(own) == len(labels) and set(own.tolist()) == set(labels.tolist()) else None

    def _of(self, tensor: Tensor) -> _Marks:
        known = self._marks.get(tensor)
        return _Marks([None] * tensor.ndim, False) if known is None else known

    def _set(self, tensor: Tensor, labels: Sequence[Labels | None], from_input: bool) -> None:
        assert len(labels) == tensor.ndim
        self._marks[tensor] = _Marks([None if own is None or (own < 0).all() else own for own in labels], from_input)

    def _fix(self, labels: Labels | None, why: str) -> None:
        if labels is not None and (own := labels[labels >= 0]).size:
            self.fixed.append((own, why))

    def _tie(self, a: Labels | None, b: Labels | None, why: str = FIXED_SIZE) -> Labels | None:
        """Channel by channel, these are one; what has no label has a size that cannot change."""
        if a is None or b is None or len(a) != len(b):
            self._fix(a, why)
            self._fix(b, why)
            return a if b is None else b if a is None else None
        both = (a >= 0) & (b >= 0)
        self._fix(a[~both], why)
        self._fix(b[~both], why)
        if (a[both] != b[both]).any():
            self._ties.append((a[both], b[both]))
        return np.where(a >= 0, a, b)

    # Modules ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _modules_entered(self) -> Iterator[None]:
        """Know which module is at work."""

        def enter(name: str) -> Callable[[nn.Module, Any], None]:
            def hook(module: nn.Module, inputs: Any) -> None:
                self._stack.append((name, module))
                self._entered[name] = self._labelled_dims(inputs[:1])
                self._note_size(name, module, inputs[0] if inputs else None, _IN_COUNTS)

            return hook

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            name = self._stack.pop()[0]
            entered = self._entered.pop(name, [])
            self._note_size(name, module, output, _OUT_COUNTS)
            if name in self.across:  # tokens may be labelled as well, by their embedding
                before, after = (
                    [dim for dim, size in own if size == self._mixed[name]] for own in (entered, self._labelled_dims([output]))
                )
                if len(before) == len(after) == 1:
                    self.across[name] = before[0], after[0]

        handles: list[Any] = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()

    def _note_size(self, name: str, module: nn.Module, value: Any, keys: Sequence[str]) -> None:
        if name in self.sized or module._parameters or not isinstance(value, Tensor) or value.ndim < 2:
            return
        labels = self._of(value).labels[1]
        key = next((key for key in keys if vars(module).get(key) == value.shape[1]), None)
        if labels is not None and key is not None:
            self.sized[name] = key, labels
            self.order.setdefault(name)

    def _labelled_dims(self, values: Sequence[Any]) -> list[tuple[int, int]]:
        """Dimensions that are channels of something, and their sizes."""
        dims = [one for value in values if isinstance(value, Tensor) for one in enumerate(self._of(value).labels)]
        return [(dim, len(own)) for dim, own in dims if own is not None]

    def _mix(self, labels: Labels | None, from_input: bool, name: str) -> None:
        """An operation mixes these channels: it may in a norm, which then is one over the active channels, and in weights."""
        if labels is None:
            return
        where, module = self._stack[-1] if self._stack else ("", self.model)
        is_leaf = not any(True for child in module.children() for _ in child.parameters())  # but for activations
        owns = any(own is not None for (owner, _), dims in self.tensors.items() if owner == where for own in dims)
        if is_leaf and owns and (not from_input or "norm" in type(module).__name__.lower()):
            self.across.setdefault(where, (1, 1))
            self._mixed.setdefault(where, len(labels))
        else:
            self._fix(labels, f"its channels are mixed by {name}" + (f" in {where}" if where else ""))

    # Operations -------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            for owner, _ in self._keys.get(id(tensor), ()):
                self.order.setdefault(owner)
        result = func(*args, **kwargs)
        outs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        self._follow(func, _Call(func, args, kwargs, given, tensors, outs))
        self.reads_values |= _reads_value(func) and any(self._of(tensor).from_input for tensor in tensors)
        if func._schema.is_mutable:
            self._write_through(func, given)
        return result

    def _follow(self, func: Any, call: "_Call") -> None:
        name = call.name
        from_input = any(self._of(tensor).from_input for tensor in call.tensors)
        if name in _FACTORIES:
            for out in call.outs:  # as large as the code says, which may well follow the active channels: the proof will tell
                self._set(out, [self._made(out, dim) for dim in range(out.ndim)], False)
        elif name in _POINTWISE or (torch.Tag.pointwise in func.tags and name not in _REDUCTIONS):
            self._pointwise(call, from_input)
        elif name == "cat" or name == "stack":
            self._join(call, from_input)
        elif name == "constant_pad_nd":
            self._pad(call, from_input)
        elif name in _MOVES or (name.startswith("as_strided") and call.outs[0].shape == call.tensors[0].shape):
            self._move(call, from_input)
        elif name == "convolution" or name == "_convolution":
            self._convolution(call)
        elif name in ("mm", "addmm"):
            self._matrix_product(call)
        elif name in ("native_layer_norm", "native_group_norm"):
            self._norm(call, from_input)
        elif _BATCH_NORMS.search(name):
            self._batch_norm(call, from_input)
        elif name in _REDUCTIONS:
            self._reduce(call, from_input)
        elif name in _ALONG:
            self._along(call, from_input)
        elif name == "glu":
            self._glu(call, from_input)
        elif name == "_weight_norm_interface":
            self._weight_norm(call)
        elif (spatial := _SPATIAL.search(name)) is not None:
            self._resample(call, int(next(number for number in spatial.groups() if number)), from_input)
        else:
            self._unknown(func, call, from_input)

    def _write_through(self, func: Any, given: Mapping[str, Any]) -> None:
        """Whoever writes into a part of a tensor changes what others see of it: nothing is known of these channels any more."""
        for argument in func._schema.arguments:
            target = given.get(argument.name)
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(target, Tensor):
                continue
            storage = target.untyped_storage()
            if target.numel() * target.element_size() >= storage.nbytes():
                continue
            for tensor, marks in list(self._marks.items()):
                if tensor.untyped_storage()._cdata == storage._cdata:
                    for labels in marks.labels:
                        self._fix(labels, "a part of its channels is written in place")

    def _unknown(self, func: Any, call: "_Call", from_input: bool) -> None:
        if self._counting and func.overloadpacket in flop_registry:
            counted = flop_registry[func.overloadpacket](*call.args, **call.kwargs, out_val=call.outs[0] if call.outs else None)
            self.flops += int(counted) // 2 // self._scale
        kind = "an attention" if _ATTENTION.search(call.name) else call.name
        kind = "a batched matrix product, as attention has" if call.name in ("bmm", "baddbmm") else kind
        for tensor in call.tensors:
            for labels in self._of(tensor).labels:
                self._fix(labels, f"its channels pass through {kind}")
        for out in call.outs:
            self._set(out, [None] * out.ndim, from_input)

    def _pointwise(self, call: "_Call", from_input: bool) -> None:
        for out in call.outs:
            labels: list[Labels | None] = [None] * out.ndim
            for dim, size in enumerate(out.shape):
                met: list[Labels | None] = []
                for tensor in call.tensors:
                    own = dim - out.ndim + tensor.ndim
                    if size > 1 and own >= 0 and tensor.shape[own] == size:
                        met.append(self._of(tensor).labels[own])
                for number, one in enumerate(met):
                    labels[dim] = one if not number else self._tie(labels[dim], one)
            if out.numel():
                self._set(out, labels, from_input)

    def _join(self, call: "_Call", from_input: bool) -> None:
        (out,) = call.outs
        parts = [tensor for tensor in call.tensors if tensor.ndim == call.tensors[-1].ndim and tensor.numel()]
        axis = int(call.given.get("dim", 0)) % out.ndim
        labels: list[Labels | None] = []
        for dim in range(out.ndim):
            own_dim = dim - (call.name == "stack" and dim > axis)
            own = [self._of(part).labels[own_dim] if own_dim < part.ndim else None for part in parts]
            if dim != axis:
                joined = own[0]
                for one in own[1:]:
                    joined = self._tie(joined, one) if out.shape[dim] > 1 else None
                labels.append(joined)
            elif call.name == "stack":
                labels.append(None)
            else:
                sizes = [part.shape[dim] for part in parts]
                filled = [np.full(size, -1, np.int64) if one is None else one for one, size in zip(own, sizes, strict=True)]
                labels.append(np.concatenate(filled))
        self._set(out, labels, from_input)

    def _pad(self, call: "_Call", from_input: bool) -> None:
        (out,), source, pads = call.outs, call.tensors[0], list(call.given["pad"])
        labels = list(self._of(source).labels)
        for number in range(len(pads) // 2):
            dim = source.ndim - 1 - number
            before, after = pads[2 * number : 2 * number + 2]
            own = labels[dim]
            if own is None or (before, after) == (0, 0):
                continue
            if min(before, after) < 0:
                self._fix(own, "its channels are cropped")
                labels[dim] = None
            else:
                labels[dim] = np.pad(own, (before, after), constant_values=-1)
        self._set(out, labels, from_input)

    def _move(self, call: "_Call", from_input: bool) -> None:
        """Operations that only put entries elsewhere are run on the labels themselves."""
        source = call.tensors[0]
        marks = self._of(source)
        found: list[list[Labels | None]] = [[None] * out.ndim for out in call.outs]
        for dim, own in enumerate(marks.labels):
            if own is None:
                continue
            shape = [1] * source.ndim
            shape[dim] = len(own)
            stand_in = torch.from_numpy(own.astype(np.float64)).view(shape).expand(source.shape)
            moved = _run_on(call, stand_in)
            for number, values in enumerate(moved):
                self._place(call.name, found[number], values, len(own))
            if call.name in _PARTS:
                self._tie_parts(own, [labels[dim] for labels in found if dim < len(labels)])
        if call.name == "expand":  # as large as the code says, which may follow the active channels
            for labels, out in zip(found, call.outs, strict=True):
                lead = out.ndim - source.ndim
                for dim, size in enumerate(out.shape):
                    if size > 1 and (dim < lead or source.shape[dim - lead] == 1):
                        labels[dim] = self._made(out, dim)
        for labels, out in zip(found, call.outs, strict=True):
            self._set(out, labels, from_input)

    def _place(self, name: str, labels: list[Labels | None], values: Tensor, num_labels: int) -> None:
        """Say along which dimension of the result the labels lie."""
        if not values.numel():
            return
        varying = [dim for dim, size in enumerate(values.shape) if size > 1 and bool((values != values.narrow(dim, 0, 1)).any())]
        if len(varying) == 1 and labels[varying[0]] is None:
            dim = varying[0]
            line = values.movedim(dim, 0).flatten(1)[:, 0] if values.ndim > 1 else values
            labels[dim] = line.numpy().astype(np.int64)
            return
        everything = np.unique(values.numpy()).astype(np.int64)
        if name in _RESHAPES and prod(values.shape[dim] for dim in varying) == num_labels and len(varying) > 1:
            self._split(labels, values, varying)
        elif not varying:
            self._fix(everything, "one of its channels is taken alone")
        else:
            self._fix(everything, f"its channels are regrouped by {name}")
            for dim in varying:
                self._fix(labels[dim], f"its channels are regrouped by {name}")
                labels[dim] = None

    def _split(self, labels: list[Labels | None], values: Tensor, varying: Sequence[int]) -> None:
        """Channels that are cut into parts, as for attention heads or a shuffle: the parts shrink together.

        Which of the new dimensions shrinks is up to the code that follows; the largest is taken, and the proof tells.
        """
        line = max(varying, key=lambda dim: (values.shape[dim], dim))
        others = [dim for dim in range(values.ndim) if dim != line]
        lines = np.unique(values.permute(*others, line).reshape(-1, values.shape[line]).numpy(), axis=0).astype(np.int64)
        for other in lines[1:]:
            self._tie(lines[0], other)
        labels[line] = lines[0]

    def _tie_parts(self, whole: Labels, parts: Sequence[Labels | None]) -> None:
        """Parts of one size, as ``chunk`` gives them, shrink together."""
        for part in parts:
            if part is None or len(part) == len(whole) or len(whole) % len(part):
                continue
            tiles = whole.reshape(-1, len(part))
            if any(np.array_equal(tile, part) for tile in tiles):
                for tile in tiles[1:]:
                    self._tie(tiles[0], tile)

    # Layers -----------------------------------------------------------------------------------------------------------

    def _convolution(self, call: "_Call") -> None:
        x, weight = call.tensors[:2]
        bias = call.tensors[2] if len(call.tensors) > 2 else None
        (out,) = call.outs
        groups, transposed = int(call.given["groups"]), bool(call.given["transposed"])
        of_x, of_weight = self._of(x), self._of(weight)
        out_dim, in_dim = (1, 0) if transposed else (0, 1)
        read, given = of_x.labels[1], of_weight.labels[out_dim]
        per_group, per_output = x.shape[1] // groups, out.shape[1] // groups
        if groups == 1:
            read = self._tie(read, of_weight.labels[in_dim], INPUT if of_x.labels[1] is None else FIXED_SIZE) if x.shape[1] > 1 else None
        elif transposed:
            if per_group == per_output == 1:
                out_dim = 0
                given = read = self._tie(read, of_weight.labels[0])
            else:
                for labels in (read, *of_weight.labels):
                    self._fix(labels, "a grouped transposed convolution")
        elif per_group == 1:
            given = self._tie(None if read is None else read.repeat(per_output), given, INPUT if read is None else FIXED_SIZE)
        elif per_group == per_output:
            self._fix(of_weight.labels[1], "channels of one group of a grouped convolution")
            given = self._tie(read, given, INPUT if read is None else FIXED_SIZE)
            if given is not None:
                self.units.append((given, per_group))
        else:
            for labels in (read, *of_weight.labels):
                self._fix(labels, "a grouped convolution with other inputs than outputs")
        if bias is not None and bias.shape[0] > 1:
            given = self._tie(given, self._of(bias).labels[0])
        lying = self._neighbours(of_x.labels[2:], x.shape[2:], out.shape[2:])
        self._set(out, [of_x.labels[0], given, *lying], of_x.from_input or of_weight.from_input)
        positions = prod((x if transposed else out).shape[2:]) * len(x)
        use = Use("conv", _or_none(read, x.shape[1]), _or_none(given, out.shape[1]), out_dim, in_dim, 0, prod(weight.shape[2:]))
        use.channels_per_group = per_group if groups > 1 else 0
        weight_in = None if groups > 1 else of_weight.labels[in_dim]
        self._use(use, weight, of_weight.labels[out_dim], weight_in, positions, [of_x.labels[0], *lying])

    def _neighbours(self, labels: Sequence[Labels | None], before: Sequence[int], after: Sequence[int]) -> list[Labels | None]:
        """Channels that lie where a convolution has positions: each depends on its neighbours."""
        kept: list[Labels | None] = []
        for own, old, new in zip(labels, before, after, strict=True):
            if old != new:
                self._fix(own, "its channels are positions of a convolution")
            kept.append(own if old == new else None)
        return kept

    def _matrix_product(self, call: "_Call") -> None:
        bias = call.tensors[0] if call.name == "addmm" else None
        a, b = call.tensors[-2:]
        (out,) = call.outs
        of_a, of_b = self._of(a), self._of(b)
        if of_a.from_input == of_b.from_input:
            both = of_a.from_input
            for labels in (*of_a.labels, *of_b.labels):
                self._fix(labels, "a matrix product of activations" if both else "a matrix product of weights")
            self._set(out, [None, None], both)
            if self._counting:
                self.flops += a.shape[0] * a.shape[1] * b.shape[1] // self._scale
            return
        flipped = of_b.from_input  # weight @ x
        of_x, of_weight = (of_b, of_a) if flipped else (of_a, of_b)
        x_in, x_rows = (0, 1) if flipped else (1, 0)
        size_in, rows = (b.shape[0], b.shape[1]) if flipped else (a.shape[1], a.shape[0])
        given = of_weight.labels[0 if flipped else 1]
        read = self._tie(of_x.labels[x_in], of_weight.labels[1 if flipped else 0], FIXED_SIZE) if size_in > 1 else None
        if bias is not None and bias.ndim == 1 and len(bias) > 1 and not flipped:
            given = self._tie(given, self._of(bias).labels[0])
        elif bias is not None:
            for labels in self._of(bias).labels:
                self._fix(labels, "a matrix product with a matrix of biases")
        row_labels = of_x.labels[x_rows]
        self._set(out, [given, row_labels] if flipped else [row_labels, given], True)
        use = Use("linear", _or_none(read, size_in), _or_none(given, out.shape[0 if flipped else 1]), 0, 1, 0, 1)
        weight_in = of_weight.labels[1 if flipped else 0]
        self._use(use, a if flipped else b, of_weight.labels[0 if flipped else 1], weight_in, rows, [row_labels])

    def _use(
        self, use: Use, weight: Tensor, weight_out: Labels | None, weight_in: Labels | None, positions: int, along: Sequence[Labels | None]
    ) -> None:
        """Count the multiply-adds of a layer, or of nobody."""
        sizes = len(use.outputs) * (use.channels_per_group or len(use.inputs))
        lying = [labels for labels in along if labels is not None]
        searched = bool((use.outputs >= 0).any() or (use.inputs >= 0).any())
        if len(lying) > 1 or (lying and searched):
            for labels in lying:
                self._fix(labels, "its channels are positions of a layer with channels of its own")
            lying = []
        name = self._name_weight(use, weight_out, weight_in)
        if name is None and id(weight) in self._keys:  # of one channel, which has no label
            name = self._keys[id(weight)][0][0]
        if name is None:
            for labels in (use.outputs, use.inputs):
                self._fix(labels, "its weight is not the parameter of one layer")
        if self.model.training:
            if name is not None and name not in self.uses:
                self._fix(use.outputs, "it runs in training only")
            return
        known = self.uses.setdefault(name, use) if name is not None else None
        if known is None or (known.kernel, len(known.inputs), len(known.outputs)) != (use.kernel, len(use.inputs), len(use.outputs)):
            if known is not None:
                self._fix(use.inputs, "its weight is used in several shapes")
                self._fix(use.outputs, "its weight is used in several shapes")
            self.flops += self._counting * (positions * use.kernel * sizes // self._scale)
            return
        if not self._counting:
            return
        if lying:
            known.along = lying[0]
            positions //= len(lying[0])
        known.positions += positions // self._scale

    def _name_weight(self, use: Use, weight_out: Labels | None, weight_in: Labels | None) -> str | None:
        """Say which parameter the weight of a use is, and which of its dimensions; give the module that owns it."""
        owners = [self._owner(labels) for labels in (weight_out, weight_in)]
        known = [owner for owner in owners if owner is not None]
        if not known or len({owner[:2] for owner in known}) > 1:
            return None
        if use.kind == "linear":  # it may have been transposed
            use.out_dim = owners[0][2] if owners[0] is not None else 1 - known[0][2]
            use.in_dim = 1 - use.out_dim
        use.tensor = known[0][1]
        return known[0][0]

    def _batch_norm(self, call: "_Call", from_input: bool) -> None:
        x, vectors = call.tensors[0], call.tensors[1:]
        labels = list(self._of(x).labels)
        for vector in vectors:
            if vector.ndim == 1 and len(vector) == x.shape[1] and len(vector) > 1:
                labels[1] = self._tie(labels[1], self._of(vector).labels[0])
        for dim, own in enumerate(labels):
            if dim != 1 and x.ndim > 3:
                self._fix(own, "they are positions of a batch norm")
            elif dim != 1:
                self._mix(own, from_input, "a batch norm over them")
        for number, out in enumerate(call.outs):
            per_channel = out.ndim == 1 and len(out) == x.shape[1]
            self._set(out, labels if not number else [labels[1]] if per_channel else [None] * out.ndim, from_input)

    def _norm(self, call: "_Call", from_input: bool) -> None:
        x, vectors = call.tensors[0], call.tensors[1:]
        labels = list(self._of(x).labels)
        if call.name == "native_layer_norm":
            over = len(call.given["normalized_shape"])
            dim, groups, size = x.ndim - 1, 1, x.shape[-1]
        else:
            over, dim, groups, size = 1, 1, int(call.given["group"]), x.shape[1]
        for vector in vectors:
            labels[dim] = self._tie(labels[dim], self._of(vector).labels[-1]) if size > 1 else None
            if vector.ndim > 1:
                for own in self._of(vector).labels:
                    self._fix(own, "a layer norm over positions")
        if over > 1:
            for own in labels[x.ndim - over :]:
                self._fix(own, "a layer norm over positions")
        elif not vectors:
            self._fix(labels[dim], "a norm over channels without parameters")
        elif groups == 1:
            self._mix(labels[dim], from_input, "a norm over them")
        elif groups < size and (own := labels[dim]) is not None:
            self.units.append((own, size // groups))
        for number, out in enumerate(call.outs):
            self._set(out, labels if not number else [None] * out.ndim, from_input)

    def _weight_norm(self, call: "_Call") -> None:
        v, g = call.tensors[:2]
        dim = int(call.given.get("dim", 0))
        labels = list(self._of(v).labels)
        labels[dim] = self._tie(labels[dim], self._of(g).labels[dim]) if v.shape[dim] > 1 else None
        for other, own in enumerate(labels):
            if other != dim:
                self._mix(own, False, "a weight norm")
        self._set(call.outs[0], labels, False)
        for out in call.outs[1:]:
            self._set(out, [labels[dim] if own == dim else None for own in range(out.ndim)], False)

    # Over dimensions --------------------------------------------------------------------------------------------------

    def _reduce(self, call: "_Call", from_input: bool) -> None:
        x = call.tensors[0]
        if len(call.tensors) > 1:  # maximum of two tensors
            self._pointwise(call, from_input)
            return
        labels = self._of(x).labels
        dims = call.given.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        reduced = {d % max(x.ndim, 1) for d in dims} if dims else set(range(x.ndim))
        for dim in reduced:
            self._mix(labels[dim] if x.ndim else None, from_input, call.name)
        kept = [None if dim in reduced else own for dim, own in enumerate(labels)]
        dropped = [own for dim, own in enumerate(labels) if dim not in reduced]
        for out in call.outs:
            self._set(out, kept if out.ndim == x.ndim else dropped, from_input)

    def _along(self, call: "_Call", from_input: bool) -> None:
        x = call.tensors[0]
        labels = list(self._of(x).labels)
        if x.ndim:
            dim = int(call.given.get("dim", -1)) % x.ndim
            self._fix(labels[dim], f"its channels are mixed by {call.name.strip('_')}")
            labels[dim] = None
        for out in call.outs:
            self._set(out, labels, from_input)

    def _glu(self, call: "_Call", from_input: bool) -> None:
        x = call.tensors[0]
        dim = int(call.given.get("dim", -1)) % x.ndim
        labels = list(self._of(x).labels)
        if (own := labels[dim]) is not None:
            first, second = np.split(own, 2)
            labels[dim] = self._tie(first, second)
        self._set(call.outs[0], labels, from_input)

    def _resample(self, call: "_Call", spatial: int, from_input: bool) -> None:
        x = call.tensors[0]
        labels = self._of(x).labels
        for own in labels[x.ndim - spatial :]:
            self._fix(own, f"its channels are positions of {call.name}")
        for out in call.outs:
            self._set(out, [*labels[: x.ndim - spatial], *[None] * spatial], from_input)


def _reads_value(func: Any) -> bool:
    """Whether an operation hands a value to Python."""
    return func.overloadpacket.__name__ in ("_local_scalar_dense", "is_nonzero", "equal")


@dataclass(frozen=True)
class _Call:
    """One operation as it was called."""

    func: Any
    args: Any
    kwargs: Any
    given: Mapping[str, Any]
    tensors: list[Tensor]
    outs: list[Tensor]

    @property
    def name(self) -> str:
        """Without overload, and without the underscore of operations in place."""
        name: str = self.func.overloadpacket.__name__
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _run_on(call: _Call, stand_in: Tensor) -> list[Tensor]:
    """What an operation does to another tensor of that shape in the place of its first one."""
    if call.name.startswith("as_strided"):
        return [stand_in]
    if call.name in _RESHAPES:
        return [stand_in.reshape(call.outs[0].shape)]
    first = call.tensors[0]
    args, kwargs = tree_map(lambda leaf: stand_in if leaf is first else leaf, (call.args, call.kwargs))
    moved = call.func(*args, **kwargs)
    return [leaf for leaf in tree_leaves(moved) if isinstance(leaf, Tensor)]


def _or_none(labels: Labels | None, size: int) -> Labels:
    return np.full(size, -1, np.int64) if labels is None else labels
