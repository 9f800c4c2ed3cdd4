"""The API reference, made from the docstrings by pdoc: python tools/build_reference.py [FOLDER], by default build/api.

Fails where pdoc cannot read a docstring or resolve a name.
"""

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import bcnet


def main() -> None:
    """Write one page per module."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/api")
    for name in bcnet.__all__:
        getattr(bcnet, name)  # they are imported when asked for, and pdoc does not ask
    warnings.simplefilter("error", UserWarning)
    pdoc.render.configure(docformat="google", footer_text=f"bcnet {bcnet.__version__}")
    parts = [module.name for module in pkgutil.iter_modules(bcnet.__path__, "bcnet.") if not module.name.endswith("__main__")]
    pdoc.pdoc("bcnet", *parts, output_directory=folder)  # by name, for bcnet.__all__ would hide them
    pages = sum(1 for _ in folder.rglob("*.html"))
    print(f"API reference: {pages} pages in {folder}")


if __name__ == "__main__":
    main()
