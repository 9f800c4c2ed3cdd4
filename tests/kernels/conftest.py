import pytest

from bcnet.kernels import library
from bcnet.progress import notice


@pytest.fixture
def fresh(monkeypatch):
    """As if no kernel had been looked for in this process, and no note printed, where kernels are wanted."""
    monkeypatch.delenv("BCNET_KERNELS", raising=False)
    library._find.cache_clear()
    notice.cache_clear()
    yield
    library._find.cache_clear()
    notice.cache_clear()
