import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import patience

from bcnet.supernet.extract import load_network

QUICK = ["train.epochs=2", "search.evaluations=15", "search.algorithm.population=6", "retrain.epochs=1", "score.calibration_images=64"]


def refused(result, *words):
    code, out, err = result
    assert code == 2, (out, err)
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("bcnet: error: ")
    for word in words:
        assert word in lines[0]


def test_the_commands_of_a_whole_experiment(bcnet, tmp_path):
    folder = tmp_path / "run"
    code, out, _ = bcnet("train", "digits/bcnetv2", "--out", folder, *QUICK)
    assert code == 0
    assert "exactly as often" in out
    assert f"next: bcnet search {folder} --budget flops=0.5" in out
    refused(bcnet("extract", folder, "--widths", "best", "--out", tmp_path / "none"), "has no search yet", f"bcnet search {folder}")
    assert {"config.yaml", "environment.json", "checkpoint.pt", "index.html", "fairness.png"} <= {p.name for p in folder.iterdir()}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["cpu"]

    (tmp_path / "widths.txt").write_text("44444\n\n# a comment\n12341\n22222\n33333\n")
    assert bcnet("score", folder, "--widths", tmp_path / "widths.txt", "--out", tmp_path / "scores.json")[0] == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores["scores"]) == ["44444", "12341", "22222", "33333"]
    assert scores["meta"]["config"]["train"]["strategy"] == "bcnetv2"

    code, out, _ = bcnet("search", folder, "--budget", "flops=0.5", "--init", "random")
    assert code == 0
    found = json.loads((folder / "search.json").read_text())
    limit = found["settings"]["budgets"][0]["limit"]
    assert all(row["flops"] <= limit for row in found["evaluated"])
    assert found["settings"]["init"] == "random"
    assert found["best"]["widths"] in out
    best = found["best"]["widths"]

    code, out, _ = bcnet("extract", folder, "--widths", "best", "--out", tmp_path / "network", "--formats", "torch")
    assert code == 0
    assert f"network: {best}, " in out
    assert "times the model's speed" in out
    assert sorted(p.name for p in (tmp_path / "network").iterdir()) == ["README.md", "network.json", "network.pt2", "network.safetensors"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("notes")
    own = "extract", folder, "--widths", "best", "--out", tmp_path / "own"
    refused(bcnet(*own), f"{tmp_path / 'own'} exists, is not empty and holds no network; choose another folder")
    assert [(path.name, path.read_text()) for path in (tmp_path / "own").iterdir()] == [("README.md", "notes")]
    network, description = load_network(tmp_path / "network")
    card = (tmp_path / "network" / "README.md").read_text()
    assert f"{description['flops']:,}" in card
    program = re.search(r"```python\n(import torch\n.*?)```", card, re.DOTALL).group(1).replace('"network.pt2"', "path")
    images = torch.randn(5, *description["input_shape"])
    names = {"path": tmp_path / "network" / "network.pt2", "images": images}
    exec(program, names)  # as the card says
    torch.testing.assert_close(names["logits"], network(images))
    assert 1 < description["val_accuracy"] <= 100  # per cent, as test_accuracy
    assert sum(p.numel() for p in network.parameters()) == description["params"] == found["best"]["params"]

    for wanted in ("best", "uniform=0.5"):
        code, out, _ = bcnet("score", folder, "--widths", wanted, "--out", tmp_path / "one.json")
        (name,) = json.loads((tmp_path / "one.json").read_text())["scores"]
        assert name == best if wanted == "best" else len(set(name)) == 1

    code, out, _ = bcnet("retrain", folder, "--widths", "best", "--seeds", "0,1")
    assert code == 0
    assert "Found minus uniform" in out
    assert len(json.loads((folder / "retrain" / f"{best}.json").read_text())["uniform"]["acc"]) == 2

    truth = {
        name: {"acc": [90.0 + n, 90.5 + n], "flops": flops, "params": params}
        for n, (name, (flops, params)) in enumerate(scores["costs"].items())
    }
    wrong = truth | {"12341": truth["12341"] | {"flops": 3}}
    (tmp_path / "truth.json").write_text(json.dumps(wrong))
    refused(
        bcnet("rank", tmp_path / "scores.json", "--truth", tmp_path / "truth.json"), "another model", "'12341' has 3 FLOPs", "1 of 4 differ"
    )
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    code, out, _ = bcnet("rank", tmp_path / "scores.json", "--truth", tmp_path / "truth.json", "--out", tmp_path / "ranked")
    assert code == 0
    pictures = {"ranking.png", "ranking-narrow.png", "payoff.png"}
    assert {"ranking.json", "ranking.html", *pictures} == {p.name for p in (tmp_path / "ranked").iterdir()}
    assert "noise ceiling" in out
    larger = {name: entry | {"flops": 4 * entry["flops"]} for name, entry in truth.items()}  # of images of twice the size
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    code, out, _ = bcnet("rank", tmp_path / "scores.json", "--truth", tmp_path / "larger.json", "--out", tmp_path / "ranked")
    assert (code, out.splitlines()[0]) == (
        *(0, "the supernet saw images of another size than the networks of larger.json; FLOPs are those of the truth"),
    )

    code, _, _ = bcnet("search", folder, "search.objective=score_and_cost", "--algorithm", "evolution")
    assert code == 0
    assert len(json.loads((folder / "search.json").read_text())["front"]) >= 1


def test_quickstart_does_it_all(bcnet, tmp_path):
    code, out, _ = bcnet("quickstart", "--out", tmp_path / "q", *QUICK)
    assert code == 0
    assert re.search(r"found .* over 10 seeds", out)
    assert "1,024 networks" in out
    assert json.loads((tmp_path / "q" / "ranking.json").read_text())["num_networks"] == 1024
    page = (tmp_path / "q" / "index.html").read_text()
    assert len(page) > 100_000
    assert "How far the scores can be trusted" in page


def test_quickstart_with_another_model_is_not_ranked(bcnet, tmp_path):
    code, out, _ = bcnet("quickstart", "--out", tmp_path / "q", *QUICK, "model.args={channels: [8, 8, 8, 8, 8]}")
    assert code == 0
    assert "not ranked: the truth is of another model" in out
    assert not (tmp_path / "q" / "ranking.json").exists()


def test_the_embedded_benchmark_goes_by_its_name(bcnet, tmp_path):
    code, out, _ = bcnet("truth", "show", "channel_bench_digits", "--out", tmp_path)
    assert code == 0
    assert "1,024 networks, 10 seeds each" in out
    assert (tmp_path / "truth.html").is_file()
    scores = {name: sum(map(int, name)) for name in ("11111", "12341", "44444", "43214")}
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores}))
    code, out, _ = bcnet("rank", tmp_path / "scores.json", "--truth", "channel_bench_digits")
    assert code == 0
    refused(bcnet("rank", tmp_path / "scores.json", "--truth", "channel_bench_digit"), "no such file", "channel_bench_digits")


