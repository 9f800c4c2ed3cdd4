"""What the words on a page mean; a page explains those that it uses."""

import html
import re

TERMS = {
    r"width string|width vector|\bwidths\b": (
        "Width string",
        "one number per group of layers, from the input on: how many of its bins of channels a network uses. With four bins, 4 is all of "
        "them and 1 a quarter; numbers of more than one digit are joined by hyphens.",
    ),
    r"\bgroups?\b": (
        "Group",
        "layers that must have the same number of channels, because a shortcut or a depthwise convolution ties them.",
    ),
    r"\bbins?\b": (
        "Bin",
        "a slice of a group's channels; widths are counted in bins. Some supernets (BCNetV2) have one more than the model.",
    ),
    r"supernet": ("Supernet", "one network with shared weights that holds the networks of all widths."),
    r"FLOPs|multiply-adds": ("FLOPs", "multiply-adds of convolutions and linear layers for one image."),
    r"divergence": (
        "Divergence",
        "how far a subnet's predictions are from those of the full width (Kullback-Leibler), on images held out from training. "
        "Its negative is the score: 0 would be the full width itself, and the nearer to 0 the better.",
    ),
    r"\bscores?\b": ("Score", "what the supernet says of a width without training it alone. Higher is better; it is no accuracy."),
    r"short training|trained for \S+ epochs? each": (
        "Short training",
        "a width trained for a fraction of the time from the supernet's weights, so that what it reaches corrects the scores of all.",
    ),
    r"uniform": (
        "Uniform width",
        "the same share of every group, filled up channel by channel to the same FLOPs: what one would take without a search.",
    ),
    r"\bfront\b": ("Pareto front", "the widths that no other beats in both score and cost."),
    r"Kendall": ("Kendall tau-b", "1 if two lists rank all pairs alike, 0 if at random, -1 if the other way round."),
    r"Spearman|Pearson": ("Spearman, Pearson", "correlation of the ranks, and of the values themselves."),
    r"ceiling|perfect predictor": (
        "Noise ceiling",
        "the tau that the noise-free accuracies themselves would reach, because each true accuracy is a mean of a few noisy trainings.",
    ),
    r"[Rr]egret": ("Regret", "how much worse, in points of accuracy, the pick is than the truly best network within the budget."),
    r"ground truth|channel_bench": (
        "Ground truth",
        "accuracies of networks that were trained one by one. channel_bench_digits is the one that ships with bcnet: all 1,024 widths of a "
        "small ResNet on scikit-learn's handwritten digits, ten trainings each.",
    ),
    r"Welch": ("Welch's t-test", "whether the difference of two means is more than the noise of the seeds; variances may differ."),
    r"[Ff]airness|trained equally": ("Fairness", "whether all channels were trained equally often; the unfair ones are undervalued."),
    r"additive|[Ee]ffects?\b|is worth": (
        "Effect of a width",
        "what a width of one group is worth whatever the others are, in an additive model.",
    ),
    r"initial population|evolution": (
        "Prior initial population",
        "the first widths of an evolutionary search, drawn from the distributions that minimise the expected loss seen in training.",
    ),
    r"passes\b": ("Pass", "one forward and backward pass of one network over one batch of images."),
    r"BN\b|batch norm": ("BN", "batch normalisation; its statistics are recomputed for every subnet before it is scored."),
}


def explain(page: str) -> str:
    """A list of the terms that occur in a page's text, as HTML; empty if none does.

    Args:
        page: HTML.
    """
    words = re.sub(r"<(style|pre)\b.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    used = [entry for pattern, entry in TERMS.items() if re.search(pattern, words)]
    return "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>" for name, meaning in used)
