"""A hundred small networks as people write them, by what they do between their layers.

Each maps images ``(N, 3, 16, 16)`` to logits ``(N, 5)``. What is checked of them stands in ``test_handmade.py``.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

IMAGE = (3, 16, 16)
CLASSES = 5


def conv(inputs, outputs, kernel=3, stride=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **options)


class Between(nn.Module):
    """Convolution, something, convolution."""

    def __init__(self, between, outputs=16, inputs=None):
        super().__init__()
        self.first, self.last, self.head = conv(3, outputs), conv(inputs or outputs, 12), nn.Linear(12, CLASSES)
        self.between = between

    def forward(self, x):
        return self.head(self.last(self.between(self.first(x))).relu().mean((2, 3)))


class After(nn.Module):
    """Convolutions, something that makes ``(N, 12, 16, 16)`` features, a linear layer."""

    def __init__(self, after, features):
        super().__init__()
        self.first, self.last, self.head = conv(3, 8), conv(8, 12), nn.Linear(features, CLASSES)
        self.after = after

    def forward(self, x):
        return self.head(self.after(self.last(self.first(x).relu())))


class Module(nn.Module):
    """Made of parts by name, with a forward of its own."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.own = forward

    def forward(self, x):
        return self.own(self, x)


def pooled(head, x):
    return head(x.mean((2, 3)))


class LayerNormOverChannels(nn.Module):
    """As the first ConvNeXt has it."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)


class Scale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 1e-6))

    def forward(self, x):
        return x * self.gamma


class ScaleLast(Scale):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels, hidden, linear=False):
        super().__init__()
        self.linear = linear
        self.a, self.b = (
            (nn.Linear(channels, hidden), nn.Linear(hidden, channels)) if linear else (conv(channels, hidden, 1), conv(hidden, channels, 1))
        )

    def forward(self, x):
        if self.linear:
            return x * self.b(self.a(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        return x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Spatial(nn.Module):
    """The spatial attention of CBAM."""

    def __init__(self):
        super().__init__()
        self.conv = conv(2, 1, 7)

    def forward(self, x):
        both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(both).sigmoid()


class Neighbours(nn.Module):
    """Efficient channel attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        gate = self.conv(x.mean((2, 3))[:, None])[:, 0].sigmoid()
        return x * gate[:, :, None, None]


class SelectiveKernels(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.a, self.b = conv(channels, channels), conv(channels, channels, 5)
        self.squeeze, self.excite = nn.Linear(channels, 8), nn.Linear(8, 2 * channels)

    def forward(self, x):
        both = torch.stack([self.a(x), self.b(x)], 1)
        gate = self.excite(self.squeeze(both.sum(1).mean((2, 3))).relu()).view(len(x), 2, -1).softmax(1)
        return (both * gate[..., None, None]).sum(1)


class Attention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.qkv, self.out, self.heads = conv(channels, 3 * channels, 1), conv(channels, channels, 1), heads

    def forward(self, x):
        n, c, h, w = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.heads, c // self.heads, h * w).unbind(1)
        mixed = (q.transpose(2, 3) @ k * (c // self.heads) ** -0.5).softmax(-1) @ v.transpose(2, 3)
        return x + self.out(mixed.transpose(2, 3).reshape(n, c, h, w))


class NonLocal(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.q, self.k, self.v = conv(channels, 8, 1), conv(channels, 8, 1), conv(channels, channels, 1)

    def forward(self, x):
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        return x + (v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)).view_as(x)


class Basic(nn.Module):
    """A residual block."""

    def __init__(self, inputs, hidden, outputs, stride=1, norm=nn.BatchNorm2d, act=None):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, hidden, 3, stride, bias=False), norm(hidden)
        self.conv2, self.norm2 = conv(hidden, outputs, bias=False), norm(outputs)
        self.act = act or nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Sequential() if stride == 1 and inputs == outputs else nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))
        )

    def forward(self, x):
        return self.act(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))) + self.shortcut(x))


