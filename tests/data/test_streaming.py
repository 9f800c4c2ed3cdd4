"""Streamed pictures: what a batch is follows from seed and step, and from nothing else."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from patience import patience
from PIL import Image

from bcnet.config import load_config, validate_config
from bcnet.data.augment import Fit, Mix
from bcnet.data.load import is_streamed, load_data
from bcnet.data.resident import ResidentData
from bcnet.data.streaming import StreamedBatches, StreamingData, TrainMaker
from bcnet.errors import UserError
from bcnet.run import Run

CPU = torch.device("cpu")
EVERYTHING = {
    "resized_crop": [0.3, 1.0],
    "flip": True,
    "auto_augment": "rand-m9-mstd0.5",
    "color_jitter": 0.3,
    "erase": 0.5,
    "cutout": 4,
    "mixup": 0.2,
    "cutmix": 1.0,
    "repeats": 2,
}


def picture(folder, name, rng, size=(24, 20)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Thirty training and nine test pictures of three classes, of sizes that differ."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 3)):
        for name in ("cat", "dog", "owl"):
            for number in range(count):
                picture(root / part / name, f"{number}.png", rng, (20 + number % 5, 24))
    return root


def config_of(root, **more):
    tree = {"source": "imagefolder", "root": str(root), "image_size": 16, "num_val": 6, "streaming": True} | more
    return validate_config({"data": tree}, "test").data


def data_of(root, workers=0, **more):
    return StreamingData(config_of(root, **more), 0, CPU, workers)


def assert_same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_the_number_of_workers_changes_nothing_nor_does_a_resume_inside_an_epoch(pictures, settings):
    steps = range(7)  # three a pass: a third begins
    alone = data_of(pictures, 0, **settings).train_batches("train", 8, 1)
    expected = [alone.batch(step) for step in steps]
    assert not torch.equal(expected[0][0], expected[3][0])
    for workers in (1, 2):
        batches = data_of(pictures, workers, **settings).train_batches("train", 8, 1)
        for step in steps:
            assert_same(batches.batch(step), expected[step])
        for step in (4, 5, 2):  # resumed, and back
            assert_same(batches.batch(step), expected[step])
    other = data_of(pictures, 0, **settings).train_batches("train", 8, 2)
    assert not torch.equal(other.batch(0)[0], expected[0][0])


def test_processes_share_a_batch_and_together_it_is_the_same(pictures):
    data = data_of(pictures, **EVERYTHING)
    whole = data.train_batches("train", 8, 1)
    (all_pictures, index), augment = data.parts["train"], whole._batches._make.augment
    for step in (0, 4):
        images, labels = whole.batch(step)
        for rank in (0, 1):
            maker = TrainMaker(all_pictures, index, augment, 8, 2, 1, rank, 2)
            part = StreamedBatches(maker, data.normalize, 0, whole._mix).batch(step)
            assert_same(part, (images[4 * rank : 4 * rank + 4], labels[4 * rank : 4 * rank + 4]))


def test_random_states_of_the_process_stay_as_they_were(pictures):
    for workers in (0, 1):
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        data_of(pictures, workers, **EVERYTHING).train_batches("train", 8, 1).batch(0)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("part", ["train", "val", "full_train", "test"])
def test_what_is_not_augmented_is_what_is_in_memory(part):
    """Digits: the same split, order, normalisation and images, to the last bit."""
    resident, streamed = (
        load_data(load_config("digits/base", ["data.pad=0", more]).data, 3, CPU, 0) for more in ("seed=0", "data.streaming=true")
    )
    assert isinstance(resident, ResidentData)
    assert isinstance(streamed, StreamingData)
    assert streamed.num_images(part) == resident.num_images(part)
    assert streamed.input_shape == resident.input_shape
    streamed.normalize = resident.normalize  # whose statistics are of more images
    for max_images in (None, 50):
        a, b = (data.eval_batches(part, 64, max_images) for data in (resident, streamed))
        assert (len(a), a.shape, a.largest_batch) == (len(b), b.shape, b.largest_batch)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    a, b = (data.train_batches(part, 32, 5) for data in (resident, streamed))
    assert a.steps_per_epoch == b.steps_per_epoch
    for step in (0, 1, a.steps_per_epoch):
        assert_same(a.batch(step), b.batch(step))


def test_pictures_that_do_not_fit_into_memory_are_decoded_again(pictures):
    kept, again = (data_of(pictures, workers, resident_gib=gib).eval_batches("test", 4) for workers, gib in ((0, 8.0), (1, 0.0)))
    for _ in range(2):
        for one, other in zip(kept, again, strict=True):
            assert_same(one, other)
    assert "_resident" in vars(kept)
    assert "_resident" not in vars(again)
    assert len(again) == 9


def test_repeated_augmentation_shows_a_picture_twice_and_differently(pictures):
    batches = data_of(pictures, repeats=2, resized_crop=[0.3, 0.6]).train_batches("full_train", 8, 0)
    images, labels = batches.batch(0)
    assert torch.equal(labels[:4], labels[4:])
    assert not any(torch.equal(images[n], images[n + 4]) for n in range(4))
    assert batches.steps_per_epoch == 30 // 8


@pytest.mark.parametrize("setting", ["auto_augment=original", "auto_augment=3a", "auto_augment=augmix-m3", "auto_augment=trivial", "pad=2"])
def test_every_policy_runs(pictures, setting):
    key, _, value = setting.partition("=")
    value = int(value) if value.isdigit() else value
    images, _ = data_of(pictures, **{key: value}).train_batches("train", 8, 0).batch(0)
    plain, _ = data_of(pictures).train_batches("train", 8, 0).batch(0)
    assert images.shape == plain.shape == (8, 3, 16, 16)
    assert not torch.equal(images, plain)


def test_cutout_and_erasing_leave_the_rest(pictures):
    plain = data_of(pictures).train_batches("train", 8, 0).batch(0)[0]
    for more, colour in (({"cutout": 6}, None), ({"erase": 1.0}, 0.0)):
        images = data_of(pictures, **more).train_batches("train", 8, 0).batch(0)[0]
        changed = (images != plain).any(1)
        assert (changed.flatten(1).sum(1) > 0).all()
        assert changed.float().mean() < 0.6
        values = images.permute(0, 2, 3, 1)[changed]
        assert (values - values[0]).abs().max() < 1e-5  # all of one colour
        if colour is not None:
            assert values.abs().max() < 0.02  # the mean, to a level of 256


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_labels_are_the_shares_of_the_images(mixup, cutmix):
    """Images that are constant and of their label's value, so that their mean says what is in them."""
    labels = torch.arange(10)
    images = labels.float()[:, None, None, None].expand(10, 1, 32, 32).contiguous()
    mix, seen = Mix(mixup, cutmix, 10, 0), set()
    for step in range(20):
        mixed, shares = mix(images, labels, step)
        assert torch.allclose(shares.sum(1), torch.ones(10))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ labels.float(), rtol=1e-4, atol=1e-4)
        seen.add(bool((mixed == mixed.round()).all()))
        assert_same(mix(images, labels, step), (mixed, shares))
    assert seen == {bool(one) for one in ((False,) if not cutmix else (True,) if not mixup else (False, True))}


