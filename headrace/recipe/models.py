"""The models a recipe can name. One entry each: its settings, and the dotted path of the module it builds.

Adding a family is one file beside this one and one entry in `MODELS`, or a class of one's own that the recipe names by its
path `module:Class`; its settings are the class's own `Config`. Nothing here imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headrace.errors import RecipeError, near_miss
from headrace.plugins import is_dotted, load_class

if TYPE_CHECKING:
    from torch import nn

Network = TypeVar("Network", bound="nn.Module")


class ModelConfig(BaseModel):
    """Settings every entry shares; `builds` is `module:class`, called as `class(config, shape)`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    builds: ClassVar[str]
    name: str


class CNNConfig(ModelConfig):
    """Blocks of convolutions, ReLU and pooling, one for each entry of `channels`, then one linear layer."""

    builds = "headrace.models.cnn:CNN"
    name: Literal["cnn"] = "cnn"
    channels: list[Annotated[int, Field(ge=1)]] = Field(default=[32, 64], min_length=1)
    """Output channels of each block; every block halves height and width."""
    convolutions: int = Field(default=1, ge=1, le=4)
    """Convolutions in a block."""
    batch_norm: bool = False
    """Whether each convolution is followed by batch normalisation."""
    dropout2d: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a whole channel after each block."""
    pooling: Literal["flatten", "average"] = "flatten"
    """What the linear layer sees: every place of the last block, or its average over all places."""
    dropout: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Probability of dropping a feature before the linear layer."""


class MLPConfig(ModelConfig):
    """A dense network; each categorical column of a table gets an embedding."""

    builds = "headrace.models.mlp:MLP"
    name: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1)]] = [128, 64]
    """Width of each hidden layer."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a hidden feature."""
    embedding: int = Field(default=8, ge=1)
    """Longest embedding of a categorical column; short vocabularies get fewer dimensions."""
    interval: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Of a regression: the share of true values that an interval beside the value is to hold. The value is a median then."""


Pooling = Literal["max", "mean", "last", "attention"]


class EnsembleConfig(ModelConfig):
    """Settings of a classifier that can be several."""

    members: int = Field(default=1, ge=1, le=32)
    """How many networks alike are trained side by side; the answer is the mean of their probabilities."""


class RecurrentConfig(EnsembleConfig):
    """An embedding of tokens, recurrent layers, pooling over their states, one linear layer."""

    builds = "headrace.models.recurrent:Recurrent"
    name: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru"] = "gru"
    bidirectional: bool = True
    """Whether a second direction reads each text from its end."""
    embedding: int = Field(default=128, ge=1)
    """Features of a token."""
    hidden: int = Field(default=128, ge=1)
    """Features of a state, in each direction."""
    layers: int = Field(default=1, ge=1)
    skip: bool = True
    """Whether the tokens' own embeddings are pooled too and judged beside the states: a short way to learn what single words
    say."""
    pooling: list[Pooling] = Field(default=["max", "mean"], min_length=1)
    """How the states of a text become one vector; several stand side by side."""
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Probability of dropping a feature in front of each layer and of the linear one."""
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a token is made an unknown one in training."""


class AttentionConfig(EnsembleConfig):
    """A transformer encoder: embedding of tokens, pre-norm blocks, pooling, one linear layer."""

    builds = "headrace.models.attention:Attention"
    name: Literal["attention"] = "attention"
    width: int = Field(default=128, ge=2)
    """Features of a state; `heads` divides it."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a block."""
    layers: int = Field(default=2, ge=1)
    """Blocks."""
    expansion: int = Field(default=4, ge=1)
    """How many times wider than a state the dense layer of a block is."""
    positions: Literal["learned", "rotary"] = "rotary"
    skip: bool = False
    """Whether the tokens' own embeddings are pooled too and judged beside the states."""
    pooling: list[Pooling] = Field(default=["mean"], min_length=1)
    """How the states of a text become one vector; several stand side by side."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature, anywhere in a block."""
    token_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability that a token is made an unknown one in training."""

    @model_validator(mode="after")
    def _heads_divide(self) -> AttentionConfig:
        if self.width % self.heads or (self.positions == "rotary" and self.width // self.heads % 2):
            even = ", an even number of features each (rotary positions turn pairs)" if self.positions == "rotary" else ""
            raise ValueError(f"{self.heads} heads cannot share width {self.width}{even}; try width 128, heads 4")
        return self


class Seq2SeqConfig(ModelConfig):
    """A transformer encoder-decoder over one vocabulary, with a pointer that copies tokens of the source."""

    builds = "headrace.models.seq2seq:Seq2Seq"
    name: Literal["seq2seq"] = "seq2seq"
    width: int = Field(default=128, ge=2)
    """Features of a state; `heads` divides it."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a layer."""
    encoder_layers: int = Field(default=2, ge=1)
    decoder_layers: int = Field(default=2, ge=1)
    expansion: int = Field(default=4, ge=1)
    """How many times wider than a state the dense part of a layer is."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature of an embedding, or of what a part of a layer adds."""
    beams: int = Field(default=4, ge=1, le=32)
    """Texts that the search for the best one keeps at a time; 1 is greedy search."""
    length_penalty: float = Field(default=1.0, ge=0.0)
    """Higher favours longer answers; 0 takes the likeliest."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Seq2SeqConfig:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share width {self.width}; try width 128, heads 4")
        return self


class RecurrentLanguageConfig(ModelConfig):
    """A language model: embedding of tokens, recurrent layers, and the embedding again as output."""

    builds = "headrace.models.language:RecurrentLanguage"
    name: Literal["recurrent-language"] = "recurrent-language"
    cell: Literal["lstm", "gru"] = "lstm"
    embedding: int = Field(default=128, ge=1)
    """Features of a token."""
    hidden: int = Field(default=384, ge=1)
    """Features of a state."""
    layers: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature in front of each layer and of the output."""