def test_costs_and_groups_are_printed(bcnet):
    code, out, _ = bcnet("cost", "channel_bench/mobilenet", "--widths", "4432214", "--json")
    assert code == 0
    assert json.loads(out) == {"4432214": {"flops": 122923008, "params": 716234}}
    code, out, _ = bcnet("space", "channel_bench/mobilenet")
    assert code == 0
    assert "7 groups" in out
    assert "blocks.3.expand.0" in out
    code, out, _ = bcnet("cost", "digits/resnet", "--widths", "all", "--json")
    assert len(json.loads(out)) == 1024
    some = [json.loads(bcnet("cost", "digits/resnet", "--widths", "random:30", "--json")[1]) for _ in range(2)]
    assert len(some[0]) == 30
    assert some[0] == some[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "digits/nothing"], ["'digits/nothing'", "digits/bcnetv2"]),
        (["train", "digits/bcnetv2", "train.epoch=3"], ["train.epoch", "did you mean 'train.epochs'"]),
        (["train", "digits/bcnetv2", "train.lr=fast"], ["train.lr", "'fast'"]),
        (["train", "digits/bcnetv2", "train.strategy=bcnet3"], ["train.strategy: 'bcnet3' is wrong", "'bcnetv2'"]),
        (["train", "digits/bcnetv2", "train.strategy=no.such:Thing"], ["train.strategy", "no.such"]),
        (["train", "digits/bcnetv2", "score.metric=f1"], ["score.metric: 'f1' is wrong", "'cross_entropy'"]),
        (["train", "digits/bcnetv2", "data.image_size=32"], ["data: image_size does nothing with source=digits"]),
        (["train", "digits/uniform", "train.num_random=3"], ["train.strategy.num_random: uniform has no such setting"]),
        (["train", "digits/uniform", "train.inplace_distillation=true"], ["train.inplace_distillation", "bcnetv2_distilled"]),
        (["train", "digits/bcnetv2", "model.pretrained=true"], ["no published weights"]),
        (["train", "digits/bcnetv2", "score.additive=3"], ["score.additive is 3", "at least 10 scored ones"]),
        (["train", "digits/bcnetv2", "space.exclude=[nothing]"], ["pattern 'nothing' means no group"]),
        (["train", "digits/bcnetv2", "space.groups={stem: [4, 6]}"], ["must end with the 8 channels"]),
        pytest.param(
            ["train", "digits/bcnetv2", "device=cuda"],
            ["device='cuda'", "no CUDA GPU"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU"),
        ),
        (["train", "digits/bcnetv2", "device=abacus"], ["device='abacus'"]),
        (["train", "digits/bcnetv2", "train.batch_size=5000"], ["batch_size=5000", "697"]),
        (["train", "digits/bcnetv2", "data.num_val=5000"], ["5000", "997"]),
        (["train", "channel_bench/mobilenet_bcnetv2", "data.root=nowhere"], ["nowhere", "data.download=true"]),
        (["train", "digits/bcnetv2", "model.name=resnet"], ["unknown model 'resnet'", "timm/NAME"]),
        (["train", "digits/bcnetv2", "model.name=channel_bench/mobilenet"], ["cannot be run on one 1x8x8 image"]),
        (["space", "timm/resnet1"], ["no model 'resnet1'", "resnet18"]),
        (["space", "torchvision/resnet1"], ["no model 'resnet1'"]),
        (["space", "no.such.module:factory"], ["no.such.module"]),
        (["space", "digits/resnet", "--input", "8x8"], ["--input '8x8'", "3x32x32"]),
        (["space", "digits/resnet", "--min-bins", "5"], ["min_bins is 5"]),
        (["space", "--all", "timm", "--bins", "5"], ["--bins is not for --all"]),
        (["space", "digits/resnet", "--limit", "5"], ["--limit is only for --all"]),
        (["cost", "digits/resnet", "--widths", "4444"], ["'4444' have 4 indices", "5 indices 1..4"]),
        (["cost", "digits/resnet", "--widths", "44445"], ["'5' at place 5"]),
        (["cost", "digits/resnet", "--widths", "gone.txt"], ["gone.txt: no such file"]),
        (["cost", "digits/resnet", "--widths", "random:1025"], ["random:1025", "1,024 width vectors"]),
        (["cost", "digits/resnet", "--widths", "random:0"], ["random:0"]),
        (["cost", "digits/resnet", "--widths", "random:many"], ["'many' is not a number"]),
        (["compare", "train.epochs=1", "--truth", "channel_bench_digits", "--out", "out"], ["compare: no config"]),
        (["cost", "timm/resnet18", "--widths", "all", "--input", "3x64x64"], ["1,000,000"]),
        (["score", "nowhere", "--widths", "44444"], ["nowhere: not a run directory"]),
        (["rank", "gone.json", "--truth", "gone.json"], ["gone.json: no such file"]),
    ],
)
def test_mistakes_get_one_line(bcnet, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(bcnet(*arguments), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "RUN", "--widths", "9"], ["'9'"]),
        (["search", "RUN", "--budget", "flops=0.001"], ["cannot be met", "reach from"]),
        (["search", "RUN", "--budget", "latency=3"], ["COST=VALUE", "flops, params"]),
        (["search", "RUN", "--budget", "flops=0.5", "--budget", "flops=0.4"], ["two budgets of one cost"]),
        (["search", "RUN", "--algorithm", "random", "--init", "prior"], ["search.algorithm.init", "random has no such setting"]),
        (["search", "RUN", "--algorithm", "magic"], ["search.algorithm", "'magic'"]),
        (["search", "RUN", "train.lr=3"], ["trained with another train.lr"]),
        (["retrain", "RUN", "--widths", "44444", "--seeds", "1,1"], ["--seeds"]),
        (["extract", "RUN", "--widths", "44444", "--out", "net", "--formats", "tflite"], ["'tflite'", "torch, onnx"]),
        (["train", "digits/bcnetv2", "--out", "RUN"], ["already holds a run", "--resume"]),
        (["train", "digits/uniform", "--out", "RUN", "--resume"], ["trained with another", "train.strategy"]),
    ],
)
def test_mistakes_on_a_run_get_one_line_and_change_nothing(bcnet, run, arguments, words):
    def snapshot():
        return {p.name: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}

    before = snapshot()
    refused(bcnet(*[str(run.folder) if a == "RUN" else a for a in arguments]), *words)
    assert snapshot() == before