def test_a_file_that_is_no_image_is_named_in_one_line(pictures, tmp_path):
    import shutil

    shutil.copytree(pictures, tmp_path / "pictures")
    bad = tmp_path / "pictures" / "train" / "dog" / "4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    for workers in (0, 2):
        batches = data_of(tmp_path / "pictures", workers, mean=[0.5] * 3, std=[0.5] * 3).train_batches("full_train", 10, 0)
        with pytest.raises(UserError, match=r"dog[/\\]4.png: cannot be decoded as an image") as caught:
            for step in range(3):
                batches.batch(step)
        assert "\n" not in str(caught.value)


def tiny_imagenet(root):
    rng = np.random.default_rng(1)
    for name in ("n01", "n02"):
        for number in range(4):
            picture(root / "train" / name / "images", f"{name}_{number}.JPEG", rng)
    for number in range(3):
        picture(root / "val" / "images", f"val_{number}.JPEG", rng)
        picture(root / "test" / "images", f"test_{number}.JPEG", rng)
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\nval_2.JPEG\tn02\t0\t0\t9\t9\n"
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_tiny_imagenet_is_read_as_it_is_published(tmp_path, streaming):
    tiny_imagenet(tmp_path)
    data = load_data(config_of(tmp_path, streaming=streaming, num_val=2), 0, CPU, 0)
    assert data.classes == ("n01", "n02")
    assert (data.num_images("train"), data.num_images("test")) == (6, 3)
    assert [labels.tolist() for _, labels in data.eval_batches("test", 8)] == [[1, 0, 1]]
    table = tmp_path / "val" / "val_annotations.txt"
    table.write_text(table.read_text() + "val_9.JPEG\tn01\n")
    with pytest.raises(UserError, match=r"val_annotations.txt, line 4: .*val_9.JPEG does not exist"):
        load_data(config_of(tmp_path, streaming=streaming, num_val=2), 0, CPU, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"streaming": False, "mixup": 0.2}, "mixup wants streaming"),
        ({"resized_crop": [0.9, 0.1]}, "resized_crop is the smallest and the largest share"),
        ({"auto_augment": "rand-x9"}, "data.auto_augment 'rand-x9' is no policy"),
        ({"auto_augment": "nothing"}, "data.auto_augment 'nothing' is no policy"),
        ({"num_val": 500}, "lower data.num_val"),
        ({"image_size": None}, "images differ in size: 20x24 is the first, 21x24 that of number 1; set data.image_size"),
    ],
)
def test_mistakes_are_one_line(pictures, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        data_of(pictures, **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"[/\\]nowhere: no such folder"):
        data_of("/nowhere")


def test_a_share_of_pictures_of_the_right_size_is_a_crop_too():
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[4:12, 4:12] = 255
    bright = Fit((16, 16), 0.5)(Image.fromarray(pixels))
    assert np.array(bright).min() > 100  # the corners, by bicubic interpolation; without the crop they are black
    assert np.array_equal(np.array(Fit((16, 16))(Image.fromarray(pixels))), pixels)


def test_folders_larger_than_memory_are_streamed(pictures, monkeypatch, capsys):
    config = config_of(pictures, streaming=None)
    assert not is_streamed(config)
    monkeypatch.setattr("bcnet.data.load._memory_gib", lambda: 1e-6)
    assert is_streamed(config)
    assert capsys.readouterr().err.count("they are decoded while they are used") == 1
    assert not is_streamed(config_of(pictures, streaming=False))
    assert is_streamed(config_of(pictures, streaming=None, flip=True, erase=0.1))


SMALL = ("model.name=channel_bench/mobilenet", "model.args={channels: [4, 8, 8, 8, 4, 8, 8]}", "device=cpu", "amp=off", "threads=1")


def settings_of(root):
    mixed = ["data.mixup=0.2", "data.erase=0.2", "data.auto_augment=trivial", "data.flip=true"]
    own = ["data.source=imagefolder", f"data.root={root}", "data.image_size=16", "data.num_val=6", "train.batch_size=8", "data.pad=0"]
    return [*SMALL, *own, *mixed, "train.epochs=4", "score.calibration_images=12"]


def test_a_run_resumes_bit_for_bit_with_other_workers(tmp_path, pictures):
    """And is scored, and retrained."""
    whole = Run.create(tmp_path / "whole", load_config("digits/base", [*settings_of(pictures), "workers=0"])).train()
    Run.create(tmp_path / "parts", load_config("digits/base", [*settings_of(pictures), "workers=1"])).trainer.run(until_step=4)
    run = Run.create(tmp_path / "parts", load_config("digits/base", [*settings_of(pictures), "workers=2"]), resume=True)
    resumed = run.train()
    assert whole.history.loss == resumed.history.loss
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    run = Run.open(tmp_path / "parts", ["retrain.epochs=1", "retrain.batch_size=8"])
    run.score([run.space.full], tmp_path / "scores.json")
    assert len(run.retrain(run.space.narrowest, [0]).found.acc) == 1


def workers_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in children.read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path, pictures, is_running):
    script = tmp_path / "read.py"
    script.write_text(
        "import sys, time, torch\n"
        "from bcnet.config import validate_config\n"
        "from bcnet.data.streaming import StreamingData\n"
        "tree = {'source': 'imagefolder', 'root': sys.argv[1], 'image_size': 16, 'num_val': 6}\n"
        "data = StreamingData(validate_config({'data': tree}, '').data, 0, torch.device('cpu'), 2)\n"
        "batches = data.train_batches('train', 8, 0)\n"
        "batches.batch(0)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(pictures)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    workers = workers_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + patience(10)
    while time.monotonic() < deadline and any(is_running(pid) for pid in workers):
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


@pytest.mark.linux
def test_a_worker_that_is_killed_is_one_line_and_no_hang(pictures):
    batches = data_of(pictures, 1).train_batches("train", 8, 0)
    batches.batch(0)
    (worker,) = [pid for pid in workers_of(os.getpid()) if is_worker(batches, pid)]
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match="a worker that reads images died") as caught:
        for step in range(1, 40):
            batches.batch(step)
    assert "\n" not in str(caught.value)


def is_worker(batches, pid):
    return pid in [process.pid for process in batches._batches._batches._workers]