class Padded(nn.Module):
    """A block with the shortcut of the first ResNets for CIFAR: zeros for the channels that are new."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.conv2, self.new = conv(inputs, outputs, 3, 2), conv(outputs, outputs), outputs - inputs

    def forward(self, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return (self.conv2(self.conv1(x).relu()) + shortcut).relu()


def stem_body_head(body, width=16, outputs=None):
    return Module(
        lambda self, x: pooled(self.head, self.body(self.stem(x))),
        stem=conv(3, width),
        body=body,
        head=nn.Linear(outputs or width, CLASSES),
    )


def shuffle(x, groups=2):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def written_in_place(x):
    out = torch.zeros_like(x)
    out[:, ::2] = x[:, ::2]
    out[:, 1::2] = -x[:, 1::2]
    return out


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(16, 8)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Linear(24, CLASSES)

    def forward(self, x):
        features = [self.a(x)]
        for layer in (self.b, self.c):
            features.append(layer(torch.cat(features, 1)).relu())
        return pooled(self.head, self.norm(torch.cat(features, 1)).relu())


class WithAuxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 12), nn.Linear(12, CLASSES)
        self.aux_conv, self.aux_head = conv(16, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        middle = self.a(x).relu()
        logits = pooled(self.head, self.b(middle).relu())
        return (logits, pooled(self.aux_head, self.aux_conv(middle))) if self.training else logits


class Stored(nn.Module):
    """Keeps an activation for later."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 16), conv(16, 16), conv(16, 16), nn.Linear(16, CLASSES)
        self.kept = None

    def forward(self, x):
        self.kept = self.a(x)
        x = self.c(self.b(self.kept).relu())
        return pooled(self.head, x + self.kept)


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.lateral_a, self.lateral_b = conv(3, 8), conv(8, 16, 3, 2), conv(8, 12, 1), conv(16, 12, 1)
        self.smooth, self.head = conv(12, 12), nn.Linear(24, CLASSES)

    def forward(self, x):
        a = self.a(x).relu()
        b = self.b(a).relu()
        top = self.lateral_b(b)
        low = self.smooth(self.lateral_a(a) + F.interpolate(top, scale_factor=2, mode="nearest"))
        return self.head(torch.cat([low.mean((2, 3)), top.amax((2, 3))], 1))


class UNet(nn.Module):
    def __init__(self, transposed):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 16, 3, 2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2) if transposed else nn.Sequential(nn.Upsample(scale_factor=2), conv(16, 8))
        self.c, self.head = conv(16, 12), nn.Linear(12, CLASSES)

    def forward(self, x):
        a = self.a(x).relu()
        return pooled(self.head, self.c(torch.cat([a, self.up(self.b(a).relu())], 1)).relu())


class Shared(nn.Module):
    """One layer, used several times."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = conv(3, 16), conv(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x).relu()
        return pooled(self.head, x)


class TiedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 16), conv(16, 16), conv(16, 16), nn.Linear(16, CLASSES)
        self.b.weight = self.a.weight

    def forward(self, x):
        return pooled(self.head, self.b(self.a(self.stem(x)).relu()))


class Router(nn.Module):
    """Takes a branch by what it sees."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 16), conv(16, 16), conv(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        return pooled(self.head, self.a(x) if x.mean() > 0 else self.b(x))


class Functional(nn.Module):
    """Calls functions with the parameters of a layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 16), conv(16, 12), nn.Linear(12, CLASSES)

    def forward(self, x):
        return pooled(self.head, F.conv2d(self.a(x).relu(), self.b.weight, self.b.bias, padding=1))


class BareWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = conv(3, 16), nn.Linear(12, CLASSES)
        self.kernel = nn.Parameter(torch.randn(12, 16, 3, 3) * 0.1)

    def forward(self, x):
        return pooled(self.head, F.conv2d(self.a(x).relu(), self.kernel, padding=1))


class Experts(nn.Module):
    """Mixes weights by what it sees."""

    def __init__(self):
        super().__init__()
        self.stem, self.route, self.head = conv(3, 16), nn.Linear(16, 2), nn.Linear(12, CLASSES)
        self.weight = nn.Parameter(torch.randn(2, 12 * 16 * 9) * 0.1)

    def forward(self, x):
        x = self.stem(x).relu()
        mixed = (self.route(x.mean((2, 3))).softmax(1) @ self.weight).view(-1, 16, 3, 3)
        x = F.conv2d(x.flatten(0, 1)[None], mixed, padding=1, groups=len(x)).view(len(x), 12, 16, 16)
        return pooled(self.head, x)


class Tokens(nn.Module):
    """A patch mixer with a class token and positions."""

    def __init__(self):
        super().__init__()
        self.patch, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16) * 0.1)
        self.mix, self.a, self.b, self.head = nn.Linear(17, 17), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.b(F.gelu(self.a(self.norm(x))))
        return self.head(x[:, 0])


class Folded(nn.Module):
    """Runs a layer on patches folded into the batch."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 16), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1).reshape(n * 4, -1, c)
        return self.head(self.b(self.a(x).relu()).view(n, -1, c).mean(1))