def test_damaged_runs_are_refused(bcnet, run, trained_folder, tmp_path):
    checkpoint = run.folder / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    refused(bcnet("score", run.folder, "--widths", "44444"), "damaged", "expected a checkpoint of bcnet")
    assert bcnet("train", run.folder / "config.yaml", "--out", run.folder, "--resume")[0] == 2
    checkpoint.unlink()
    refused(bcnet("score", run.folder, "--widths", "44444"), "no such checkpoint")
    other = tmp_path / "other"
    assert bcnet("train", "digits/uniform", "--out", other, *QUICK)[0] == 0
    shutil.copy(other / "checkpoint.pt", checkpoint)
    refused(bcnet("score", run.folder, "--widths", "44444"), "another config")
    (run.folder / "config.yaml").write_text("seed: [")
    refused(bcnet("score", run.folder, "--widths", "44444"), "not a YAML file")


def test_a_truth_of_another_space_is_refused(bcnet, tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"scores": {"11111": 1.0, "22222": 2.0, "33333": 3.0}}))
    truth = {"1111": {"acc": [90.0], "params": 1, "flops": 1}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    refused(bcnet("rank", tmp_path / "scores.json", "--truth", tmp_path / "truth.json"), "3 of 3 widths", "'11111'", "'1111'")


@pytest.mark.posix
def test_a_full_disk_loses_nothing(run):
    """A limit on the file size stands in for the full disk: writing fails with a signal or EFBIG, as ENOSPC would."""
    before = (run.folder / "checkpoint.pt").read_bytes()
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from bcnet.cli import main; main(sys.argv[1:])"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "train",
        str(run.folder / "config.yaml"),
        "--out",
        str(run.folder.parent / "new"),
        "train.epochs=1",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=patience(120), env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 2, result.stderr
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (run.folder.parent / "new" / "checkpoint.pt").exists()
    assert not list((run.folder.parent / "new").glob(".*.tmp"))
    assert (run.folder / "checkpoint.pt").read_bytes() == before


def test_ctrl_c_in_a_search_says_how_to_go_on(bcnet, run, monkeypatch):
    done = []

    def evaluate(self, block, tick):
        if len(done) > 3:
            raise KeyboardInterrupt
        done.extend(block)
        return original(self, block, tick)

    from bcnet.scoring.scorer import Scorer

    original = Scorer._evaluate
    monkeypatch.setattr(Scorer, "_evaluate", evaluate)
    code, _, err = bcnet("search", run.folder, "--budget", "flops=0.5")
    assert code == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    (cache,) = (run.folder / "scores").iterdir()
    assert len(cache.read_text().splitlines()) == len(done) > 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_not_lost_where_exceptions_are_ignored(number):
    code = (
        "import os, signal, time, bcnet.__main__ as module, bcnet.cli\n"
        "class Late:\n"
        "    def __del__(self):\n"
        f"        signal.raise_signal({number:d}); time.sleep(0.1)\n"
        "def run(arguments):\n"
        "    late = Late(); del late\n"
        "    time.sleep(60)\n"
        "bcnet.cli.main = run; module.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(50))
    assert (result.returncode, result.stderr.strip()) == (128 + number, f"bcnet: stopped by {number.name}")


@pytest.mark.posix
def test_ctrl_c_while_libraries_are_imported_is_one_line():
    """Whenever it comes, from the first import on."""
    code = (
        "import signal, sys, bcnet.__main__ as module;"
        "signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT)); signal.setitimer(signal.ITIMER_REAL, {delay});"
        "sys.argv = ['bcnet', 'cost', 'digits/resnet', '--widths', 'all']; module.main()"
    )
    for delay in (0.01, 0.05, 0.2, 0.5, 1.0, 1.2):
        result = subprocess.run([sys.executable, "-c", code.format(delay=delay)], capture_output=True, text=True, timeout=patience(120))
        assert (result.returncode, result.stderr.strip()) == (130, "bcnet: stopped by SIGINT"), delay


def test_a_profile_of_a_config_and_of_a_model(bcnet):
    code, out, _ = bcnet("profile", "digits/bcnetv2", "--budget", "flops=0.5")
    assert code == 0
    assert "met by 746 of 1,024 width vectors (72.85%)" in out
    assert re.search(r"\d s per step, [\d,]+ images/s, [\d,]+ steps: \d:\d\d:\d\d", out)
    code, out, _ = bcnet("profile", "digits/resnet", "--input", "1x8x8", "--costs-only", "--budget", "params=0.5", "space.bins=2")
    assert code == 0
    assert "32 width vectors" in out
    assert "per step" not in out
    refused(bcnet("profile", "digits/resnett"), "'digits/resnett'")


def test_the_version_is_said(bcnet):
    import bcnet as package

    assert bcnet("--version") == (0, f"bcnet {package.__version__}\n", "")


def test_it_runs_as_a_module_and_help_is_quick():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "bcnet", "--help"], capture_output=True, text=True, timeout=patience(60)
    )
    assert result.returncode == 0
    assert "quickstart" in result.stdout
    assert "torch" not in {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}


