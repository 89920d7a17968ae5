"""How the training benchmark writes down what it measured: rows a second, ratios, the floor, and whether the aims are met."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.gate_report import hardware, markdown, section
from benchmarks.training_models import Machine, Workload

LIGHTNING = "2.6.6"


@dataclass(frozen=True)
class Found:
    """What was measured on one device."""

    device: torch.device
    machine: Machine
    workloads: list[Workload]
    floors: dict[str, float]
    """Seconds of a round at the least, by model."""
    seconds: dict[str, dict[str, list[float]]]
    """Of each round, by model and loop."""

    @property
    def loops(self) -> list[str]:
        return list(next(iter(self.seconds.values())))

    def ratio(self, model: str, loop: str) -> float:
        """How many times as fast as `loop` Headrace is: the median of the ratios within each round."""
        pairs = zip(self.seconds[model]["Headrace"], self.seconds[model][loop], strict=True)
        return median(other / own for own, other in pairs)

    def least_ratio(self, model: str) -> float:
        return min(self.ratio(model, loop) for loop in self.loops[1:])


HEAD = """# Training: the engine against other loops

Written by `python -m benchmarks.training` in {minutes:.1f} minutes on {hardware}.
Load average {load[0]:.1f} at the beginning, {load[1]:.1f} at the end. {lightning} {gpu}

*Headrace* is the loop that `headrace run` trains with, in its deterministic mode and with its record of losses. The
*DataLoader loop* is that of the tutorials: a `DataLoader` over tensors in memory, AdamW as it comes, the loss read in each
step. *Lightning* is its Trainer with logger, checkpoints, bar and summary off, without its start. *Tuned by hand* is written
for speed alone: rows on the device, preprocessed once, fused AdamW, nothing recorded but the sum of losses. All train the same
models, from the same weights, on the same rows, with AdamW, in batches of the same size and in the same precision; convolutions
are channels last everywhere. None is compiled: Headrace tries that on runs of five minutes and more."""


def page(found: list[Found], minutes: float, load: tuple[float, float], has_lightning: bool) -> str:
    """The report as Markdown."""
    lightning = f"pytorch-lightning {LIGHTNING}." if has_lightning else "Without Lightning."
    gpu = "" if any(one.device.type == "cuda" for one in found) else "No GPU was at hand."
    head = HEAD.format(hardware=hardware(), minutes=minutes, load=load, lightning=lightning, gpu=gpu).rstrip()
    parts = [part for one in found for part in (speeds(one), ratios(one), floors(one))]
    return "\n\n".join([head, aims(found), *parts]) + "\n"


def where(found: Found) -> str:
    if found.device.type == "cuda":
        return torch.cuda.get_device_name(found.device)
    return f"the CPU with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def aims(found: list[Found]) -> str:
    """What was aimed at, and what was reached."""
    rows = []
    for one in found:
        model = min(one.seconds, key=one.least_ratio)
        least = one.least_ratio(model)
        rows.append(
            ("within 10 % of the best loop on every model", where(one), f"{least:.2f}× ({model})", verdict(least >= 0.9))
        )
        for device, model, loop, wanted in (("cpu", "MLP", "Lightning", 1.5), ("cuda", "CNN", "DataLoader loop", 10.0)):
            if one.device.type == device and model in one.seconds and loop in one.loops:
                ratio = one.ratio(model, loop)
                rows.append((f"{wanted:g}× {loop}, {model}", where(one), f"{ratio:.2f}×", verdict(ratio >= wanted)))
    return "## Aims\n\n" + markdown(("aim", "on", "least ratio seen", ""), rows)


def verdict(is_met: bool) -> str:
    return "met" if is_met else "not met"


def speeds(found: Found) -> str:
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
    return section(f"Rows a second on {where(found)}", prose, ("model", "", *found.loops), rows)


def ratios(found: Found) -> str:
    peers = found.loops[1:]
    rows = [
        (w.name, *(f"{found.ratio(w.name, peer):.2f}×" for peer in peers), f"{found.least_ratio(w.name):.2f}×")
        for w in found.workloads
    ]
    header = ("model", *(f"as the {peer}" if "loop" in peer else f"as {peer}" for peer in peers), "as the best of them")
    return section(
        f"How many times as fast Headrace is, on {where(found)}", "Medians of the ratios within each round.", header, rows
    )


def floors(found: Found) -> str:
    rows = []
    for w in found.workloads:
        least, took = found.floors[w.name], median(found.seconds[w.name]["Headrace"])
        rows.append((w.name, f"{1000 * least:.1f} ms", f"{1000 * took:.1f} ms", f"{took / least:.1f}×"))
    prose = f"""
Time that a round needs at the least: the operations of matrix products and convolutions (torch counts none for LSTM cells and
sparse products) over {found.machine.operations / 1e9:,.0f} GFLOP/s, or the bytes of optimizer and rows over
{found.machine.bandwidth / 1e9:,.0f} GB/s, whichever is more. Both rates were measured in the same run: a product of 2048 ×
2048, a copy of 256 MB."""
    return section(f"The floor on {where(found)}", prose, ("model", "floor", "Headrace", "times the floor"), rows)
