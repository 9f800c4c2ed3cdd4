"""Files that are damaged, hostile or of somebody else: each is refused in one line by its name, and nothing of it is run."""

import json
import os
import shutil
import struct
import zlib
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from PIL import Image

from bcnet.config import DataConfig, load_config
from bcnet.data.folder import open_image
from bcnet.data.sources import load_source
from bcnet.errors import UserError
from bcnet.experiment import Experiment
from bcnet.files import cache_folder
from bcnet.latency.table import LatencyCheck
from bcnet.report.page import Page, details, picture, table, text
from bcnet.report.plots import draw_widths
from bcnet.results import RetrainRecord, SearchRecord, read_record
from bcnet.run import Run
from bcnet.scoring.cache import ScoreCache
from bcnet.supernet.extract import WEIGHTS, load_network, save_network
from bcnet.training.checkpoint import FORMER_FORMAT, load_checkpoint, save_checkpoint
from bcnet.truth.build import Journal


def flipped(content: bytes, place: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 3, "weight": torch.arange(30.0)})
    whole = path.read_bytes()
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.arange(30.0))  # PyTorch alone reads it, too
    for place in range(0, len(whole), 7):
        path.write_bytes(flipped(whole, place))
        with pytest.raises(UserError, match=r"checkpoint\.pt: "):
            load_checkpoint(path)


def test_a_checkpoint_of_0_1_is_read_and_compared_with_its_archives_checksums(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": FORMER_FORMAT, "step": 3, "weight": torch.arange(3000.0)}, path)
    assert load_checkpoint(path)["step"] == 3
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"", b"PK\x03\x04", b"text", b"\x80\x02N."])
def test_what_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize(
    "change",
    [{"step": None}, {"step": True}, {"step": -1}, {"history": -1}, {"counts": True}, {"records": 5}, {"records": [[1]]}, {"model": 3}],
)
def test_a_checkpoint_of_other_types_is_refused(run, change):
    save_checkpoint(run.checkpoint, load_checkpoint(run.checkpoint) | change)
    with pytest.raises(UserError, match=r"checkpoint\.pt: does not fit"):
        _ = Run.open(run.folder).trained


def test_every_flipped_bit_of_a_network_is_seen(tmp_path):
    experiment = Experiment(load_config("digits/bcnetv2"))
    description = {"model": {"name": "digits/resnet", "num_classes": 10, "args": {}}}
    save_network(tmp_path, experiment.model, description)
    whole = (tmp_path / WEIGHTS).read_bytes()
    before, _ = load_network(tmp_path)
    accepted = 0
    for place in range(0, len(whole), 331):
        (tmp_path / WEIGHTS).write_bytes(flipped(whole, place))
        try:
            network, known = load_network(tmp_path)
        except UserError:
            continue
        accepted += 1  # a blank in the header, which changes nothing
        assert known["model"] == description["model"]
        assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), before.state_dict().values(), strict=True))
    assert accepted <= 2


@pytest.mark.parametrize(
    "change",
    [
        {"model": None},
        {"model": {"name": 3, "num_classes": 10, "args": {}}},
        {"layers": {"": {"forward": 3}}},
        {"layers": 3},
        {"format": "x"},
    ],
)
def test_a_description_of_another_form_is_refused(tmp_path, change):
    from safetensors.torch import save_file

    whole = {"format": "bcnet-network-1", "model": {"name": "digits/resnet", "num_classes": 10, "args": {}}, "layers": {}}
    save_file({"x": torch.zeros(1)}, tmp_path / WEIGHTS)
    (tmp_path / "network.json").write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match="holds no extracted network"):
        load_network(tmp_path)