@pytest.mark.posix
def test_two_processes_share_the_scoring_and_find_the_same(run, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        shutil.copytree(run.folder, folder)
    script = Path(__file__).parent.parent / "tools" / "search.py"
    arguments = ["--budget", "flops=0.5"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(shared)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(launch + arguments, capture_output=True, text=True, timeout=patience(200), env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("best of") == 1
    subprocess.run([sys.executable, "-m", "bcnet", "search", str(alone), *arguments], check=True, capture_output=True, env=environment)
    found = [json.loads((folder / "search.json").read_text()) for folder in (alone, shared)]
    assert [row["widths"] for row in found[0]["evaluated"]] == [row["widths"] for row in found[1]["evaluated"]]
    assert [row["score"] for row in found[0]["evaluated"]] == pytest.approx([row["score"] for row in found[1]["evaluated"]], abs=1e-6)


def test_a_file_where_a_folder_should_be_is_one_line(bcnet, tmp_path, trained_folder):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "models.txt").write_text("# of mine\ndigits/resnet\ndigits/resnet  # again\n")
    for command in (
        ("train", "digits/bcnetv2", "--out", file),
        ("fit", "digits/resnet", "--out", file),
        ("extract", trained_folder, "--widths", "22222", "--out", file, "--formats", "none"),
        ("extract", trained_folder, "--widths", "22222", "--out", file / "x", "--formats", "none"),
        ("dense", "train", "dense/digits", "--out", file),
        ("space", "--all", tmp_path / "models.txt", "--out", file),
    ):
        code, _, errors = bcnet(*command)
        assert (code, errors.count("\n")) == (2, 1), command
        assert str(file) in errors
    code, out, _ = bcnet("space", "--all", tmp_path / "models.txt", "--out", tmp_path / "survey", "--input", "1x8x8")
    assert (code, out.splitlines()[0]) == (0, "1 of 1 models can be searched; refused: 0")


def test_what_could_not_be_searched_is_refused_before_it_is_trained(bcnet, tmp_path):
    for setting, words in (
        ("data.num_val=0", "data.num_val is 0"),
        ("costs=[nowhere.json]", "nowhere.json"),
        ("search.cost=foo", "search.cost: 'foo' is none of flops, params"),
    ):
        code, _, errors = bcnet("train", "digits/bcnetv2", "--out", tmp_path / "run", setting)
        assert (code, errors.count("\n")) == (2, 1)
        assert words in errors
    assert not (tmp_path / "run").exists()


def test_the_next_command_can_be_typed_as_it_stands(bcnet, tmp_path):
    stay = "space.exclude=[stem.0,blocks.0.conv1.0,blocks.1.conv1.0,blocks.1.conv2.0]"
    code, out, _ = bcnet("train", "digits/bcnetv2", "--out", tmp_path / "two words", "train.epochs=0.2", stay, "score.additive=null")
    assert code == 0
    command = shlex.split(out.partition("next: ")[2].splitlines()[0])
    assert command[:3] == ["bcnet", "search", str(tmp_path / "two words")]
    assert bcnet(*command[1:], "search.evaluations=4", "search.population=4")[0] == 0


def test_profile_says_which_options_do_nothing_with_a_config(bcnet):
    code, _, errors = bcnet("profile", "digits/bcnetv2", "--images", "1000", "--costs-only")
    assert (code, errors) == (2, "bcnet: error: --images is only for a MODEL: a config has its own\n")
