"""Writes the page of the training benchmark: speeds, ratios, minimum times, and whether the targets are met."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.report import hardware, markdown, section, wrap
from benchmarks.training_models import Machine, Workload

LIGHTNING = "2.6.6"


@dataclass(frozen=True)
class DeviceResult:
    """Measurements on one device."""

    device: torch.device
    machine: Machine
    workloads: list[Workload]
    floors: dict[str, float]
    """Minimum seconds of a round, by model."""
    seconds: dict[str, dict[str, list[float]]]
    """Seconds of each round, by model and loop."""

    @property
    def loops(self) -> list[str]:
        return list(next(iter(self.seconds.values())))

    def ratio(self, model: str, loop: str) -> float:
        """Returns the speed of Headrace relative to `loop`: the median of the ratios within each round."""
        pairs = zip(self.seconds[model]["Headrace"], self.seconds[model][loop], strict=True)
        return median(other / own for own, other in pairs)

    def lowest_ratio(self, model: str) -> float:
        return min(self.ratio(model, loop) for loop in self.loops[1:])


HEAD = """# Training: Headrace compared with other loops

Written by `python -m benchmarks.training` in {minutes:.1f} minutes on {hardware}.
Load average {load[0]:.1f} at the beginning, {load[1]:.1f} at the end. {lightning} {gpu}

*Headrace* is the training loop of `headrace run`, in its deterministic mode and with its record of losses. The *DataLoader
loop* is that of PyTorch's tutorials: a `DataLoader` over tensors in memory, AdamW with defaults, the loss read in each step.
*Lightning* is its Trainer without logger, checkpoints, progress bar and model summary; its start is not timed. *Tuned by hand*
is written for speed only: rows on the device, preprocessed once, fused AdamW, nothing recorded but the sum of losses. All train
the same models from the same initial weights on the same rows, with AdamW, the same batch size and the same precision;
convolutions use the channels-last format in all of them. No model is compiled: Headrace tries that only on runs of five minutes
or more."""


def page(found: list[DeviceResult], minutes: float, load: tuple[float, float], has_lightning: bool) -> str:
    """Returns the page as Markdown."""
    lightning = f"pytorch-lightning {LIGHTNING}." if has_lightning else "Without Lightning."
    gpu = "" if any(one.device.type == "cuda" for one in found) else "No GPU was available."
    head = HEAD.format(hardware=hardware(), minutes=minutes, load=load, lightning=lightning, gpu=gpu).rstrip()
    parts = [part for one in found for part in (speeds(one), ratios(one), floors(one))]
    return "\n\n".join([wrap(head), targets(found), *parts]) + "\n"


def device_name(found: DeviceResult) -> str:
    if found.device.type == "cuda":
        return torch.cuda.get_device_name(found.device)
    return f"the CPU with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def targets(found: list[DeviceResult]) -> str:
    """Returns the targets, and whether they are met."""
    rows = []
    for one in found:
        model = min(one.seconds, key=one.lowest_ratio)
        least = one.lowest_ratio(model)
        rows.append(
            (
                "within 10 % of the best loop on every model",
                device_name(one),
                f"{least:.2f}× ({model})",
                met_or_not(least >= 0.9),
            )
        )
        for device, model, loop, wanted in (("cpu", "MLP", "Lightning", 1.5), ("cuda", "CNN", "DataLoader loop", 10.0)):
            if one.device.type == device and model in one.seconds and loop in one.loops:
                ratio = one.ratio(model, loop)
                rows.append((f"{wanted:g}× {loop}, {model}", device_name(one), f"{ratio:.2f}×", met_or_not(ratio >= wanted)))
    return "## Targets\n\n" + markdown(("target", "on", "lowest ratio", ""), rows)


def met_or_not(is_met: bool) -> str:
    return "met" if is_met else "not met"


def speeds(found: DeviceResult) -> str:
    rows = [
        (
            w.name,
            f"{w.about}; batches of {min(w.batch_size, len(w.target))}",
            *(f"{len(w) / median(took):,.0f}" for took in found.seconds[w.name].values()),
        )
        for w in found.workloads
    ]
    count = len(next(iter(found.seconds.values()))["Headrace"])
    prose = f"Medians of {count} rounds. The loops take turns, round by round."
    return section(f"Rows per second on {device_name(found)}", prose, ("model", "", *found.loops), rows)


def ratios(found: DeviceResult) -> str:
    peers = found.loops[1:]
    rows = [
        (w.name, *(f"{found.ratio(w.name, peer):.2f}×" for peer in peers), f"{found.lowest_ratio(w.name):.2f}×")
        for w in found.workloads
    ]
    header = ("model", *(f"to the {peer}" if "loop" in peer else f"to {peer}" for peer in peers), "to the fastest")
    return section(
        f"Speed of Headrace relative to the others on {device_name(found)}",
        "Medians of the ratios within each round.",
        header,
        rows,
    )


def floors(found: DeviceResult) -> str:
    rows = []
    for w in found.workloads:
        least, took = found.floors[w.name], median(found.seconds[w.name]["Headrace"])
        rows.append((w.name, f"{1000 * least:.1f} ms", f"{1000 * took:.1f} ms", f"{took / least:.1f}×"))
    prose = f"""
Minimum time of a round: the operations of matrix products and convolutions (torch does not count LSTM cells and
sparse products) divided by {found.machine.operations / 1e9:,.0f} GFLOP/s, or the bytes of optimizer and rows divided by
{found.machine.bandwidth / 1e9:,.0f} GB/s, whichever takes longer. Both rates were measured in the same run: a product of 2048 ×
2048, a copy of 256 MB."""
    return section(f"Minimum time on {device_name(found)}", prose, ("model", "minimum", "Headrace", "ratio"), rows)