class Signals(nn.Module):
    """A network over lines of the image."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.head = (
            nn.Conv1d(3, 16, 3, padding=1),
            nn.BatchNorm1d(16),
            nn.Conv1d(16, 12, 3),
            nn.Linear(12, CLASSES),
        )

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x.flatten(2))).relu()).mean(2))


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.head = (
            nn.Conv3d(1, 8, 3, padding=1),
            nn.BatchNorm3d(8),
            nn.Conv3d(8, 12, 3, padding=1),
            nn.Linear(12, CLASSES),
        )

    def forward(self, x):
        return self.head(self.b(self.norm(self.a(x[:, None])).relu()).mean((2, 3, 4)))


class FeedsOn(nn.Module):
    """The output layer feeds another."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how = conv(3, 16), nn.Linear(16, CLASSES), how
        self.more = nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        logits = self.head(self.conv(x).relu().mean((2, 3)))
        return logits + self.more(self.how(logits))


class Halves(nn.Module):
    def __init__(self, split):
        super().__init__()
        self.a, self.b, self.c, self.split = conv(3, 16), conv(8, 8), conv(16, 12), split
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        left, right = self.split(self.a(x))
        return pooled(self.head, self.c(torch.cat([left, self.b(right)], 1)).relu())


class Iterated(nn.Module):
    """A list of branches, summed."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Sequential(conv(3, 8, kernel), nn.BatchNorm2d(8), nn.ReLU()) for kernel in (1, 3, 5)])
        self.last, self.head = conv(24, 12, 1), nn.Linear(12, CLASSES)

    def forward(self, x):
        return pooled(self.head, self.last(torch.cat([branch(x) for branch in self.branches], 1)))


def weight_norm_old(layer):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


class Standardised(nn.Conv2d):
    """Weights of mean zero and variance one."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class OrderedSqueeze(nn.Module):
    """Fire modules, as in SqueezeNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.e1, self.e3 = conv(3, 16), conv(16, 8, 1), conv(8, 12, 1), conv(8, 12)
        self.head = conv(24, CLASSES, 1)

    def forward(self, x):
        x = F.relu(self.squeeze(F.relu(self.stem(x))))
        x = F.relu(torch.cat([self.e1(x), self.e3(x)], 1))
        return F.adaptive_avg_pool2d(self.head(x), 1).flatten(1)


class SelfJoined(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 8), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.a(x)
        return pooled(self.head, torch.cat([x, self.b(x)], 1))


class FixedPerChannel(nn.Module):
    """A tensor that is no parameter, one entry per channel."""

    def __init__(self, buffer):
        super().__init__()
        scale = torch.linspace(0.5, 1.5, 16).view(1, 16, 1, 1)
        if buffer:
            self.register_buffer("scale", scale)
        else:
            self.scale = scale

    def forward(self, x):
        return x * self.scale


class Blur(nn.Module):
    def __init__(self, channels):
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (kernel[:, None] * kernel).div(16).expand(channels, 1, 3, 3).clone())

    def forward(self, x):
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


class NormByHand(nn.Module):
    """A norm with parameters and running statistics of its own."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return (x - self.mean) * self.gain


