"""Plain training of any network: a folder with its config, how it went, and one trained network per seed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bcnet.config import Config, differing_keys, dump_config, load_config
from bcnet.distributed import process_rank
from bcnet.errors import UserError
from bcnet.experiment import COLUMNS, Experiment
from bcnet.files import is_unused, write_json, write_text
from bcnet.provenance import made_of, refuse_other_kind, refuse_others
from bcnet.results import FitRecord, FittedNetwork, read_record
from bcnet.scoring.evaluate import evaluate
from bcnet.seeds import STREAM_MODEL, derive_seed
from bcnet.supernet.extract import save_network
from bcnet.supernet.survey import count_flops
from bcnet.training.train_width import train_width
from bcnet.training.watch import make_watchers

_FIXED_SECTIONS = ("data", "model", "space", "retrain")  # that decide what is trained


class Fit:
    """Trainings of the model of a config by its section ``retrain``, on all training images; test images are looked at once.

    Args:
        folder: where everything is written; a training that was begun there goes on.
        config: data, model and recipe.

    Raises:
        UserError: the folder holds something else, or a training with other settings.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"num_val": 0})})  # nothing is held out
        self.folder, self.experiment = folder, Experiment(config)
        written = folder / "config.yaml"
        if written.is_file():
            refuse_other_kind(folder, "fit")
            differing = set(differing_keys(load_config(written, trust=True), config)) - {"data.num_val"}  # written before that was so
            other = sorted(key for key in differing if key.split(".")[0] in (*_FIXED_SECTIONS, "amp"))
            if other:
                raise UserError(f"{folder}: was begun with another {', '.join(other[:4])}; use the same settings, or choose another --out")
            refuse_others(folder, self.experiment)
        elif not is_unused(folder):
            raise UserError(f"{folder} exists, is not empty and holds no training; choose another --out")
        model = self.experiment.build_model(0, pretrained=True)  # what cannot be trained is refused before anything is written
        self.experiment.data.train_batches("full_train", config.retrain.batch_size, 0)
        self.flops = count_flops(model, self.experiment.data.input_shape)
        self.params = sum(parameter.numel() for parameter in model.parameters())
        if process_rank() != 0:
            return
        if not written.is_file():
            write_text(written, dump_config(config), new=True)
        if not (folder / "environment.json").is_file():  # its beginning may have been killed between the two
            write_json(folder / "environment.json", made_of(self.experiment) | self.experiment.environment())

    def run(self, seeds: Sequence[int]) -> FitRecord:
        """Train with every seed that was not trained yet."""
        fitted = [self._train(seed) for seed in seeds]
        record = FitRecord(
            model=self.experiment.config.model.name,
            acc=[one.accuracy for one in fitted],
            seeds=list(seeds),
            flops=self.flops,
            params=self.params,
            start="trained" if self.experiment.config.model.is_trained else "scratch",
        )
        if process_rank() == 0:
            record.write(self.folder / "fit.json")
        return record

    def _train(self, seed: int) -> FittedNetwork:
        own, folder = self.experiment, self.folder / f"seed{seed}"
        result, checkpoint = folder / "result.json", folder / "checkpoint.pt"
        if result.is_file():
            if process_rank() == 0:
                checkpoint.unlink(missing_ok=True)  # killed between the two
            return read_record(result, FittedNetwork, "the result of a training")
        recipe, data = own.config.retrain, own.data
        (network,) = train_width(
            [own.build_model(derive_seed(seed, STREAM_MODEL), pretrained=True)],
            [data.train_batches("full_train", recipe.batch_size, seed)],
            recipe,
            seeds=[seed],
            input_shape=data.input_shape,
            device=own.device,
            half=own.half,
            checkpoint=checkpoint,
            checkpoint_seconds=own.config.checkpoint_seconds,
            identity=hashlib.sha256(f"{own.config.model_dump_json(include=set(_FIXED_SECTIONS))} {seed}".encode()).hexdigest(),
            label=f"{own.config.model.name}, seed {seed}",
            watchers=make_watchers(folder, own.config.watch, COLUMNS),
            teacher=own.teacher(recipe),
        )
        test = evaluate(network, own.test, half=own.half)
        fitted = FittedNetwork(accuracy=100 * test["accuracy"], cross_entropy=test["cross_entropy"])
        if process_rank() == 0:
            save_network(folder, network, self._describe() | {"test_accuracy": fitted.accuracy, "seed": seed})
            fitted.write(result)
            checkpoint.unlink(missing_ok=True)
        return fitted

    def _describe(self) -> dict[str, object]:
        model, data = self.experiment.config.model, self.experiment.data
        return {
            "model": {"name": model.name, "num_classes": len(data.classes), "args": model.args},
            "flops": self.flops,
            "params": self.params,
            **self.experiment.describe_images(),
        }
