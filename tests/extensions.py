"""One thing of every kind that bcnet can be extended by, from outside the package. CONTRIBUTING.md shows these very lines."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bcnet.config import Section
from bcnet.models.shortcut import IdentityOr
from bcnet.scoring.metrics import Metric
from bcnet.search import SearchAlgorithm, SearchResult
from bcnet.space.cost import Cost
from bcnet.training.strategies import Pass, Strategy

# A strategy: train.strategy=extensions:WarmUp


class WarmUp(Strategy):
    """The widest alone for some steps, then it and random widths on both sides."""

    class Settings(Section):
        steps: int = 10
        """Steps of the widest alone."""

    def passes(self, step):
        widest = Pass(self.space.full)
        students = [Pass(self.draw(step)[0], side, 0.5, distilled=True) for side in self.sides]
        return [widest] if step < self.settings.steps else [widest, *students]


# A metric: score.metric=extensions:margin


def _margin(predictions):
    right = predictions.logits.gather(2, predictions.labels.expand(len(predictions.logits), -1)[..., None])
    wrong = predictions.logits.scatter(2, predictions.labels.expand(len(predictions.logits), -1)[..., None], -torch.inf)
    return (right.squeeze(2) - wrong.amax(2)).double()


margin = Metric("margin", "mean margin of the right class", 1, _margin)


# A search algorithm: search.algorithm=extensions:HillClimb


class HillClimb(SearchAlgorithm):
    """From the narrowest, take the step up that scores best while the budgets hold."""

    class Settings(Section):
        step: int = 1
        """Indices that one step adds."""

    @staticmethod
    def search(problem, settings, rng):
        scores, here = {}, problem.space.narrowest
        while len(scores) < problem.evaluations:
            higher = [(*here[:g], k + settings.step, *here[g + 1 :]) for g, k in enumerate(here)]
            legal = [w for w in higher if max(np.subtract(w, problem.space.full)) <= 0 and problem.keeps_budgets(w)]
            if not legal:
                break
            new = problem.score_many(legal[: problem.evaluations - len(scores)])
            scores |= new
            here = max(new, key=new.get)
        return SearchResult.of_scores(scores, [len(scores)], problem)


# A cost: costs=[extensions:latency]; here a table that was measured and written to a file


def latency(space):
    measured = json.loads(Path("latency.json").read_text())
    tables = {(one["a"], one["b"]): np.array(one["ms"]) for one in measured["pairs"]}
    return Cost("latency", "ms", measured["overhead_ms"], tables)


# A model with a projection only where it needs one: model.name=extensions:build


class Block(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, hidden, 3, 1, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))
        self.shortcut = IdentityOr(nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)))

    def forward(self, x):
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


def build(num_classes, channels=16):
    stem = nn.Sequential(nn.Conv2d(1, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    blocks = nn.Sequential(Block(channels, 24), Block(channels, 24))
    return nn.Sequential(stem, blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def pretrained_build(num_classes, pretrained=False):
    model = build(num_classes)
    for parameter in model.parameters() if pretrained else ():
        nn.init.constant_(parameter, 0.25)
    return model


# A data source: data.source=extensions:Stripes


class Stripes:
    """Noisy horizontal and vertical stripes, made when they are asked for."""

    classes, input_shape, mean, std = ("horizontal", "vertical"), (1, 8, 8), (0.5,), (0.5,)

    def __init__(self, config, seed, device):
        self.device, self.size = device, config.args.get("images", 256)

    def num_images(self, part):
        return self.size

    def train_batches(self, part, batch_size, seed):
        return StripeBatches(self, batch_size, seed)

    def eval_batches(self, part, batch_size, max_images=None):
        size = min(self.size, max_images or self.size)
        return StripeBatches(self, min(batch_size, size), {"train": 1, "val": 2, "full_train": 3, "test": 4}[part] * 1000, size)


class StripeBatches:
    """Training batches without end, or a fixed number of images."""

    shape = (1, 8, 8)

    def __init__(self, data, batch_size, seed, size=0):
        self.data, self.batch_size, self.largest_batch, self.seed, self.size = data, batch_size, batch_size, seed, size
        self.steps_per_epoch = data.size // batch_size

    def batch(self, step):
        generator = torch.Generator().manual_seed(100_000 * self.seed + step)
        labels = torch.randint(2, (self.batch_size,), generator=generator)
        lines = (torch.arange(8) % 2).float().expand(8, 8)
        images = torch.where(labels.view(-1, 1, 1) == 1, lines, lines.T) + torch.randn(self.batch_size, 8, 8, generator=generator)
        return images[:, None].to(self.data.device), labels.to(self.data.device)

    def __len__(self):
        return self.size - self.size % self.batch_size

    def __iter__(self):
        return map(self.batch, range(self.size // self.batch_size))
