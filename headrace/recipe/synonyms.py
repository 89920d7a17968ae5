"""Names from other tools, and what has their meaning in a recipe; with what Headrace does not do, and what to use instead.

Each table maps words to a name. The words of an unknown name are compared in lower case, without their order and joined in any
way: `BinaryClassification`, `binary_classification` and `classification (binary)` are the same. docs/limits.md has the same
limits in prose.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from headrace.errors import near_miss

PAGE = "docs/limits.md"


@dataclass(frozen=True)
class Limit:
    """Something that Headrace does not do."""

    words: tuple[str, ...]
    """Names of it, of its methods and of libraries for it; each with all its words."""
    said: str
    """As the rest of a sentence that begins with the unknown name."""
    instead: str
    """What to use."""

    def __str__(self) -> str:
        return f"Headrace does not {self.said}; {self.instead} ({PAGE})"


LIMITS = (
    Limit(
        ("forecast", "time series", "arima", "sarima", "sarimax", "prophet", "ets", "nbeats", "deepar"),
        "forecast a series",
        "use statsforecast, sktime or Prophet; or make a table with lagged values as columns, and use `regression`, tested on "
        "the last rows (data.split.time)",
    ),
    Limit(
        ("object detection", "detection", "bounding box", "yolo", "yolov", "rcnn", "detr", "ssd"),
        "find objects in images",
        "use Ultralytics, Detectron2 or torchvision's detection models; a whole image: `image-classification`",
    ),
    Limit(
        ("segmentation", "unet", "mask", "sam", "deeplab"),
        "label the pixels of images",
        "use torchvision's segmentation models or MONAI; a whole image: `image-classification`",
    ),
    Limit(
        ("rank", "recommend", "recommendation", "collaborative filter", "lambdamart", "als"),
        "rank or recommend items",
        "use LightGBM's rankers, implicit or RecBole; whether one item is chosen: `classification`",
    ),
    Limit(
        ("cluster", "kmeans", "dbscan", "topic model", "lda", "pca", "umap", "tsne", "dimensionality reduction", "embedding"),
        "learn without a target",
        "use scikit-learn or BERTopic; with labels for some rows: `classification`",
    ),
    Limit(
        ("anomaly", "outlier", "isolation forest", "novelty", "autoencoder"),
        "find anomalies without labels",
        "use PyOD or scikit-learn; with labels: `classification` with train.class_weights",
    ),
    Limit(
        ("svm", "svc", "svr", "knn", "neighbors", "neighbours", "bayes", "gaussian process", "sklearn", "scikit learn"),
        "train models of scikit-learn",
        "for a table use `mlp`; or write a task type of your own that fits them and answers by a torch module",
    ),
    Limit(
        ("translate", "translation", "question answer", "qa", "rag", "finetune", "fine tune", "lora"),
        "adapt large language models",
        "use Hugging Face transformers with vLLM; shortening texts: `summarisation`, writing on: `text-generation`",
    ),
    Limit(
        ("ner", "token classification", "entity", "tagger", "tagging", "ocr"),
        "label parts of a text or read text in images",
        "use spaCy, or Tesseract for images; a whole text: `text-classification`",
    ),
    Limit(
        ("audio", "speech", "asr", "whisper", "video", "point cloud"),
        "read audio, video or point clouds",
        "use torchaudio, Whisper or PyTorchVideo; a table of features made from them: `classification`",
    ),
    Limit(("survival", "cox", "hazard"), "model the time until an event", "use lifelines or scikit-survival"),
    Limit(("reinforcement", "rl", "dqn", "ppo", "bandit"), "learn by reinforcement", "use Stable-Baselines3 or Vowpal Wabbit"),
    Limit(
        ("image generation", "diffusion", "gan", "vae", "text to image"),
        "generate images",
        "use Hugging Face diffusers",
    ),
    Limit(("causal", "uplift", "treatment effect"), "estimate effects of actions", "use DoWhy, EconML or CausalML"),
)

UNSURE = frozenset({"detection", "mask"})
"""Names of limits that can also be part of a task that Headrace has, such as spam detection."""
WORDS = {
    **dict.fromkeys(("classifier", "classify", "binary", "multiclass", "categorical", "label", "logistic", "churn", "fraud",
                     "cls", "categorise", "categorize", "categorisation", "categorization", "multilabel"), "classification"),
    **dict.fromkeys(("regressor", "regress", "linear", "numeric", "continuous", "quantile", "price", "value"), "regression"),
    **dict.fromkeys(("vision", "picture", "photo", "photograph", "mnist", "cifar", "imagenet", "jpeg", "png", "img"),
                    "image classification"),
    **dict.fromkeys(("sentiment", "nlp", "document", "spam", "topic", "sentence", "intent", "tweet", "review", "email"),
                    "text classification"),
    **dict.fromkeys(("generate", "generator", "llm", "language", "chat", "chatbot", "completion", "lm"), "text generation"),
    **dict.fromkeys(("summarization", "summarizer", "summariser",
                     "summarize", "summarise", "summary", "abstractive"), "summarisation"),
    **dict.fromkeys(("molecule", "molecular", "gnn"), "graph classification"),
}  # fmt: skip
"""Words of a task, and the words of this recipe's tasks that they mean."""

