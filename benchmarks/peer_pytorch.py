"""Compare FixMatch's step in crest_jax with one in PyTorch: the same work on the same device.

python benchmarks/peer_pytorch.py [--python PYTORCHS_PYTHON] [--size 10-1 16-2] [--batch 16]
python benchmarks/peer_pytorch.py --size 28-2 --batch 64 --dtype float32 bfloat16 --compile default

Both take uint8 images that are already on the device, and rescale them. There is no augmentation,
which PyTorch usually leaves to other processes. A step consists of a forward pass of all views,
FixMatch's loss and its gradient, Nesterov SGD with weight decay on all weights but those of batch
norm, the cosine schedule, and the moving averages of batch norm's statistics and of the weights.
PyTorch's model is the same Wide ResNet in the channels-last format; only the side of an image that
its strided convolutions pad differs. It uses autocast for bfloat16, and fused SGD. Each of the two
has its own process with all cores, and takes its samples while the other waits. Times are the
median of the samples, and the smallest in brackets.
"""

import argparse
import itertools
import math
import os
import sys
from contextlib import ExitStack

import measure

# The two processes may share one device's memory.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def crest_jax_way(setting: measure.Setting) -> measure.Way:
    """Return a way to take crest_jax's steps on one device, in groups as the setting says.

    Its description is the number of weights, and the versions and device that compute.
    """
    import jax

    steps = measure.compile_steps(setting, devices=1, augmented=False)
    weights = sum(leaf.size for leaf in jax.tree.leaves(steps.new_state().params))
    what = f"JAX {jax.__version__}, {jax.devices()[0].device_kind}"
    return measure.Way(steps.repeated(), [weights, what])


def pytorch_way(setting: measure.Setting, compiler: str) -> measure.Way:
    """Return a way to take as many steps in PyTorch, with the same description."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels, eps=1e-3, momentum=1e-3)

    def conv(before: int, after: int, side: int = 3, stride: int = 1) -> nn.Module:
        return nn.Conv2d(before, after, side, stride, padding=side // 2, bias=False)

    def activation() -> nn.Module:
        return nn.LeakyReLU(0.1, inplace=True)

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int, begins_group: bool):
            super().__init__()
            self.begins_group = begins_group
            # Not in place, because the shortcut may need the input again.
            self.activated = nn.Sequential(norm(before), nn.LeakyReLU(0.1))
            first = conv(before, after, 3, stride)
            self.residual = nn.Sequential(first, norm(after), activation(), conv(after, after))
            self.shortcut = conv(before, after, 1, stride) if before != after else nn.Identity()

        def forward(self, x):
            activated = self.activated(x)
            return self.shortcut(activated if self.begins_group else x) + self.residual(activated)

    if setting.network != "wide_resnet":
        raise SystemExit("--network: PyTorch's step has a wide_resnet alone")
    depth, width = setting.depth_and_width
    layers, channels = [conv(setting.channels, 16)], 16
    for group in range(3):
        for block in range((depth - 4) // 6):
            after = 16 * width * 2**group
            layers.append(Block(channels, after, 2 if group and not block else 1, block == 0))
            channels = after
    layers += [norm(channels), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers.append(nn.Linear(channels, setting.classes))

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cudnn.benchmark = True
    # JAX multiplies float32 on GPUs in TF32, too, unless the precision is highest.
    fast = setting.precision != "highest"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    weights = list(model.parameters())
    of_norms = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d)
        for weight in module.parameters()
    }
    groups = [
        {"params": [w for w in weights if id(w) not in of_norms], "weight_decay": 5e-4},
        {"params": [w for w in weights if id(w) in of_norms], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True, fused=True)
    averages = [weight.detach().clone() for weight in weights]

    def pictures(count: int):
        shape = (count, setting.channels, setting.side, setting.side)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        return images.contiguous(memory_format=torch.channels_last)

    unlabeled = setting.batch * setting.ratio
    views = [pictures(setting.batch), pictures(unlabeled), pictures(unlabeled)]
    labels = torch.randint(0, setting.classes, (setting.batch,), device=device)

    def logits_of(*views):
        images = torch.cat(views).to(torch.float32) * (2 / 255) - 1
        with torch.autocast(device, torch.bfloat16, enabled=setting.dtype == "bfloat16"):
            logits = model(images)
        return logits.float().split([len(view) for view in views])

    def loss_of(views, labels):
        labeled, weak, strong = views
        if setting.weak_forward == "joint":
            of_labeled, of_weak, of_strong = logits_of(labeled, weak, strong)
        else:
            with torch.no_grad():
                (of_weak,) = logits_of(weak)
            of_labeled, of_strong = logits_of(labeled, strong)
        confidence, guesses = of_weak.detach().softmax(dim=1).max(dim=1)
        of_guesses = F.cross_entropy(of_strong, guesses, reduction="none")
        return F.cross_entropy(of_labeled, labels) + (of_guesses * (confidence >= 0.95)).mean()

    if compiler != "none":
        loss_of = torch.compile(loss_of, mode=compiler)
    done = 0

    def run(calls: int) -> None:
        nonlocal done
        for _ in range(calls * setting.at_once):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * math.cos(math.pi * done / 2**16 / 16)
            optimizer.zero_grad()
            loss_of(views, labels).backward()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1e-3)
            done += 1
        if device == "cuda":
            torch.cuda.synchronize()

    kind = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    what = f"PyTorch {torch.__version__}, {kind}"
    return measure.Way(run, [sum(weight.numel() for weight in weights), what])


def make(name: str, setting: list, compiler: str) -> measure.Way:
    """Return the way of one of the two, by name."""
    setting = measure.Setting(*setting)
    return crest_jax_way(setting) if name == "crest_jax" else pytorch_way(setting, compiler)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure.add_settings(parser, sizes=["10-1"])
    parser.add_argument("--python", default=sys.executable, help="a Python with PyTorch")
    parser.add_argument(
        "--compile", nargs="+", default=["none"], help="modes of torch.compile, or none"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve(make)
        return
    pythons = {"crest_jax": sys.executable, "pytorch": arguments.python}
    measure.print_heading(
        *measure.SETTING, "torch.compile", "crest_jax: ms (least)", "PyTorch: ms (least)",
        "PyTorch : crest_jax", "versions",
    )  # fmt: skip
    for setting, compiler in itertools.product(measure.settings_of(arguments), arguments.compile):
        with ExitStack() as stack:
            ways = {
                name: stack.enter_context(
                    measure.process(python, [__file__, "--serve"], ENVIRONMENT)
                )(name, setting, compiler)
                for name, python in pythons.items()
            }
            (weights, ours), (of_theirs, theirs) = (way.about for way in ways.values())
            if weights != of_theirs:
                raise SystemExit(f"the models have {weights} and {of_theirs} weights")
            taken = measure.interleaved(
                {name: way.run for name, way in ways.items()}, arguments.samples
            )
        seconds = {name: measure.per_step(each, setting) for name, each in taken.items()}
        measure.print_row(
            setting,
            compiler,
            measure.spread(seconds["crest_jax"]),
            measure.spread(seconds["pytorch"]),
            f"{measure.ratio(seconds['pytorch'], seconds['crest_jax']):.2f}",
            f"{ours}; {theirs}",
        )


if __name__ == "__main__":
    main()