class GPTConfig(ModelConfig):
    """A language model: a causal transformer with rotary positions, whose keys and values are kept while it writes."""

    builds = "headrace.models.causal:GPT"
    name: Literal["gpt"] = "gpt"
    width: int = Field(default=128, ge=2)
    """Features of a state; `heads` divides it."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a block."""
    layers: int = Field(default=4, ge=1)
    """Blocks."""
    expansion: int = Field(default=4, ge=1)
    """How many times wider than a state the dense part of a block is."""
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Probability of dropping a feature of an embedding, or of what a part of a block adds."""

    @model_validator(mode="after")
    def _heads_divide(self) -> GPTConfig:
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"{self.heads} heads cannot share width {self.width}, an even number of features each; try width 128, heads 4"
            )
        return self


GraphPooling = Literal["mean", "max", "sum", "attention"]


class GCNConfig(ModelConfig):
    """Graph convolutions with ReLU between; a whole graph's nodes are pooled, and one linear layer follows."""

    builds = "headrace.models.graph_networks:GCN"
    name: Literal["gcn"] = "gcn"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1)
    """Features of a node after each hidden layer; one more layer gives a node's answer."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability of dropping a feature in front of each layer."""
    pooling: GraphPooling = "mean"
    """How the nodes of a whole graph become one vector."""


class GATConfig(ModelConfig):
    """Graph attention with ELU between; a whole graph's nodes are pooled, and one linear layer follows."""

    builds = "headrace.models.graph_networks:GAT"
    name: Literal["gat"] = "gat"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[8], min_length=1)
    """Features of a node after each hidden layer, in each head; one more layer gives a node's answer."""
    heads: int = Field(default=8, ge=1)
    """Attention heads of a hidden layer; they stand side by side."""
    output_heads: int = Field(default=1, ge=1)
    """Attention heads of the layer that gives a node's answer; they are averaged."""
    dropout: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Probability of dropping a feature in front of each layer."""
    attention_dropout: float = Field(default=0.6, ge=0.0, lt=1.0)
    """Probability that a node does not hear one of its neighbours in training."""
    pooling: GraphPooling = "mean"
    """How the nodes of a whole graph become one vector."""


class APPNPConfig(ModelConfig):
    """Dense layers for each node by itself, whose answers then travel along the edges; a whole graph's nodes are pooled, and
    one linear layer follows."""

    builds = "headrace.models.graph_networks:APPNP"
    name: Literal["appnp"] = "appnp"
    hidden: list[Annotated[int, Field(ge=1)]] = Field(default=[64], min_length=1)
    """Features of a node after each hidden layer; one more layer gives what travels."""
    steps: int = Field(default=10, ge=1)
    """How many edges far it travels."""
    teleport: float = Field(default=0.1, gt=0.0, lt=1.0)
    """What a node keeps of its own in each step."""
    dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability of dropping a feature in front of each layer."""
    edge_dropout: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Probability that an edge carries nothing in a step of training."""
    pooling: GraphPooling = "mean"
    """How the nodes of a whole graph become one vector."""


MODELS: dict[str, type[ModelConfig]] = {
    "cnn": CNNConfig,
    "mlp": MLPConfig,
    "recurrent": RecurrentConfig,
    "attention": AttentionConfig,
    "seq2seq": Seq2SeqConfig,
    "recurrent-language": RecurrentLanguageConfig,
    "gpt": GPTConfig,
    "gcn": GCNConfig,
    "gat": GATConfig,
    "appnp": APPNPConfig,
}


def config_of(name: str) -> type[ModelConfig]:
    """The settings that the model `name` takes: of an entry of `MODELS`, or of a class of one's own.

    Raises:
        ValueError: no such model, or no such class; with the near miss.
    """
    if not is_dotted(name):
        if name not in MODELS:
            raise ValueError(f"{name!r} is no model; {near_miss(name, MODELS)}")
        return MODELS[name]
    config = getattr(load_class(name), "Config", ModelConfig)
    if not (isinstance(config, type) and issubclass(config, ModelConfig)):
        raise ValueError(f"{name!r}: its Config has to be a subclass of headrace.recipe.models.ModelConfig")
    return config


def build(config: ModelConfig, shape: Any) -> nn.Module:
    """The torch module that `config` names, for inputs and outputs of `shape` (a `headrace.task_types.base.Shape`)."""
    network = load_class(config.name if is_dotted(config.name) else config.builds)
    if isinstance(config, EnsembleConfig) and config.members > 1:
        from headrace.models.ensemble import Ensemble

        return Ensemble(lambda: network(config, shape), config.members)
    built: nn.Module = network(config, shape)
    return built


def build_as(config: ModelConfig, shape: Any, base: type[Network]) -> Network:
    """`build`, for a task whose networks have to be a `base`.

    Raises:
        RecipeError: this one is none.
    """
    network = build(config, shape)
    if not isinstance(network, base):
        raise RecipeError(
            f"{config.name!r} builds no {base.__name__}, and this task needs one",
            where="model.name",
            hint=f"name a model of this task, or a subclass of {base.__module__}:{base.__qualname__}",
        )
    return network
