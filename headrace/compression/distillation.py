"""Distillation: a small network, the student, learns the answers of a trained one, the teacher (Hinton et al. 2015,
arXiv:1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.errors import RecipeError
from headrace.models.served import Classifier, ServedModel


class Distillation(Classifier):
    """A student in training, with the weights and names of weights of the student alone.

    The loss is `soft` · T² · KL(teacher ‖ student) at the temperature T, plus (1 - `soft`) times that of the true labels: T²
    keeps the gradients of both of one size (section 2 there). Teacher and student see the same augmented rows (Beyer et al.
    2022, arXiv:2106.05237).
    """

    def __init__(self, teacher: ServedModel, student: ServedModel, temperature: float, soft: float) -> None:
        """
        Raises:
            RecipeError: a model has no logits of classes, or computes them in its own way.
        """
        for model in (teacher, student):
            if not isinstance(model, Classifier) or type(model).raw is not ServedModel.raw:
                raise RecipeError(
                    f"distil needs a classifier with one label in each row, and {type(model).__name__} is none",
                    where="compress.method",
                    hint="use int8-static or prune",
                )
        super().__init__(student.preprocess, student.network)
        self._teacher = [teacher.eval()]  # in a list, so that its weights are none of the student's
        self._softness, self._soft = temperature, soft

    def raw(self, *inputs: Tensor) -> Tensor:
        """Returns logits `(batch, classes)`; in training those of the teacher too, `(batch, 2 * classes)`, also by view."""
        prepared = inputs if self.is_preprocessed else self.preprocess(*inputs)
        logits: Tensor = self.network(*prepared)
        if not self.training:
            return logits
        with torch.no_grad():
            wanted: Tensor = self._teacher[0].network(*prepared)
        if logits.dim() == 3:  # an ensemble: each of its networks learns from the teacher
            wanted = wanted.unsqueeze(1).expand(-1, logits.shape[1], -1)
        return torch.cat([logits, wanted.to(logits.dtype)], dim=-1)

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        if not self.training:
            return super().loss(raw, target)
        logits, wanted = raw.chunk(2, dim=-1)
        t = self._softness
        divergence = F.kl_div(
            F.log_softmax(logits.flatten(0, -2) / t, dim=1),
            F.log_softmax(wanted.flatten(0, -2) / t, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return self._soft * t * t * divergence + (1 - self._soft) * super().loss(logits, target)
