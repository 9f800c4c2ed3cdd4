import ast
from pathlib import Path

from patience import patience

import bcnet

# A module imports only from the left of this chain, or from its own package.
CHAIN = (
    *("version", "errors", "formatting", "former", "seeds", "locks", "trees", "files", "lines", "seals", "processes"),
    *("plugins", "distributed", "machine", "progress", "tensors", "config"),
    *("data", "models", "space", "kernels", "supernet", "results", "latency"),
    *("training", "scoring", "search", "experiment", "provenance", "run", "fit"),
    *("forecast", "truth", "dense", "doctor", "report", "commands", "cli", "__main__"),
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bcnet."):
            yield node.module.split(".")[1]


def test_imports_point_left():
    root = Path(bcnet.__file__).parent
    for path in root.rglob("*.py"):
        place = path.relative_to(root).with_suffix("").parts[0]
        if place != "__init__":
            wrong = [name for name in imports(path) if CHAIN.index(name) > CHAIN.index(place)]
            assert not wrong, f"{path.name} imports {wrong}"


def test_training_needs_no_search_or_report_library():
    """A machine that only trains has torch and little else."""
    import subprocess
    import sys

    code = "import sys, bcnet.training.trainer, bcnet.experiment; print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=patience(120))
    for library in ("pymoo", "matplotlib", "timm", "torchvision", "sklearn", "scipy", "typer"):
        assert f"'{library}'" not in result.stdout, library