MODELS = {
    "mlp": ("dense", "feedforward", "feed forward", "fnn", "ffn", "dnn", "ann", "nn", "neural network", "neural net",
            "perceptron", "linear", "logistic", "linear regression", "logistic regression",
            "tabnet", "tabular", "fully connected", "fc"),
    "lightgbm": ("tree", "forest", "boost", "lgbm", "catboost", "gbm", "gbdt", "gbt", "cart", "hist gradient boost"),
    "xgboost": ("xgb",),
    "cnn": ("convnet", "conv", "convolutional", "convolution", "lenet", "vgg", "alexnet", "efficientnet", "mobilenet",
            "densenet", "inception", "convnext", "vit", "swin"),
    "resnet": ("residual", "residual network", "resnet18", "resnet34", "resnet50", "resnet101", "resnext"),
    "recurrent": ("lstm", "gru", "rnn", "bilstm", "bigru"),
    "attention": ("transformer", "bert", "roberta", "distilbert", "encoder", "self attention"),
    "seq2seq": ("t5", "bart", "pegasus", "encoder decoder", "sequence to sequence", "pointer generator"),
    "recurrent-language": ("char rnn", "language model"),
    "gpt": ("gpt2", "gpt 2", "nanogpt", "llama", "decoder", "mistral", "causal lm", "llm"),
    "gcn": ("gnn", "graphsage", "sage", "gin", "graph convolution", "graph convolutional network", "mpnn", "chebnet"),
    "gat": ("graph attention", "gatv2"),
}  # fmt: skip
"""Names of models elsewhere, by the nearest one here."""

METRICS = {
    "accuracy": ("acc", "precision", "error", "error rate"),
    "macro_f1": ("f1", "f1 score", "f1 macro", "f score", "recall", "balanced accuracy"),
    "auc": ("roc auc", "auroc", "roc", "gini", "average precision", "pr auc"),
    "log_loss": ("logloss", "cross entropy", "nll", "loss", "perplexity"),
    "calibration_error": ("ece", "brier", "calibration"),
    "rmse": ("mse", "mean squared error", "root mean squared error", "l2"),
    "mae": ("mean absolute error", "l1", "mape", "median absolute error"),
    "r2": ("r squared", "rsquared", "explained variance", "determination"),
    "bits_per_character": ("bpc", "perplexity", "bits per byte"),
    "rouge_l": ("rouge", "bleu", "rougel", "rouge 1", "rouge 2"),
}
"""Metrics elsewhere, by the nearest one here."""

FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "": {
        "task": ("type", "task type", "problem", "problem type", "objective"),
        "data": ("dataset", "datasets", "input", "source", "table"),
        "expect": ("expectations", "validation", "checks", "validate", "constraints", "tests", "quality"),
        "model": ("network", "architecture", "estimator", "algorithm"),
        "train": ("training", "fit", "trainer", "hyperparameters", "optimization", "params"),
        "gate": ("evaluation", "evaluate", "metrics", "thresholds", "promotion", "acceptance"),
        "serve": ("serving", "deploy", "deployment", "service", "endpoint", "inference"),
    },
    "data": {
        "source": ("path", "file", "url", "uri", "location", "filename", "csv", "dataset", "sources", "files"),
        "target": ("label", "labels", "y", "target column", "label column", "output", "class", "targets", "outcome"),
        "columns": ("features", "inputs", "x", "names", "feature columns", "usecols", "input columns"),
        "categorical": ("categories", "categorical columns", "cat features", "categorical features"),
        "drop_missing": ("dropna", "drop na", "drop null", "drop nulls"),
        "drop_duplicates": ("deduplicate", "dedup", "unique"),
        "skip_rows": ("skiprows", "skip", "skip lines", "header rows"),
        "encoding": ("charset", "codec"),
        "format": ("file type", "filetype", "file format"),
        "split": ("test size", "splits", "train test split", "holdout", "folds"),
        "join": ("merge", "lookup"),
        "read": ("delimiter", "sep", "separator", "decimal", "thousands", "na values", "dialect", "quote"),
    },
    "data.split": {
        "test": ("test size", "test fraction", "holdout", "test split"),
        "validation": ("val", "valid", "validation size", "dev", "val size", "validation split"),
        "seed": ("random state", "random seed", "random"),
        "group": ("groups", "group by", "group column"),
        "time": ("date", "by time", "time column", "temporal"),
        "predefined": ("fixed", "given", "existing"),
    },
    "model": {
        "name": ("type", "architecture", "kind", "class", "model"),
        "hidden": ("layers", "units", "hidden layers", "hidden size", "hidden sizes", "hidden layer sizes", "neurons"),
        "interval": ("prediction interval", "confidence interval", "uncertainty"),
        "quantiles": ("quantile", "percentiles", "percentile"),
        "rounds": ("n estimators", "num boost round", "num round", "iterations", "num iterations", "epochs", "trees"),
        "num_leaves": ("leaves", "max leaves", "max leaf nodes"),
        "min_child_samples": ("min data in leaf", "min samples leaf"),
        "subsample": ("bagging fraction",),
        "colsample_bytree": ("feature fraction", "colsample", "max features"),
        "reg_alpha": ("alpha", "lambda l1", "l1"),
        "reg_lambda": ("lambda", "lambda l2", "l2"),
        "gamma": ("min split loss", "min split gain"),
        "early_stopping_rounds": ("patience", "early stopping", "early stop"),
        "threads": ("n jobs", "nthread", "num threads"),
        "dropout": ("dropout rate", "drop rate"),
        "channels": ("filters", "kernels", "feature maps"),
        "layers": ("depth", "num layers", "n layers", "blocks"),
        "heads": ("num heads", "n heads", "attention heads"),
        "ensemble": ("members", "n estimators", "bagging"),
    },
    "train": {
        "learning_rate": ("lr", "eta", "step size", "learning rate init"),
        "epochs": ("iterations", "num epochs", "n epochs", "max epochs", "max iter", "num train epochs", "steps", "rounds"),
        "batch_size": ("batch", "bs", "minibatch", "train batch size", "per device train batch size"),
        "optimizer": ("optim", "optimiser", "solver", "algorithm"),
        "weight_decay": ("l2", "l2 regularization", "regularization", "alpha", "wd"),
        "schedule": ("scheduler", "lr scheduler", "lr schedule", "learning rate schedule"),
        "warmup": ("warmup steps", "warmup ratio", "warmup epochs"),
        "early_stopping": ("patience", "early stop", "stopping", "early stopping rounds"),
        "seed": ("random state", "random seed"),
        "class_weights": ("class weight", "sample weight", "weights", "balanced", "scale pos weight", "imbalance"),
        "max_grad_norm": ("clip", "grad clip", "gradient clipping", "clip grad norm", "gradient clip val", "clipnorm"),
        "gradient_accumulation_steps": ("accumulation", "accumulate grad batches", "gradient accumulation"),
        "augment": ("augmentation", "augmentations", "transforms", "data augmentation"),
        "processes": ("gpus", "devices", "workers", "num processes", "world size", "nproc per node"),
        "precision": ("amp", "fp16", "bf16", "mixed precision", "dtype"),
        "device": ("gpu", "cuda", "accelerator"),
        "averaging": ("ema", "swa", "polyak"),
    },
    "gate": {
        "require": ("thresholds", "threshold", "minimum", "metrics", "bounds", "min", "requirements"),
        "beat_champion": ("champion", "baseline", "compare", "challenger", "improve", "better than"),
        "approval": ("approve", "manual", "review", "human", "sign off"),
    },
    "serve": {
        "replicas": ("instances", "workers", "num replicas", "n replicas", "copies", "scale", "min replicas"),
        "threads": ("cpus", "cores", "cpu"),
        "rollout": ("canary", "shadow", "strategy", "deployment", "traffic"),
    },
}  # fmt: skip
"""Fields elsewhere, by section and by the field of it that is nearest. Only fields that exist are suggested."""