MODELS = {
    # Activations, pooling, norms
    "relu": lambda: Between(nn.ReLU()),
    "relu in place": lambda: Between(nn.ReLU(inplace=True)),
    "gelu": lambda: Between(nn.GELU()),
    "hardswish": lambda: Between(nn.Hardswish(inplace=True)),
    "one slope": lambda: Between(nn.PReLU()),
    "slopes": lambda: Between(nn.PReLU(16)),
    "leaky": lambda: Between(lambda x: F.leaky_relu(x, 0.1)),
    "swish by hand": lambda: Between(lambda x: x * x.sigmoid()),
    "dropout": lambda: Between(nn.Dropout(0.3)),
    "dropout of channels": lambda: Between(nn.Dropout2d(0.3)),
    "max pool": lambda: Between(nn.MaxPool2d(2)),
    "average pool": lambda: Between(nn.AvgPool2d(3, 2, 1)),
    "reflection": lambda: Between(nn.ReflectionPad2d(2)),
    "zero padding": lambda: Between(nn.ZeroPad2d(1)),
    "bilinear": lambda: Between(nn.Upsample(scale_factor=2, mode="bilinear")),
    "batch norm": lambda: Between(nn.BatchNorm2d(16)),
    "batch norm without parameters": lambda: Between(nn.BatchNorm2d(16, affine=False)),
    "batch norm without statistics": lambda: Between(nn.BatchNorm2d(16, track_running_stats=False)),
    "instance norm": lambda: Between(nn.InstanceNorm2d(16)),
    "instance norm with parameters": lambda: Between(nn.InstanceNorm2d(16, affine=True)),
    "group norm": lambda: Between(nn.GroupNorm(4, 16)),
    "group norm of one group": lambda: Between(nn.GroupNorm(1, 16)),
    "group norm of all groups": lambda: Between(nn.GroupNorm(16, 16)),
    "group norm without parameters": lambda: Between(nn.GroupNorm(4, 16, affine=False)),
    "group norm as a function": lambda: Between(lambda x: F.group_norm(x, 4)),
    "layer norm over channels": lambda: Between(LayerNormOverChannels(16)),
    "layer norm, channels last": lambda: Module(
        lambda self, x: self.head(self.norm(self.a(x).permute(0, 2, 3, 1)).mean((1, 2))),
        a=conv(3, 16),
        norm=nn.LayerNorm(16),
        head=nn.Linear(16, 5),
    ),
    "layer norm over all": lambda: Between(nn.LayerNorm((16, 16, 16))),
    "layer norm without parameters": lambda: Between(lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)),
    "local response norm": lambda: Between(nn.LocalResponseNorm(3)),
    "l2 norm": lambda: Between(lambda x: F.normalize(x, dim=1)),
    "centred": lambda: Between(Centred()),
    "norm by hand": lambda: Between(NormByHand(16)),
    # Scales and gates
    "scale of channels": lambda: Between(Scale(16, 1, 1)),
    "scale of one": lambda: Between(Scale(1)),
    "scale in channels last": lambda: Between(ScaleLast(16)),
    "squeeze and excite": lambda: Between(Gate(16, 8)),
    "squeeze and excite by linear layers": lambda: Between(Gate(16, 8, linear=True)),
    "spatial attention": lambda: Between(Spatial()),
    "channel attention of neighbours": lambda: Between(Neighbours()),
    "both attentions": lambda: Between(nn.Sequential(Gate(16, 8), Spatial())),
    "selective kernels": lambda: Between(SelectiveKernels(16)),
    "gated by glu": lambda: Between(nn.GLU(1), 32, 16),
    "attention": lambda: Between(Attention(16, 4)),
    "attention of one head": lambda: Between(Attention(16, 1)),
    "non-local": lambda: Between(NonLocal(16)),
    "fixed tensor": lambda: Between(FixedPerChannel(False)),
    "fixed buffer": lambda: Between(FixedPerChannel(True)),
    "blur": lambda: Between(Blur(16)),
    # What mixes or moves channels
    "shuffle": lambda: Between(shuffle),
    "flip": lambda: Between(lambda x: x.flip(1)),
    "roll": lambda: Between(lambda x: x.roll(3, 1)),
    "permuted": lambda: Between(lambda x: x[:, torch.tensor([3, 1, 2, 0, *range(4, 16)])]),
    "softmax over channels": lambda: Between(lambda x: x.softmax(1)),
    "softmax over positions": lambda: Between(lambda x: x.flatten(2).softmax(2).view_as(x)),
    "sum over channels": lambda: Between(lambda x: x * x.sum(1, keepdim=True)),
    "cumulative": lambda: Between(lambda x: x.cumsum(1)),
    "sorted": lambda: Between(lambda x: x.sort(1).values),
    "maxout": lambda: Between(lambda x: x.view(len(x), 8, 2, 16, 16).amax(2), 16, 8),
    "maxout of halves": lambda: Between(lambda x: torch.maximum(*x.chunk(2, 1)), 16, 8),
    "doubled": lambda: Between(lambda x: torch.cat([x, -x], 1).relu(), 16, 32),
    "pixel shuffle": lambda: Between(nn.PixelShuffle(2), 32, 8),
    "pixel unshuffle": lambda: Between(nn.PixelUnshuffle(2), 8, 32),
    "repeated": lambda: Between(lambda x: x.repeat(1, 2, 1, 1), 16, 32),
    "interleaved": lambda: Between(lambda x: x.repeat_interleave(2, 1), 8, 16),
    "first half": lambda: Between(lambda x: x[:, :8], 16, 8),
    "every other": lambda: Between(lambda x: x[:, ::2], 16, 8),
    "one channel": lambda: Between(lambda x: x * x[:, :1]),
    "written in place": lambda: Between(written_in_place),
    "padded channels": lambda: Between(lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12, 16),
    "outer product": lambda: After(lambda x: torch.einsum("nchw,ndhw->ncd", x, x).flatten(1), 144),
    # Heads
    "flatten": lambda: After(lambda x: x.flatten(1), 12 * 256),
    "view": lambda: After(lambda x: x.view(x.size(0), -1), 12 * 256),
    "view of a constant": lambda: After(lambda x: x.reshape(-1, 12 * 256), 12 * 256),
    "pooled sizes": lambda: After(lambda x: torch.cat([F.adaptive_avg_pool2d(x, size).flatten(1) for size in (1, 2)], 1), 12 * 5),
    "mean and max": lambda: After(lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), 24),
    "standard deviations": lambda: After(lambda x: torch.cat([x.mean((2, 3)), x.std((2, 3))], 1), 24),
    "generalised mean": lambda: After(lambda x: x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3), 12),
    "head by convolution": lambda: Module(lambda self, x: self.b(self.a(x).relu()).mean((2, 3)), a=conv(3, 16), b=conv(16, 5)),
    "output feeds on": lambda: FeedsOn(torch.relu),
    "output feeds on through softmax": lambda: FeedsOn(lambda x: x.softmax(1)),
    "auxiliary head": lambda: WithAuxiliary(),
    # Blocks
    "basic blocks": lambda: stem_body_head(nn.Sequential(Basic(16, 16, 16), Basic(16, 24, 24, 2)), outputs=24),
    "group norm blocks": lambda: stem_body_head(Basic(16, 16, 24, 2, norm=lambda n: nn.GroupNorm(4, n)), outputs=24),
    "zero-padded shortcut": lambda: stem_body_head(Padded(16, 32), outputs=32),
    "depthwise": lambda: Between(nn.Sequential(conv(16, 16, groups=16), nn.BatchNorm2d(16))),
    "depthwise, two each": lambda: Between(conv(16, 32, groups=16), 16, 32),
    "grouped": lambda: Between(conv(16, 16, groups=4)),
    "grouped, wider": lambda: Between(conv(16, 32, groups=4), 16, 32),
    "dilated": lambda: Between(nn.Conv2d(16, 16, 3, padding=2, dilation=2)),
    "reflecting convolution": lambda: Between(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")),
    "transposed": lambda: Between(nn.ConvTranspose2d(16, 12, 2, 2), 16, 12),
    "transposed, depthwise": lambda: Between(nn.ConvTranspose2d(16, 16, 2, 2, groups=16)),
    "dense block": Dense,
    "fire": OrderedSqueeze,
    "joined with itself": SelfJoined,
    "branches": Iterated,
    "pyramid": Pyramid,
    "u-net": lambda: UNet(False),
    "u-net, transposed": lambda: UNet(True),
    "halves by chunk": lambda: Halves(lambda x: x.chunk(2, 1)),
    "halves by split": lambda: Halves(lambda x: x.split(8, 1)),
    "halves by size": lambda: Halves(lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :])),
    "used thrice": Shared,
    "tied weights": TiedWeights,
    "stored activation": Stored,
    "router": Router,
    "experts": Experts,
    # Weights that are not what they seem
    "functional": Functional,
    "bare weights": BareWeights,
    "weight norm": lambda: Between(parametrizations.weight_norm(conv(16, 16))),
    "old weight norm": lambda: Between(weight_norm_old(conv(16, 16))),
    "spectral norm": lambda: Between(parametrizations.spectral_norm(conv(16, 16))),
    "standardised": lambda: Between(Standardised(16, 16, 3, padding=1)),
    # Other dimensions
    "tokens": Tokens,
    "folded": Folded,
    "lines": Signals,
    "volumes": Volumes,
}