def test_a_changed_number_in_the_score_cache_is_not_believed(tmp_path, capsys):
    path = tmp_path / "cache.jsonl"
    cache = ScoreCache(path)
    cache.add("11", {"left": {"accuracy": 0.25}, "right": {"accuracy": 0.5}})
    cache.add("12", {"left": {"accuracy": 0.75}, "right": {"accuracy": 0.5}})
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.95"))
    assert list(ScoreCache(path).evaluations) == ["12"]
    assert "1 line damaged" in capsys.readouterr().err
    path.write_text('{"widths": "13", "left": {"accuracy": NaN}}\n{"widths": "14", "left": {"accuracy": 0.5}}\n')  # as 0.1 wrote them
    assert list(ScoreCache(path).evaluations) == ["14"]


@pytest.mark.parametrize("acc", ["[]", "[NaN]", "[1000]", '"5"', "[true]", "[50, 50]"])
def test_a_journal_takes_accuracies_only(tmp_path, acc):
    path = tmp_path / "journal"
    path.write_text(f'{{"build": "a"}}\n{{"widths": "11", "acc": {acc}}}\n')
    with pytest.raises(UserError, match="line 2: damaged"):
        Journal(path, "a", 1)


def test_a_changed_line_of_a_journal_is_refused(tmp_path):
    path = tmp_path / "journal"
    Journal(path, "a", 1).add("11", [50.0])
    assert Journal(path, "a", 1).accuracies == {"11": [50.0]}
    path.write_bytes(path.read_bytes().replace(b"50.0", b"51.0"))
    with pytest.raises(UserError, match="line 2: damaged"):
        Journal(path, "a", 1)


def test_a_changed_record_is_refused(tmp_path):
    path = tmp_path / "check.json"
    LatencyCheck(networks=3, spearman=0.5, median_error=0.1, worst_error=0.2).write(path)
    assert read_record(path, LatencyCheck, "a check").spearman == 0.5
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(UserError, match=r"check\.json: damaged"):
        read_record(path, LatencyCheck, "a check")


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"found": 3}', '{"found": {"channels": [1], "acc": [], "seeds": [], "flops": 1, "params": 1}}', "[" * 2000, '{"a": NaN}'],
)
def test_a_record_of_another_form_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_text(content)
    for kind in (RetrainRecord, SearchRecord):
        with pytest.raises(UserError, match=r"record\.json"):
            read_record(tmp_path / "record.json", kind, "a record")


def test_a_finished_run_is_resumed_whatever_became_of_its_results(bcnet, trained_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained_folder, folder)
    for name in ("search.json", "ranking.json", "environment.json", "retrain/11111.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{")
    code, _, err = bcnet("train", folder / "config.yaml", "--out", folder, "--resume")
    assert code == 0
    for name in ("search.json", "ranking.json", "11111.json"):
        assert f"{name}: not a JSON file" in err


# Not finite -----------------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(run):
    trainer = run.trained
    before = run.checkpoint.read_bytes()
    with torch.no_grad():
        next(trainer.model.parameters())[0] = float("inf")
    with pytest.raises(UserError, match=r"not finite.*lower the learning rate.*last good checkpoint"):
        trainer.save()
    assert run.checkpoint.read_bytes() == before


def test_a_run_with_weights_that_are_not_finite_gives_no_score_and_no_network(bcnet, run):
    state = load_checkpoint(run.checkpoint)
    name = next(name for name, tensor in state["model"].items() if tensor.is_floating_point())
    state["model"][name].view(-1)[0] = float("nan")
    save_checkpoint(run.checkpoint, state)
    for command in (
        ("score", run.folder, "--widths", "11111"),
        ("search", run.folder),
        ("extract", run.folder, "--widths", "11111", "--out", "x"),
    ):
        code, _, err = bcnet(*command)
        assert code == 2
        assert "is not finite" in err


def test_scores_that_are_not_finite_stop_the_scorer(run):
    """Finite weights, but so large that activations are not."""
    supernet = run.supernet
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.mul_(1e30)
    with pytest.raises(UserError, match=r"not finite|is nan|is inf"):
        run.scorer.score((1, 2, 3, 4, 1))
    with pytest.raises(UserError, match=r"not finite|is nan|is inf"):
        run.extract((1, 2, 3, 4, 1), run.folder / "network")


