"""Builds the served graph and its contract from a model that others trained, and checks both before anything serves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError, first_line
from headrace.files import write_json, write_with
from headrace.importing import convert as conversion
from headrace.importing import inputs as fronts
from headrace.importing import onnx_file
from headrace.importing import outputs as backs
from headrace.importing.convert import Converted
from headrace.importing.errors import ImportIncomplete, ImportRefused
from headrace.importing.formats import format_of
from headrace.importing.language import TASK as LANGUAGE_TASK
from headrace.importing.language import build_language
from headrace.importing.wanted import Built, Wanted
from headrace.models.parity import TOLERANCE
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.input_field import InputField
from headrace.runtime.memory import free_memory
from headrace.runtime.violations import ContractViolation
from headrace.tracking.artifact import CONTRACT, GRAPH, IMPORT_FACTS

if TYPE_CHECKING:
    import onnx
    import onnxruntime

TRIAL_ROWS = 32
"""Random rows on which outputs are looked at."""
NAMES = {"onnx": "ONNX", "skops": "skops", "xgboost": "XGBoost", "lightgbm": "LightGBM"}


def build(source: Path, shown: str, wanted: Wanted, out: Path) -> Built:
    """Writes `model.onnx` (of a language model `model.gguf`), `contract.json` and `import.json` to the folder `out`.

    Args:
        source: the model's file; files with further weights are beside it.
        shown: its address, for errors.

    Raises:
        ImportRefused: the model cannot be served; the message says why and what to do.
        ImportIncomplete: it does not say all that the contract needs.
        ExportError: the converted model answers differently than the original.
        DiskFull: no space is left.
    """
    kind = format_of(source, shown)
    if kind == "gguf":
        return build_language(source, shown, wanted, out)
    size = source.stat().st_size
    onnx_file.require_memory(size, free_memory(), shown)
    if kind == "onnx":
        converted, model = None, onnx_file.read_structure(source, shown)
        onnx_file.check_operators(model, shown)
        further = [source.parent / name for name in onnx_file.external_files(model, shown)]
        size += sum(path.stat().st_size for path in further if path.is_file())
        onnx_file.require_memory(size, free_memory(), shown)
        onnx_file.load_weights(model, source.parent, shown)
    else:
        converted = conversion.convert(source, kind, shown)
        model = converted.graph
    return _Builder(model, converted, shown, wanted).write(out, {"format": NAMES[kind], "bytes": size})


class _Builder:
    """Turns one graph into one that answers as a contract says."""

    def __init__(self, model: onnx.ModelProto, converted: Converted | None, shown: str, wanted: Wanted) -> None:
        import onnx

        self.shown, self.wanted, self.config, self.converted = shown, wanted, wanted.config, converted
        self._check_task()
        self.task = wanted.task or (converted.task if converted else backs.task_of(model.graph))
        if self.task is None:
            raise ImportIncomplete(
                f"{shown} does not say whether its outputs are probabilities of classes or values",
                where="task",
                hint="write `task: classification` or `task: regression`",
                options={"task": "classification"},
            )
        self.labels = (converted.labels if converted else None) or backs.labels_of(model) or wanted.labels
        self.licence = backs.licence_of(model)
        backs.drop_zipmap(model.graph)
        self.inputs = fronts.completed(fronts.inputs_of(model.graph, shown), self.config)
        if self.config.inputs is None and converted is not None and converted.columns is not None:
            self.config = self.config.model_copy(update={"inputs": converted.columns})
        self.fields = fronts.fields_of(self.inputs, self.config, model.graph, converted.levels if converted else {})
        self.outputs = [value.name for value in model.graph.output]
        self.weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)
        self.model = onnx.compose.add_prefix(model, fronts.INNER)
        if not any(opset.domain in ("", "ai.onnx") for opset in model.opset_import):  # trees alone
            self.model.opset_import.append(onnx.helper.make_opsetid("", conversion.TREE_OPSET))
        fronts.add_front(self.model.graph, self.inputs, self.config.inputs)

    def write(self, out: Path, facts: dict[str, Any]) -> Built:
        sample = fronts.sample_of(self.fields, self.config.sample)
        trial, rows = self._trial(sample)
        output = backs.choose_output(trial, rows, str(self.task), self.config.output)
        columns = backs.columns_of(trial[output])
        contract = self._contract(sample, output, columns)
        activation = "none"
        if self.task != "regression":
            activation = backs.checked_activation(self.config, trial[output], output, str(self.task))
        is_binary = columns == 1 and contract.output == "probabilities"
        backs.add_back(self.model, output, columns, activation, is_binary, contract.output == "value")
        out.mkdir(parents=True, exist_ok=True)
        write_with(out / GRAPH, lambda beside: beside.write_bytes(self._serialized()))
        write_with(out / CONTRACT, contract.write)
        memory = self._smoke_run(out)
        parity = self._parity(out, contract)
        found = {
            **facts,
            "task": self.task,
            "weights": self.weights,
            "memory": max(memory, onnx_file.MEMORY_FACTOR * self.weights),
            "opset": max((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), default=0),
            "output": output,
            "activation": activation,
            "licence": self.licence,
            **({"library": self.converted.library} if self.converted else {}),
            **({"largest_difference": parity, "parity_rows": conversion.PARITY_ROWS} if parity is not None else {}),
        }
        write_json(out / IMPORT_FACTS, found)
        return Built(contract, found)

    def _check_task(self) -> None:
        """
        Raises:
            ImportRefused: the model is of another task than the recipe.
        """
        asked, found = self.wanted.task, self.converted.task if self.converted else None
        if asked == LANGUAGE_TASK:
            raise ImportRefused(
                f"{self.shown} is not a language model, and the task is {asked}",
                where="task",
                hint=f"write `task: {found or 'classification'}`, or import a model in GGUF",
            )
        if found and asked and found not in asked:  # a classifier may give several labels
            raise ImportRefused(
                f"the model in {self.shown} is one of {found}, and the task is {asked}",
                where="task",
                hint=f"write `task: {found}`",
            )

    def _trial(self, sample: dict[str, Any]) -> tuple[dict[str, NDArray[Any]], int]:
        """The outputs for the sample, twice, and for random numbers, by their names; and the number of these rows.

        Raises:
            ImportRefused: the graph cannot be opened or run.
        """
        session = self._session(self.model.SerializeToString())
        names = [f"{fronts.INNER}{name}" for name in self.outputs]
        try:
            feeds = _feeds(self.fields, [sample, sample])
        except ContractViolation as error:
            raise ImportRefused(
                f"the sample is not a valid instance: {error}", where="model.sample", hint="correct it"
            ) from None
        found = self._run(session, names, feeds)
        rng = np.random.default_rng(7)
        random = {field.name: _random(field, feeds[field.name][:1], rng) for field in self.fields}
        try:
            more = session.run(names, random)
        except Exception:  # random numbers need not be valid; the sample is
            more = None
        rows = 2
        if more is not None and all(np.shape(one)[:1] == (TRIAL_ROWS,) for one in more):
            numbers = [one.reshape(TRIAL_ROWS, -1) for one in more if one.dtype.kind == "f"]
            finite = np.all([np.isfinite(one).all(axis=1) for one in numbers], axis=0)
            if numbers:
                found = [np.concatenate([one, other[finite]]) for one, other in zip(found, more, strict=True)]
                rows += int(finite.sum())
        return dict(zip(self.outputs, found, strict=True)), rows

    def _run(self, session: onnxruntime.InferenceSession, names: list[str], feeds: Feeds) -> list[Any]:
        try:
            session.run(names, {name: values[:1] for name, values in feeds.items()})
            found: list[Any] = session.run(names, feeds)
        except Exception as error:  # onnxruntime raises many classes
            fixed = next((one for one in self.inputs if one.rows is not None), None)
            if fixed is not None:
                raise self._fixed_rows(fixed) from None
            raise ImportRefused(
                f"{self.shown} cannot answer its sample: {first_line(error)}",
                where="model.sample",
                hint="give a valid instance: --sample '{\"FIELD\": VALUE}', or model.sample in the recipe",
            ) from None
        fixed = next((one for one in self.inputs if one.rows is not None), None)
        if fixed is not None and all(len(one) != 2 for one in found if isinstance(one, np.ndarray) and one.ndim):
            raise self._fixed_rows(fixed)
        return found

    def _fixed_rows(self, fixed: fronts.GraphInput) -> ImportRefused:
        return ImportRefused(
            f"{self.shown} was exported for exactly {fixed.rows} row{'' if fixed.rows == 1 else 's'} ({fixed.name}), and "
            "requests have any number of them",
            where="model.source",
            hint='export it with an open first axis: torch.onnx.export(…, dynamic_shapes=({0: torch.export.Dim("rows")},))',
        )

    def _session(self, graph: bytes) -> onnxruntime.InferenceSession:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many classes
            raise ImportRefused(
                f"ONNX Runtime {onnxruntime.__version__} cannot open {self.shown}: {first_line(error)}",
                where="model.source",
                hint="export it with standard operators of ONNX, for example by torch.onnx.export",
            ) from None

    def _serialized(self) -> bytes:
        import onnx

        try:
            onnx.checker.check_model(self.model)
        except onnx.checker.ValidationError as error:
            raise ImportRefused(
                f"{self.shown} is not valid ONNX: {first_line(error)}", where="model.source", hint="export it again"
            ) from None
        return bytes(self.model.SerializeToString(deterministic=True))

    def _contract(self, sample: dict[str, Any], output: str, columns: int) -> Contract:
        task, targets = str(self.task), self.config.targets
        base: dict[str, Any] = {"model": self.wanted.name, "task": task, "inputs": self.fields, "target": targets[0]}
        base |= {"sample": sample, "threads": self.wanted.threads}
        if task == "regression":
            if (columns > 1 and len(targets) != columns) or len(set(targets)) != len(targets):
                names = ",".join(f"NAME{i}" for i in range(columns))
                raise ImportIncomplete(
                    f"the output {output!r} has {columns} columns, and model.targets names {', '.join(targets)}",
                    where="model.targets",
                    options={"targets": names},
                )
            if columns == 1 and len(targets) > 1:
                raise ImportRefused(
                    f"the output {output!r} has one column, and model.targets names {len(targets)}",
                    where="model.targets",
                    hint="name one",
                )
            return Contract(**base, output="value") if columns == 1 else Contract(**base, output="values", targets=targets)
        labels = backs.checked_labels(self.config, self.labels, columns, output, task)
        return Contract(**base, output="probabilities" if task == "classification" else "labels", labels=labels)

    def _smoke_run(self, out: Path) -> int:
        """Loads the model as a replica does and predicts the sample; returns the bytes of memory that this took.

        Raises:
            ImportRefused: the sample has no finite answer.
        """
        import psutil

        from bentos.models.onnx_model import NotServable, OnnxModel

        process = psutil.Process()
        before = process.memory_info().rss
        try:
            model = OnnxModel(out)
        except NotServable as error:
            raise ImportRefused(
                f"{self.shown}: {error}",
                where="model.sample",
                hint="give a valid instance: --sample '{\"FIELD\": VALUE}', or model.sample in the recipe",
            ) from None
        used = process.memory_info().rss - before
        del model
        return max(0, int(used))

    def _parity(self, out: Path, contract: Contract) -> float | None:
        """The largest difference between the answers of the original and of the graph; None for one that came as a graph.

        Raises:
            ExportError: it is above the tolerance.
        """
        if self.converted is None:
            return None
        from headrace.models.onnx_inference import run_graph

        rng = np.random.default_rng(11)
        original, ours = self._random_feeds(contract, rng)
        theirs = self.converted.answers(original).reshape(conversion.PARITY_ROWS, -1).astype(float)
        got = run_graph(out / GRAPH, ours).reshape(conversion.PARITY_ROWS, -1).astype(float)
        if theirs.shape != got.shape:
            raise ExportError(f"the converted graph gives {got.shape[1]} numbers for a row, {self.shown} {theirs.shape[1]}")
        largest = float(np.abs(theirs - got).max() / max(1.0, float(np.abs(theirs).max())))
        if not largest <= TOLERANCE:
            raise ExportError(
                f"the converted graph differs from {self.shown} by {largest:.2g} on random rows (allowed: {TOLERANCE:g})",
                where="model.source",
                hint="train the model on float32, or export it to ONNX yourself and import that",
            )
        return largest

    def _random_feeds(self, contract: Contract, rng: np.random.Generator) -> tuple[Feeds, Feeds]:
        """Random rows as inputs of the converted graph, and as inputs of the served one."""
        assert self.converted is not None
        if len(self.inputs) == 1 and self.inputs[0].type != "STRING":
            only = self.inputs[0]
            matrix = conversion.random_numbers(self.converted, int(only.shape[0] or 1), rng)
            names = [field.name for field in contract.inputs]
            served = {name: matrix[:, i] for i, name in enumerate(names)} if self.config.inputs is not None else None
            served = {only.name: matrix[:, 0] if only.shape == (1,) else matrix} if served is None else served
            return {only.name: matrix}, served
        found: Feeds = {}
        for field in contract.inputs:
            if field.dtype == "string":
                found[field.name] = rng.choice(np.array(field.levels or [""], dtype=object), conversion.PARITY_ROWS)
            else:
                numbers = rng.uniform(-conversion.SPREAD, conversion.SPREAD, conversion.PARITY_ROWS)
                found[field.name] = numbers.astype(field.dtype)
        return found, found


def facts_shown(facts: Mapping[str, Any]) -> list[str]:
    """Lines for people about an imported model."""
    if not facts:
        return []
    size, memory = facts["bytes"] / 1e6, facts["memory"] / 1e6
    origin = facts.get("source", "")
    revision = f" at {facts['revision']}" if facts.get("revision") else ""
    return [
        *([f"{origin}{revision}, licence {facts.get('licence') or 'not known'}"] if origin else []),
        f"{facts.get('library') or facts['format']}, {size:,.1f} MB; a replica takes about {memory:,.1f} MB for it",
        *checks_of(facts),
    ]


def checks_of(facts: Mapping[str, Any]) -> list[str]:
    """Sentences on what was checked in place of a comparison on test rows."""
    checks = [f"its bytes have sha256 {str(facts['sha256'])[:12]}…"] if facts.get("sha256") else []
    if facts["format"] == "GGUF":
        chats = "has a" if facts["chats"] else "has no"
        checks.append(f"llama.cpp has loaded it ({facts['architecture']}), and answered its sample; it {chats} chat template")
        return checks
    checks.append(f"ONNX Runtime has all its operators (opset {facts['opset']})")
    checks.append("its sample has a finite answer")
    if "largest_difference" in facts:
        rows, library = facts["parity_rows"], facts["library"]
        checks.append(f"the graph answers {rows} random rows as {library} does, within {facts['largest_difference']:.2g}")
    return checks


def _feeds(fields: list[InputField], rows: list[dict[str, Any]]) -> Feeds:
    contract = Contract(model="sample", task="classification", inputs=fields, output="value", target="", sample={})
    return contract.to_feeds(rows, "sample")


def _random(field: InputField, sample: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if field.dtype in ("float32", "float64"):
        return rng.normal(0, 1, (TRIAL_ROWS, *field.shape)).astype(field.dtype)
    return np.repeat(sample, TRIAL_ROWS, axis=0)
