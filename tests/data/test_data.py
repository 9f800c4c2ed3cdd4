from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from bcnet.config import DataConfig, differing_keys, validate_config
from bcnet.data.folder import find_images, open_image
from bcnet.data.load import load_data
from bcnet.data.resident import TrainBatches
from bcnet.data.sources import ImageSet, balanced_split, load_source
from bcnet.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number:03}.png")
    return tmp_path / "images"


def batches(images, **more):
    data = load_data(DataConfig(), 0, CPU)
    return TrainBatches(images or data.parts["train"], data.normalize, batch_size=more.pop("batch_size", 32), **more)


def test_digits_are_split_evenly_and_apart():
    data = load_data(DataConfig(num_val=300), 0, CPU)
    assert [data.num_images(part) for part in ("train", "val", "test", "full_train")] == [697, 300, 800, 997]
    assert data.input_shape == (1, 8, 8)
    parts = [set(part.index.tolist()) for part in map(data.parts.get, ("train", "val", "test"))]
    assert len(set.union(*parts)) == 1797
    for part in (data.parts["val"], data.parts["test"]):
        counts = torch.bincount(part.labels[part.index])
        assert counts.max() - counts.min() <= 1
    other = load_data(DataConfig(num_val=300), 1, CPU)
    assert not torch.equal(other.parts["val"].index, data.parts["val"].index)
    assert torch.equal(other.parts["test"].index, data.parts["test"].index)


def test_a_split_is_balanced_also_when_classes_are_not():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 20)
    first, second = balanced_split(labels, 12, np.random.default_rng(0))
    assert torch.bincount(labels[second]).tolist() == [4, 4, 4]
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(75))
    with pytest.raises(UserError, match=r"lower data\.num_val"):
        balanced_split(labels, 75, np.random.default_rng(0))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("num_val", "taken"), [(4, 4), (6, 6), (300, 6)])