# Numbers and words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epochs=1e308", "train.epochs"),
        ("train.epochs=true", "train.epochs"),
        ("train.epochs=010", "train.epochs"),
        ("train.epochs=1:30", "train.epochs"),
        ("train.epochs='3'", "train.epochs"),
        ("train.epochs=2001-99-99", "train.epochs"),
        ("retrain.epochs=.inf", "retrain.epochs"),
        ("train.lr=.inf", "train.lr"),
        ("train.weight_decay=.inf", "train.weight_decay"),
        ("train.clip_norm=.inf", "train.clip_norm"),
        ("score.memory_gib=.inf", "score.memory_gib"),
        ("score.memory_gib=1e300", "score.memory_gib"),
        ("threads=2147483648", "threads"),
        ("threads=1000000", "threads"),
        ("data.pad=30000", "data.pad"),
        ("seed=99999999999999999999", "64 bits"),
        ("model.args={x: [.nan]}", "model.args.x.0"),
        ("train.warmup_epochs=1000", "warmup_epochs is 1000 and epochs is"),
        ("model.name=':b'", "model ':b' is not package.module:name"),
        ("model.name=..:x", "is not package.module:name"),
        ("model.name=.x:y", "is not package.module:name"),
        (f"model.args={'[' * 2000}", "nested deeper"),
        (f"train.epochs={'9' * 5000}", "64 bits"),
    ],
)
def test_settings_without_sense_are_refused(setting, words):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        _ = Experiment(load_config("digits/bcnetv2", [setting])).model


def test_a_section_on_the_command_line_changes_what_it_names():
    plain = load_config("digits/bcnetv2")
    config = load_config("digits/bcnetv2", ["train={epochs: 1}"])
    assert config.train == plain.train.model_copy(update={"epochs": 1})


