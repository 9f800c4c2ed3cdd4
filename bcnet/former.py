"""What version 0.1 wrote, as it is read today: names of settings, strategies and metrics that have changed since."""

from typing import Any

# Keys whose settings now stand under the method that has them.
FORMER_KEYS = {
    "train.num_random": "train.strategy.num_random",
    "search.init": "search.algorithm.init",
    "search.objective": "search.algorithm.objective",
    "search.population": "search.algorithm.population",
}
FORMER_HINTS = {
    "train.inplace_distillation": "is part of the strategy's name now: train.strategy=bcnetv2_distilled (or bcnet_distilled) for true, "
    "bcnetv2 (or bcnet) for false, which is the method as published"
}
FORMER_METRICS = {"neg_cross_entropy": "cross_entropy", "neg_kl": "kl"}


def read_former_config(tree: dict[str, Any]) -> dict[str, Any]:
    """A config file's tree with the sections of 0.1 in today's form; a file of today comes back as it is."""
    tree = dict(tree)
    for section, read in (("train", _read_train), ("search", _read_search)):
        if isinstance(tree.get(section), dict):
            tree[section] = read(dict(tree[section]))
    return tree


def _read_train(train: dict[str, Any]) -> dict[str, Any]:
    """``strategy: bcnetv2`` with ``inplace_distillation`` was the default recipe, without it the published method."""
    is_former = "inplace_distillation" in train
    distilled = train.pop("inplace_distillation", False)
    strategy = train.get("strategy", "bcnetv2")
    if is_former and strategy in ("bcnet", "bcnetv2"):
        train["strategy"] = f"{strategy}_distilled" if distilled else strategy
    if "num_random" in train and (is_former or strategy == "autoslim"):
        num_random = train.pop("num_random")
        if strategy == "autoslim":
            train["strategy"] = {"name": strategy, "num_random": num_random}
    return train


def _read_search(search: dict[str, Any]) -> dict[str, Any]:
    """Settings of evolution stood beside the algorithm; a resolved file had all of them, whatever the algorithm."""
    settings: dict[str, Any] = {key: search.pop(key) for key in ("objective", "init", "population") if key in search}
    algorithm = search.get("algorithm", "evolution")
    if not settings or not isinstance(algorithm, str):
        return search
    if algorithm == "random" and len(settings) == 3:
        settings = {"batch_size": settings["population"]}
    search["algorithm"] = ({"name": algorithm} if "algorithm" in search else {}) | settings
    return search


def read_former_search(record: Any) -> Any:
    """The tree of a ``search.json`` in today's form."""
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict) or "budgets" in record["settings"]:
        return record
    settings = dict(record["settings"])
    text, limit = settings.pop("budget", None), settings.pop("budget_limit", None)
    cost = settings.get("cost", "flops")
    settings["budgets"] = [] if text is None else [{"text": text, "cost": cost, "limit": limit}]
    settings["metric"] = FORMER_METRICS.get(settings.get("metric", ""), settings.get("metric"))
    return record | {"settings": settings}
