"""torchvision's ResNet-50, as an independent implementation to compare ours with.

Weights and images are functions of names and shapes, so that both sides make the same ones, and
what torchvision computes from them is kept in `torchvision_reference.json`: the tests need no
PyTorch. To write that file again:

    pip install torch==2.14.1 torchvision==0.29.1 numpy
    python tests/torchvision_reference.py
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils.epath import Path

STORED = Path(__file__).with_suffix(".json")
CLASSES = 10
STAGES = (3, 4, 6, 3)
# Every layer of stride 2 has an even size to halve in one direction or the other, where "SAME" pads
# otherwise. The last features are 2 x 2, of which 3 images give 12 values a channel: few enough
# that the biased and the unbiased variance are not the same.
IMAGES = (3, 60, 45, 3)
# Of the running statistics: PyTorch's is of what comes in, Flax's of what stays.
TORCH_MOMENTUM = 0.1


def images() -> np.ndarray:
    """Return images in [-1, 1], channels last."""
    return np.random.default_rng(0).uniform(-1, 1, IMAGES).astype(np.float32)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the parameter or statistic of this name in PyTorch, in PyTorch's layout."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        # The variance of He et al. (2015), which is a third of the squared limit.
        limit = np.sqrt(6 / np.prod(shape[1:]))
        low, high = -limit, limit
    elif name.endswith("bias") or name.endswith("running_mean"):
        low, high = -0.3, 0.3
    else:
        low, high = 0.5, 1.5
        # The ends of residual branches are smaller, or features grow from block to block.
        if "bn3.weight" in name:
            low, high = 0.1, 0.5
    return rng.uniform(low, high, shape).astype(np.float32)


def sample(values: np.ndarray) -> np.ndarray:
    """Return a few of the values, from all over the array."""
    return values.ravel()[np.linspace(0, values.size - 1, 12).astype(int)]


# Names, from ours to theirs


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name for a leaf of our `params` or `batch_stats`."""
    *block, layer, leaf = path
    leaf = {
        "kernel": "weight",
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }[leaf]
    if layer == "Dense_0":
        return f"fc.{leaf}"
    if not block:
        return {"Conv_0": "conv1", "BatchNorm_0": "bn1"}[layer] + f".{leaf}"
    index = int(block[0].removeprefix("Bottleneck_"))
    stage = 0
    while index >= STAGES[stage]:
        index -= STAGES[stage]
        stage += 1
    theirs = {
        **{f"Conv_{i}": f"conv{i + 1}" for i in range(3)},
        **{f"BatchNorm_{i}": f"bn{i + 1}" for i in range(3)},
        "projection": "downsample.0",
        "BatchNorm_3": "downsample.1",
    }[layer]
    return f"layer{stage + 1}.{index}.{theirs}.{leaf}"


def flax_leaf(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return the weight in our layout: kernels are HWIO for OIHW, and IO for OI."""
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
    theirs = tuple(shape[axis] for axis in order)
    return weight(torch_name(path), theirs).transpose(np.argsort(order))


# What torchvision makes of them


def compute() -> dict[str, Any]:
    """Runs torchvision's model, in float64 so that what differs is our rounding.

    Returns, for each of `eval` and `train`, the logits and samples of the features after each
    stage, channels last; for `train` also the running statistics after the step, by name, with the
    variance that Flax keeps: of the batch, where PyTorch's is the estimate for the population.
    """
    import torch
    import torchvision

    model = torchvision.models.resnet50(weights=None, num_classes=CLASSES).double()
    state = {
        name: torch.tensor(weight(name, tuple(old.shape)))
        for name, old in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    model.load_state_dict(state, strict=False)
    features: list[np.ndarray] = []
    counts: dict[str, int] = {}  # values per channel that a batch norm saw
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(
            lambda _, __, out: features.append(out.detach().permute(0, 2, 3, 1).numpy())
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.momentum == TORCH_MOMENTUM
            module.register_forward_hook(
                lambda _, ins, __, name=name: counts.update({name: ins[0][:, 0].numel()})
            )
    inputs = torch.tensor(images().transpose(0, 3, 1, 2)).double()
    result: dict[str, Any] = {"versions": [torch.__version__, torchvision.__version__]}
    for mode in ("eval", "train"):
        features.clear()
        model.train(mode == "train")
        logits = model(inputs).detach().numpy()
        stages = [sample(each) for each in features]
        result[mode] = {"logits": logits, "stages": stages, "means": [f.mean() for f in features]}
    after = model.state_dict()
    statistics = {}
    for name, count in counts.items():
        statistics[f"{name}.running_mean"] = sample(after[f"{name}.running_mean"].numpy())
        kept = (1 - TORCH_MOMENTUM) * state[f"{name}.running_var"].double().numpy()
        moved = after[f"{name}.running_var"].numpy() - kept
        statistics[f"{name}.running_var"] = sample(kept + moved * (count - 1) / count)
    result["train"]["statistics"] = statistics
    return result


def stored() -> Mapping[str, Any]:
    """Return the stored results of `compute`."""
    return json.loads(STORED.read_text())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | np.ndarray):
        return [_plain(each) for each in value]
    return value if isinstance(value, str) else float(f"{value:.7g}")


if __name__ == "__main__":
    STORED.write_text(json.dumps(_plain(compute())) + "\n")