BOMB = ["a: &a [x, x, x, x, x, x, x, x, x]", *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise("abcdefghi"))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"model: {{args: {{x: {'[' * 2000}}}}}", "nested deeper"),
        ("train: {epochs: 1}\ntrain: {lr: 1}", "'train' stands there twice"),
        ("train: {epochs: 1, epochs: 2}", "'epochs' stands there twice"),
        ("\n    ".join(["model:\n  args:", *BOMB]), "more than 100,000 values"),
        ("model: {args: &a {x: *a}}", "inside what it stands for"),
        ("seed: 2001-99-99", "seed: '2001-99-99' is wrong"),
        ("model: !!python/object/apply:os.system [touch ran]", "not a YAML file"),
        ("- 1", "expected a mapping"),
        ("1: 2", "expected a mapping"),
        ("base: 7", "base 7 does not exist"),
        ("x" * 100_001, "the most"),
    ],
)
def test_configs_without_sense_are_refused(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["x" * 5000, "x\0y", "/dev/zero", "/dev"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(UserError, match="no such file"):
        load_config(name)


# Code of others -------------------------------------------------------------------------------------------------------

HUB = "import pathlib, torch\n\ndef evil(**kwargs):\n    pathlib.Path('ran').touch()\n    return torch.nn.Linear(1, 1)\n"


def hub(folder):
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUB)
    return {"name": "torch.hub:load", "args": {"repo_or_dir": str(folder), "source": "local", "model": "evil"}}


def test_a_config_or_run_of_somebody_else_runs_no_code(bcnet, trained_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = hub(tmp_path / "hub")
    (tmp_path / "config.yaml").write_text(json.dumps({"base": "digits/bcnetv2", "model": model}))
    shutil.copytree(trained_folder, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(
        text.replace("name: digits/resnet\n", "name: torch.hub:load\n").replace("args: {}", "args: {}", 1)
    )
    (tmp_path / "models.txt").write_text("torch.hub:load\n")
    commands = (
        ("train", "config.yaml"),
        ("train", "digits/bcnetv2", "--out", "run", "--resume"),
        ("profile", "config.yaml"),
        ("score", "run", "--widths", "11111"),
        ("search", "run"),
        ("extract", "run", "--widths", "11111", "--out", "network"),
        ("retrain", "run", "--widths", "11111"),
        ("truth", "build", "config.yaml", "--out", "truth.json"),
        ("fit", "digits/resnet", "--config", "evil.yaml"),
        ("space", "--all", "models.txt"),
    )
    (tmp_path / "evil.yaml").write_text("data: {source: 'hub.hubconf:evil'}\n")
    for command in commands:
        code, _, err = bcnet(*command)
        assert code == 2, command
        assert "--trust" in err, (command, err)
    assert not (tmp_path / "ran").exists()
    assert bcnet("config", "config.yaml")[0] == 0  # shows it, and runs nothing
    code, _, err = bcnet("train", "config.yaml", "--trust")
    assert (tmp_path / "ran").exists()  # and then it could not be built, for it knows no digits


def test_a_network_of_somebody_else_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "network", torch.nn.Linear(1, 1), {"model": hub(tmp_path / "hub") | {"num_classes": 10}})
    with pytest.raises(UserError, match=r"torch\.hub:load.*trust=True"):
        load_network(tmp_path / "network")
    assert not (tmp_path / "ran").exists()
    load_network(tmp_path / "network", trust=True)
    assert (tmp_path / "ran").exists()


def test_a_file_in_the_working_directory_stands_in_for_no_package(bcnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "this.py").write_text("build = 1\n")
    (tmp_path / "mine.py").write_text("import torch\n\ndef build(**kwargs):\n    return 3\n")
    code, _, err = bcnet("space", "this:build")
    assert (code, "has no attribute" in err) == (2, True)
    code, _, err = bcnet("space", "mine:build")
    assert (code, "is not a torch.nn.Module but int" in err) == (2, True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file(bcnet, trained_folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for command in (
        ("train", tmp_path / "pipe"),
        ("rank", tmp_path / "pipe", "--truth", "channel_bench_digits"),
        ("truth", "show", tmp_path / "pipe"),
        ("cost", "digits/resnet", "--channels", tmp_path / "pipe"),
        ("train", "digits/bcnetv2", f"model.weights={tmp_path / 'pipe'}"),
    ):
        code, _, err = bcnet(*command)
        assert code == 2
        assert "pipe" in err
    with pytest.raises(UserError, match="not a regular file"):
        ScoreCache(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        Journal(tmp_path / "pipe", "a", 1)


# Folders of images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    """A tiny data set."""
    for part in ("train", "test"):
        for number, name in enumerate(("one", "two")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8), (80 * number, 20 * index, 100)).save(tmp_path / "data" / part / name / f"{index}.png")
    return tmp_path / "data"


def source(root):
    return load_source(DataConfig(source="imagefolder", root=root))


@pytest.mark.posix
def test_links_that_lead_nowhere_and_pipes_among_images_are_refused(images):
    path = images / "train" / "one" / "odd.png"
    for make in (lambda: path.symlink_to("gone.png"), lambda: path.symlink_to(path), lambda: os.mkfifo(path), path.mkdir):
        make()
        with pytest.raises(UserError, match=r"odd\.png: no regular file"):
            source(images)
        path.rmdir() if path.is_dir() else path.unlink()
    (images / "train" / "loop").symlink_to(images / "train" / "loop")
    assert source(images).classes == ("one", "two")
    path.symlink_to(images / "train" / "one" / "0.png")
    assert len(source(images).train) == 7


@pytest.mark.linux
def test_names_of_other_alphabets_are_read_and_those_of_none_refused(images):
    strange = os.fsdecode("b\xff.png".encode("latin-1"))
    shutil.copy(images / "train" / "one" / "0.png", images / "train" / "one" / strange)
    for part in ("train", "test"):
        (images / part / "two").rename(images / part / "зебра и окапи")
    assert source(images).classes == ("one", "зебра и окапи")
    assert len(source(images).train) == 7
    (images / "train" / "a\nb").mkdir()
    with pytest.raises(UserError, match="cannot be printed"):
        source(images)


def test_pictures_that_are_none_are_refused_in_one_line(images, recwarn):
    path = images / "train" / "one" / "0.png"
    whole = path.read_bytes()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    for content in (b"", b"no picture", whole[:50], whole[:40], postscript):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"0\.png: cannot be decoded"):
            open_image(path)
    for size in ((12_000, 12_000), (100_000, 1_000), (100_000, 100_000)):
        header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
        path.write_bytes(
            whole[:8] + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]
        )
        with pytest.raises(UserError, match=r"0\.png: has too many pixels"):
            open_image(path)
    assert not recwarn.list


def test_a_damaged_image_cache_is_made_anew(images, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BCNET_CACHE", str(tmp_path / "cache"))
    before = source(images).train.images.clone()
    cached = max(cache_folder().glob("images-*.npy"), key=lambda path: path.stat().st_mtime_ns)
    whole = cached.read_bytes()
    for content in (
        whole[:-100],
        b"text",
        whole.replace(b"(6, 3, 8, 8)", b"(6, 3, 4, 8)"),
        bytes(len(whole)),
        whole[:200] + bytes(len(whole) - 200),
    ):
        for one in cache_folder().glob("images-*.npy"):
            one.write_bytes(content)
        assert torch.equal(source(images).train.images, before)
    assert "decoded again" in capsys.readouterr().err


def test_a_run_with_other_classes_is_not_continued(bcnet, images, tmp_path):
    settings = (f"data.root={images}", "data.source=imagefolder", "data.num_val=2", "train.batch_size=4", "train.epochs=1")
    settings += ("model.name=channel_bench/mobilenet", "model.args={channels: [4, 8, 8, 8, 4, 8, 8]}")
    assert bcnet("train", "digits/bcnetv2", *settings, "--out", tmp_path / "run")[0] == 0
    for part in ("train", "test"):
        (images / part / "two").rename(images / part / "three")
    for command in (
        ("train", "digits/bcnetv2", *settings, "--out", tmp_path / "run", "--resume"),
        ("score", tmp_path / "run", "--widths", "1111111"),
    ):
        code, _, err = bcnet(*command)
        assert (code, "with other classes" in err) == (2, True)


# Pages ----------------------------------------------------------------------------------------------------------------

SCRIPT = "<script>document.title='ran'</script>\"'&<img src=x onerror=alert(1)>"


def test_hostile_names_stay_words_on_a_page(tmp_path):
    page = Page(SCRIPT, SCRIPT)
    page.section(SCRIPT, text(SCRIPT), table((SCRIPT,), [(SCRIPT,)]), details(SCRIPT, SCRIPT))
    page.write(tmp_path / "page.html")
    (tmp_path / "x.png").write_bytes(b"")
    assert "<script" not in picture(tmp_path / "x.png", SCRIPT)
    found = Tags()
    found.feed((tmp_path / "page.html").read_text())
    assert not {"script", "img"} & set(found.tags)
    assert "".join(found.words).count(SCRIPT) == 9


def test_names_are_no_markup_in_pictures_and_on_the_terminal(bcnet, tmp_path):
    names = ("a$\\frac$b", "[/bold]", "[red]x[/red]", "<b>|")
    draw_widths(tmp_path / "widths.png", list(names), {name: [1, 2, 3, 4] for name in names})
    scores = {name: sum(map(int, name)) for name in ("11111", "12341", "44444", "43214")}
    out = tmp_path / "[" / "bold]"
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores}))
    code, said, _ = bcnet("rank", tmp_path / "scores.json", "--truth", "channel_bench_digits", "--out", out)
    assert code == 0
    assert str(out) in said


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)