def near_task(name: str, tasks: Collection[str]) -> str:
    """Returns a clause with the task that `name` means, with what to use instead of Headrace, or with the near miss."""
    words = _words(name)
    if limit := _limit(words, is_certain=True):
        return str(limit)
    meant = words | {part for word in words for part in WORDS.get(word, "").split()}
    found = [task for task in tasks if set(task.split("-")) <= meant]
    if found:
        return _did_you_mean(max(found, key=lambda task: (task.count("-"), task)))
    limit = _limit(words)
    return str(limit) if limit else near_miss(name, tasks)


def near_model(name: str, models: Collection[str]) -> str:
    """Returns a clause with the model that is nearest to `name` by meaning, with what to use instead, or the near miss."""
    if found := _named(name, MODELS, models):
        return _did_you_mean(found)
    limit = _limit(_words(name))
    return str(limit) if limit else near_miss(name, models)


def near_metric(name: str, metrics: Collection[str]) -> str:
    """Returns a clause with the metric that is nearest to `name` by meaning, or the near miss. A metric of a target that there
    is not, such as `mae_price`, is answered by those of the targets."""
    found = _named(name, METRICS, metrics)
    of_targets = [metric for metric in metrics if metric.startswith(f"{found}_")]
    if of_targets and name.startswith(f"{found}_"):
        return near_miss(name, of_targets)
    return _did_you_mean(found) if found else near_miss(name, metrics)


def near_field(name: str, section: Iterable[str], fields: Collection[str]) -> str:
    """Returns a clause with the field that `name` means in a section, or the near miss.

    Args:
        section: the names of the section, from the top of the recipe.
        fields: the fields that it has.
    """
    found = _named(name, FIELDS.get(".".join(section), {}), fields)
    return _did_you_mean(found) if found else near_miss(name, fields)


def _did_you_mean(name: str) -> str:
    return f"did you mean {name!r}?"


def _words(name: str) -> frozenset[str]:
    """The words of a name in lower case, also in the singular and without endings; two in a row, and all of it, as one word."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    words = re.findall(r"[a-z0-9]+", spaced)
    joined = [first + second for first, second in itertools.pairwise(words)]
    words = [*words, *re.findall(r"[a-z]+|[0-9]+", spaced), *joined, "".join(words)]
    shorter = [word.removesuffix(end) for word in words for end in ("s", "er", "ing", "ling") if len(word) > len(end) + 3]
    return frozenset([*words, *shorter])


def _limit(words: frozenset[str], is_certain: bool = False) -> Limit | None:
    """The first limit of which `words` has a name. Words that tasks have too, as in spam detection, are not certain."""
    unsure = UNSURE if is_certain else frozenset[str]()
    for limit in LIMITS:
        if any(name not in unsure and set(name.split()) <= words for name in limit.words):
            return limit
    return None


def _named(name: str, table: Mapping[str, tuple[str, ...]], choices: Collection[str]) -> str | None:
    """The choice that is part of `name`, or that has a synonym in it: of several, the one with the most words."""
    words = _words(name)
    own = [(choice.replace("_", " ").replace("-", " "), choice) for choice in choices]
    others = [(synonym, choice) for choice, synonyms in table.items() if choice in choices for synonym in synonyms]
    found = [(len(said.split()), choice) for said, choice in (*own, *others) if set(said.split()) <= words]
    return max(found, key=lambda pair: pair[0])[1] if found else None