def test_scores_are_measured_on_a_folder_of_their_own_where_it_is_asked_for(image_folder, streaming, num_val, taken):
    for name in ("cat", "dog"):
        (image_folder / "val" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((10, 12, 3), 10 * number, np.uint8)).save(image_folder / "val" / name / f"{number}.png")
    options = {"source": "imagefolder", "root": image_folder, "num_val": num_val, "streaming": streaming}
    data = load_data(DataConfig(**options, held_out="val"), 0, CPU, workers=0)
    assert [data.num_images(part) for part in ("train", "val", "test", "full_train")] == [24, taken, 8, 24]
    (batch,) = list(data.eval_batches("val", 64))
    pixels = torch.round((batch[0] * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255)
    assert set(pixels.unique().tolist()) <= {0, 10, 20}  # of val/ alone, which is of one colour each
    assert torch.bincount(batch[1]).tolist() == [taken // 2] * 2
    for part in ("train", "full_train", "test"):
        (images, _), *_ = list(data.eval_batches(part, 64))
        assert all(len(image.unique()) > 10 for image in images)
    other = load_data(DataConfig(**options | {"num_val": 4}), 0, CPU, workers=0)
    assert [other.num_images(part) for part in ("train", "val", "test", "full_train")] == [20, 4, 8, 24]
    assert other.fingerprint != data.fingerprint


def test_no_class_is_held_out_as_a_whole(image_folder):
    for number in range(4, 12):
        (image_folder / "train" / "dog" / f"{number:03}.png").unlink()
    options = {"source": "imagefolder", "root": image_folder}
    for streaming in (False, True):
        data = load_data(DataConfig(**options, num_val=7, streaming=streaming), 0, CPU, workers=0)
        assert [data.num_images(part) for part in ("train", "val")] == [9, 7]
        with pytest.raises(
            UserError, match=r"data\.num_val=8 would hold out all 4 images of a class, of which none would be trained on: lower"
        ):
            load_data(DataConfig(**options, num_val=8, streaming=streaming), 0, CPU, workers=0)


def test_images_held_out_elsewhere_are_refused_where_there_are_none(image_folder):
    with pytest.raises(UserError, match=r"data\.held_out=val wants val/CLASS/\*\.jpg and test/CLASS"):
        load_data(DataConfig(source="imagefolder", root=image_folder, held_out="val"), 0, CPU)
    (image_folder / "val" / "cat").mkdir(parents=True)
    Image.new("RGB", (12, 10)).save(image_folder / "val" / "cat" / "1.png")
    with pytest.raises(UserError, match="class folders of train and val differ: dog"):
        load_data(DataConfig(source="imagefolder", root=image_folder, held_out="val"), 0, CPU)
    (image_folder / "val" / "dog").mkdir(parents=True)
    for name in ("cat", "dog"):
        Image.new("RGB", (8, 8)).save(image_folder / "val" / name / "1.png")
    with pytest.raises(UserError, match=r"images of train and val differ in size; set data\.image_size"):
        load_data(DataConfig(source="imagefolder", root=image_folder, held_out="val"), 0, CPU)
    with pytest.raises(UserError, match="held_out does nothing with source=cifar10"):
        validate_config({"data": {"source": "cifar10", "held_out": "val"}}, "x")


def test_a_setting_that_came_later_changes_no_text_by_which_trainings_are_known():
    assert "held_out" not in DataConfig().model_dump()
    assert "held_out" not in DataConfig(held_out="train").model_dump_json()
    own = DataConfig(source="imagefolder", held_out="val")
    assert own.model_dump()["held_out"] == "val"
    assert differing_keys(DataConfig(source="imagefolder"), own) == differing_keys(own, DataConfig(source="imagefolder")) == ["held_out"]


def test_an_epoch_shows_every_image_once():
    images = ImageSet(torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1), torch.arange(64))
    source = batches(images, batch_size=16)
    for epoch in range(2):
        seen = torch.cat([source.batch(epoch * 4 + number)[1] for number in range(4)])
        assert sorted(seen.tolist()) == list(range(64))
    assert not torch.equal(source.batch(0)[1], source.batch(4)[1])


def test_a_batch_follows_from_seed_and_step_alone():
    one, other = (batches(None, pad=2, flip=True, seed=3) for _ in range(2))
    other.batch(40)
    for step in (5, 0, 21):
        assert all(torch.equal(a, b) for a, b in zip(one.batch(step), other.batch(step), strict=True))


def test_processes_share_a_batch_without_overlap():
    whole = batches(None, pad=1, seed=3)
    parts = [batches(None, pad=1, seed=3, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 7):
        images, labels = whole.batch(step)
        shared = [part.batch(step) for part in parts]
        assert torch.equal(torch.cat([s[0] for s in shared]), images)
        assert torch.equal(torch.cat([s[1] for s in shared]), labels)


def test_crops_and_flips_are_crops_and_flips():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    images = ImageSet(image.repeat(200, 1, 1, 1), torch.zeros(200, dtype=torch.int64))
    source = batches(images, batch_size=200, pad=1, flip=True)
    seen = source._augment(images.images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0]
    legal = {crop.flatten().numpy().tobytes() for y in range(3) for x in range(3) for crop in _both(padded[:, y : y + 5, x : x + 5])}
    found = {one.contiguous().flatten().numpy().tobytes() for one in seen}
    assert found == legal


def _both(crop):
    return crop.contiguous(), crop.flip(2).contiguous()


def test_normalised_images_have_zero_mean_and_unit_variance():
    data = load_data(DataConfig(num_val=0), 0, CPU)
    images = torch.cat([images for images, _ in data.eval_batches("full_train", 100)])
    assert images.mean().abs() < 1e-3
    assert images.std() == pytest.approx(1, abs=1e-3)


def test_evaluation_images_are_fixed_and_may_be_fewer():
    data = load_data(DataConfig(), 0, CPU)
    fewer = data.eval_batches("val", 64, 100)
    sizes = [len(labels) for _, labels in fewer]
    assert sizes == [64, 36]
    assert len(fewer) == 100
    assert all(torch.equal(a[0], b[0]) for a, b in zip(fewer, fewer, strict=True))


def test_a_folder_is_decoded_once(image_folder, monkeypatch):
    config = DataConfig(source="imagefolder", root=image_folder)
    first = load_source(config)
    monkeypatch.setattr("bcnet.data.sources._decode_all", None)
    second = load_source(config)
    assert first.classes == ("cat", "dog")
    assert torch.equal(first.train.images, second.train.images)
    expected = np.asarray(Image.open(image_folder / "train" / "dog" / "000.png"))
    assert np.array_equal(first.train.images[12].permute(1, 2, 0).numpy(), expected)
    assert first.train.labels.tolist() == [0] * 12 + [1] * 12


def test_a_changed_folder_is_decoded_again(image_folder):
    config = DataConfig(source="imagefolder", root=image_folder)
    before = load_source(config)
    Image.fromarray(np.zeros((10, 12, 3), dtype=np.uint8)).save(image_folder / "train" / "cat" / "new.png")
    assert len(load_source(config).train) == len(before.train) + 1


def test_images_too_large_for_the_device_stay_in_the_file(image_folder):
    config = DataConfig(source="imagefolder", root=image_folder, num_val=4, image_size=8)
    resident = load_data(config, 0, CPU)
    mapped = load_data(config.model_copy(update={"resident_gib": 0.0}), 0, CPU)
    for step in range(3):
        pair = [TrainBatches(d.parts["train"], resident.normalize, batch_size=4, pad=1, flip=True).batch(step) for d in (resident, mapped)]
        assert torch.equal(pair[0][0], pair[1][0])
    assert resident.input_shape == (3, 8, 8)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_pictures_of_sixteen_bits_keep_their_range(tmp_path, name):
    ramp = np.linspace(0, 65535, 12 * 10).astype(np.uint16).reshape(10, 12)
    Image.fromarray(ramp).save(tmp_path / name)
    pixels = np.array(open_image(tmp_path / name))
    assert np.abs(pixels.astype(float) - ramp[:, :, None] / 257).max() <= 1


def test_pictures_without_a_known_range_are_refused(tmp_path):
    for dtype in (np.float32, np.int32):
        Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "own.tif")
        with pytest.raises(UserError, match=r"own\.tif: has 32 bits a pixel.*convert it to 8 or 16 bits"):
            open_image(tmp_path / "own.tif")


def test_test_images_without_classes_are_passed_over_for_those_of_val(image_folder):
    """As ImageNet is laid out; and what tools leave in hidden folders is no class."""
    (image_folder / "test").rename(image_folder / "val")
    (image_folder / "test").mkdir()
    (image_folder / "test" / "000.png").write_bytes((image_folder / "val" / "cat" / "000.png").read_bytes())
    for part in ("train", "val"):
        (image_folder / part / ".ipynb_checkpoints").mkdir()
    _, test, classes = find_images(image_folder)
    assert (test.folder.name, len(test.paths), classes) == ("val", 8, ("cat", "dog"))


def test_pictures_in_folders_of_a_class_are_of_that_class(image_folder):
    """As torchvision takes them, but hidden ones."""
    cat = image_folder / "train" / "cat"
    for within in ("indoors", "indoors/at night", "outdoors"):
        (cat / within).mkdir()
        (cat / within / "000.png").write_bytes((cat / "000.png").read_bytes())
    theirs = ImageFolder(image_folder / "train")
    (cat / ".ipynb_checkpoints").mkdir()
    (cat / ".ipynb_checkpoints" / "000.png").write_bytes(b"")
    train, _, _ = find_images(image_folder)
    assert len(train.paths) == 12 + 12 + 3
    assert {(str(path), label) for path, label in zip(train.paths, train.labels, strict=True)} == set(theirs.samples)


@pytest.mark.posix  # who may make links
def test_links_around_in_a_class_are_left(image_folder):
    """No picture comes twice, and none of another class."""
    cat = image_folder / "train" / "cat"
    (cat / "again").symlink_to(cat)
    (cat / "more").mkdir()
    (cat / "more" / "up").symlink_to(image_folder / "train")
    (cat / "nowhere").symlink_to(image_folder / "nothing")
    for name in "abcdefgh":
        (cat / name).mkdir()
        (cat / name / "000.png").write_bytes((cat / "000.png").read_bytes())
    for one, other in permutations("abcdefgh", 2):
        (cat / one / other).symlink_to(cat / other)
    train, _, _ = find_images(image_folder)
    assert len(train.paths) == 24 + 8
    assert len({path.resolve() for path in train.paths}) == 24 + 8


def damage(folder):
    (folder / "train" / "cat" / "003.png").write_bytes(b"not an image")


def odd_size(folder):
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(folder / "train" / "dog" / "009.png")


def no_classes(folder):
    import shutil

    for name in ("cat", "dog"):
        shutil.rmtree(folder / "train" / name)


def other_classes(folder):
    (folder / "test" / "cat").rename(folder / "test" / "cow")


def empty_class(folder):
    (folder / "train" / "ape").mkdir()
    (folder / "test" / "ape").mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage, r"003\.png: cannot be decoded"),
        (odd_size, r"009\.png: images differ in size \(12x10 and 4x4\); set data\.image_size"),
        (no_classes, "no class folders"),
        (other_classes, "differ: cat, cow"),
        (empty_class, "ape: no images"),
    ],
)
def test_folders_that_are_wrong_are_refused(image_folder, spoil, message):
    spoil(image_folder)
    with pytest.raises(UserError, match=message):
        load_source(DataConfig(source="imagefolder", root=image_folder))


