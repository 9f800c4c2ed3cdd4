"""Folders of Hugging Face ``datasets``: the same pictures give the same batches as an image folder."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from bcnet.config import validate_config
from bcnet.data.load import load_data
from bcnet.errors import UserError
from bcnet.run import Run

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "owl")
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures as an image folder has them."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 3)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (20 + number % 3, 24, 3), dtype=np.uint8)).save(root / part / name / f"{number}.png")
    return root


def rows(folder, part):
    files = [(path, label) for label, name in enumerate(CLASSES) for path in sorted((folder / part / name).iterdir())]
    return {"image": [{"bytes": path.read_bytes(), "path": None} for path, _ in files], "label": [label for _, label in files]}


def parts_of(folder, second="test"):
    made = {part: datasets.Dataset.from_dict(rows(folder, part), features=FEATURES) for part in ("train", "test")}
    return datasets.DatasetDict({"train": made["train"], second: made["test"]})


def saved(folder, target, **more):
    parts_of(folder, **more).save_to_disk(str(target))
    return target


def load(root, **more):
    tree = {"source": "huggingface", "root": str(root), "image_size": 16, "num_val": 6} | more
    return load_data(validate_config({"data": tree}, "test").data, 0, CPU, 0)


def batches(data):
    train = data.train_batches("train", 8, 1)
    return [*(train.batch(step) for step in range(4)), *data.eval_batches("val", 4), *data.eval_batches("test", 4)]


def assert_same(one, other):
    torch.testing.assert_close(batches(one), batches(other), rtol=0, atol=0)


@pytest.mark.parametrize("second", ["test", "validation"])
def test_saved_to_disk_it_is_what_the_image_folder_is(folder, tmp_path, second):
    expected = load(folder, source="imagefolder", streaming=True, flip=True)
    found = load(saved(folder, tmp_path / "saved", second=second), flip=True)
    assert found.classes == expected.classes == CLASSES
    assert_same(found, expected)


def test_so_is_parquet_as_the_hub_has_it(folder, tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for part, one in parts_of(folder).items():
        one.to_parquet(str(tmp_path / "hub" / "data" / f"{part}-00000-of-00001.parquet"))
    found = load(tmp_path / "hub")
    assert found.classes == CLASSES
    assert_same(found, load(folder, source="imagefolder", streaming=True))


def test_files_beside_it_are_read_where_they_are(folder, tmp_path):
    made = {}
    for part in ("train", "test"):
        paths = [str(path) for name in CLASSES for path in sorted((folder / part / name).iterdir())]
        labels = rows(folder, part)["label"]
        made[part] = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=FEATURES)
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    assert_same(load(tmp_path / "saved"), load(folder, source="imagefolder", streaming=True))


def test_columns_are_named_where_there_are_several(folder, tmp_path):
    def add(one):
        coarse = datasets.ClassLabel(names=["furry", "feathered"])
        return one.add_column("coarse", [int(label == 2) for label in one["label"]], feature=coarse)

    datasets.DatasetDict({part: add(one) for part, one in parts_of(folder).items()}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"which column is the label\? .*2 columns of that kind \(label, coarse\); name it by data.args"):
        load(tmp_path / "saved")
    found = load(tmp_path / "saved", args={"label": "coarse"})
    assert found.classes == ("furry", "feathered")
    assert torch.equal(torch.cat([labels for _, labels in found.eval_batches("test", 4)]), torch.tensor([0] * 6 + [1] * 3))


@pytest.mark.parametrize("labels", [["b", "a", "c"], [30, 4, 500]])
def test_labels_without_names_are_sorted(tmp_path, labels):
    pixels = io.BytesIO()
    Image.new("RGB", (8, 8)).save(pixels, "png")
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string" if labels[0] == "b" else "int64")})
    part = datasets.Dataset.from_dict({"image": [{"bytes": pixels.getvalue(), "path": None}] * 3, "kind": labels}, features=features)
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(str(tmp_path / "saved"))
    found = load(tmp_path / "saved", num_val=0, args={"label": "kind"}, mean=[0.5] * 3, std=[0.5] * 3)
    order = sorted(labels)
    assert found.classes == tuple(map(str, order))
    assert next(iter(found.eval_batches("test", 3)))[1].tolist() == [order.index(label) for label in labels]


def test_a_supernet_trains_on_it_with_workers(folder, tmp_path):
    tree = {
        "data": {"source": "huggingface", "root": str(saved(folder, tmp_path / "saved")), "image_size": 16, "num_val": 6},
        "model": {"name": "channel_bench/mobilenet", "args": {"channels": [4, 8, 8, 8, 4, 8, 8]}},
        "train": {"epochs": 1, "batch_size": 8},
    }
    losses = []
    for workers in (0, 2):
        config = validate_config(tree | {"workers": workers, "device": "cpu", "threads": 1}, "test")
        losses.append(Run.create(tmp_path / str(workers), config).train().history.loss)
    assert losses[0] == losses[1]


def broken(folder, tmp_path, change):
    parts = {part: rows(folder, part) for part in ("train", "test")}
    change(parts["test"])
    made = {part: datasets.Dataset.from_dict(one, features=FEATURES) for part, one in parts.items()}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "broken"))
    return tmp_path / "broken"


def test_what_is_wrong_is_said_in_one_line(folder, tmp_path):
    root = saved(folder, tmp_path / "saved")
    for args, message in (({"lable": "label"}, "'lable' is no setting"), ({"label": "coarse"}, "no column 'coarse'")):
        with pytest.raises(UserError, match=message):
            load(root, args=args)
    with pytest.raises(UserError, match=r"'label' .data.args.image. holds no pictures"):
        load(root, args={"image": "label"})
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="neither a folder of save_to_disk"):
        load(folder)
    with pytest.raises(UserError, match="streaming=false"):
        load(root, streaming=False)
    parts_of(folder, "unlabelled").save_to_disk(str(tmp_path / "parts"))
    with pytest.raises(UserError, match=r"has the parts train, unlabelled; wanted are train and one of test"):
        load(tmp_path / "parts")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 is not all")
    with pytest.raises(UserError, match="damaged: cannot be read by datasets"):
        load(tmp_path / "damaged")


def test_classes_in_another_order_are_not_mixed_up(folder, tmp_path):
    parts = dict(parts_of(folder))
    parts["test"] = parts["test"].cast_column("label", datasets.ClassLabel(names=["owl", "dog", "cat"]))
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="classes of test are other ones, or in another order, than those of train"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("column", ["image", "weight", "boxes"])
def test_a_column_that_holds_no_classes_is_refused(folder, tmp_path, column):
    def add(one):
        count = len(one)
        return one.add_column("weight", [0.5] * count).add_column("boxes", [[1, 2]] * count)

    datasets.DatasetDict({part: add(one) for part, one in parts_of(folder).items()}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match=rf"the column '{column}' \(data.args.label\) holds no classes"):
        load(tmp_path / "saved", args={"label": column})


def test_a_picture_that_is_none_is_named(folder, tmp_path):
    def unlabelled(part):
        part["label"][4] = -1

    with pytest.raises(UserError, match="picture 4 of test: has no class"):
        load(broken(folder, tmp_path, unlabelled))

    def undecodable(part):
        part["image"][2] = {"bytes": b"no picture", "path": None}

    data = load(broken(folder, tmp_path / "b", undecodable))
    with pytest.raises(UserError, match=r"picture 2 of test: cannot be decoded as an image .*replace or remove it"):
        list(data.eval_batches("test", 9))

    def missing(part):
        part["image"][2] = None

    data = load(broken(folder, tmp_path / "c", missing))
    with pytest.raises(UserError, match="picture 2 of test: is missing"):
        list(data.eval_batches("test", 9))


def test_scores_are_measured_on_a_part_of_its_own_where_it_is_asked_for(folder, tmp_path):
    parts = parts_of(folder)
    parts["validation"] = parts["test"].select(range(6))
    parts.save_to_disk(str(tmp_path / "saved"))
    own = {"source": "huggingface", "root": str(tmp_path / "saved"), "image_size": 16, "num_val": 4}
    for held_out, counts in (("train", [26, 4, 30, 9]), ("val", [30, 4, 30, 9])):
        config = validate_config({"data": own | {"held_out": held_out}}, "x").data
        data = load_data(config, 0, CPU, workers=0)
        assert [data.num_images(part) for part in ("train", "val", "full_train", "test")] == counts
    with pytest.raises(UserError, match=r"data\.held_out=val wants the parts test and validation, and there are train, test"):
        load_data(validate_config({"data": own | {"root": str(saved(folder, tmp_path / "two")), "held_out": "val"}}, "x").data, 0, CPU)
