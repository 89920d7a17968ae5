"""The contract of a language model that others trained, in a file that a runtime made for such models serves."""

from __future__ import annotations

from headrace.runtime.contract import Contract
from headrace.task_types.text_generation import generation_inputs

SERVED_BY = "bentos.models.language_model:LanguageModel"
SAMPLE = {"prompt": "Hello", "max_tokens": 4, "temperature": 0.0}
"""With it a new replica is tested: short, since a large model takes long for each token."""


def language_contract(
    name: str, length: int, threads: int = 1, context: int | None = None, parallel: int | None = None
) -> Contract:
    """Returns the contract of the model `name`.

    Args:
        length: tokens of a prompt and its answer together.
        context: `serve.context` of the recipe.
        parallel: `serve.parallel` of the recipe.
    """
    return Contract(
        model=name,
        task="text-generation",
        inputs=generation_inputs(length),
        output="text",
        target="text",
        sample=dict(SAMPLE),
        served_by=SERVED_BY,
        threads=threads,
        context=context,
        parallel=parallel,
    )