@pytest.mark.parametrize("source", ["imagefolder", "cifar10", "cifar100"])
def test_a_path_that_does_not_exist_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="gone"):
        load_source(DataConfig(source=source, root=tmp_path / "gone"))
    with pytest.raises(UserError, match=r"wants data\.root"):
        load_source(DataConfig(source=source))


def test_cifar_is_read_as_torchvision_stores_it(tmp_path):
    import hashlib
    import pickle

    from torchvision import datasets

    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        listed = []
        for names in (datasets.CIFAR10.train_list, datasets.CIFAR10.test_list):
            found = []
            for name, _ in names:
                content = pickle.dumps({"data": pixels, "labels": list(range(10)) * 2})
                (base / name).write_bytes(content)
                found.append([name, hashlib.md5(content).hexdigest()])
            listed.append(found)
        meta = pickle.dumps({"label_names": [f"class{n}" for n in range(10)]})
        (base / "batches.meta").write_bytes(meta)
        patch.setattr(datasets.CIFAR10, "train_list", listed[0])
        patch.setattr(datasets.CIFAR10, "test_list", listed[1])
        patch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": hashlib.md5(meta).hexdigest()})
        source = load_source(DataConfig(source="cifar10", root=tmp_path))
    assert (len(source.train), len(source.test)) == (100, 20)
    assert np.array_equal(source.test.images[3].numpy(), pixels[3].reshape(3, 32, 32))
