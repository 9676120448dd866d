"""What an experiment asks of a node: model, adapter, data and local training.

These models are read from the experiment file by the engine and travel to the nodes as JSON, so they live where both
may import them. Unknown keys are refused; a model that was built is valid.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Frozen configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(Spec):
    """The pre-trained causal language model that every node holds."""

    base: str = Field(
        "builtin:tiny",
        description="builtin:tiny, a local folder in Hugging Face format, "
        "or a hub name such as openlm-research/open_llama_3b_v2",
    )
    dtype: Literal["float32", "bfloat16", "nf4"] = Field(
        "float32",
        description="number format of the frozen base weights; nf4 has 4 bits (QLoRA, arXiv 2305.14314), computes in "
        "bfloat16 and needs the extra testbed[quantized] on every board",
    )


class LoraSpec(Spec):
    """Low-rank adapters, W + (alpha / rank) B A (Hu et al., arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=1024, description="inner dimension of the adapters")
    alpha: float = Field(16.0, gt=0, description="the adapters' share is alpha / rank")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="names of the adapted linear layers"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="of the adapters' input while training")
    freeze_a: bool = Field(
        False, description="train and send B only (FFA-LoRA, arXiv 2403.12313): averaging is then exactly linear"
    )
    bottleneck: int = Field(
        0,
        ge=0,
        le=4096,
        description="width of a bottleneck adapter behind every feed-forward block (arXiv 1902.00751); 0 for none",
    )


class PartitionSpec(Spec):
    """How the training rows are dealt to the nodes."""

    kind: Literal["iid", "dirichlet", "label", "source"] = Field(
        "iid",
        description="iid: equal random shares; dirichlet: label shares drawn from Dirichlet(alpha); "
        "label: labels_per_node labels a node; source: each source of the data goes to one node",
    )
    alpha: float = Field(
        0.5, gt=0, description="concentration of the Dirichlet draw; small means strongly different nodes"
    )
    labels_per_node: int = Field(2, ge=1, description="of kind label: how many labels each node holds")


class DataSpec(Spec):
    """A data set, the template that turns its rows into text, and its partition over the nodes."""

    source: str = Field(
        "builtin:docstrings",
        description="builtin:docstrings, a JSONL (also .gz) or CSV file, a folder with train and test files, "
        "a datasets folder, or a hub name",
    )
    template: Literal[
        "text", "topic", "gsm8k", "yahoo", "sst2", "qnli", "alpaca", "dolly", "preference", "dbpedia14"
    ] = Field("text", description="prompt template")
    fields: dict[str, str] = Field(
        default_factory=dict,
        description="template field = column of the file, where the names differ; label and source too",
    )
    train: str = Field("train", description="name of the training split")
    test: str = Field("test", description="name of the held-out split")
    max_train: int | None = Field(None, ge=1, description="use at most so many training rows (a seeded draw)")
    max_test: int | None = Field(None, ge=1, description="use at most so many held-out rows (a seeded draw)")
    partition: PartitionSpec = PartitionSpec()


class TrainingSpec(Spec):
    """Local training of one node in one round."""

    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="starts afresh every round")
    learning_rate: float = Field(1e-3, gt=0, description="constant within a round")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 for sgd")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd")
    local_steps: int | None = Field(
        None, ge=1, description="optimiser steps in a round; 10 if neither this nor local_epochs is given"
    )
    local_epochs: int | None = Field(None, ge=1, description="passes over the node's rows in a round")
    batch_size: int = Field(8, ge=1, description="rows of one forward pass")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes of one optimiser step")
    sequence_length: int = Field(128, ge=8, description="tokens; longer rows are cut")
    loss_on: Literal["response", "all"] = Field("response", description="tokens that count in the loss")
    task: Literal["language", "classification"] = Field(
        "language", description="classification adds accuracy: the label word with the highest likelihood"
    )
    max_grad_norm: float | None = Field(1.0, gt=0, description="gradients longer than this are shortened to it")

    @model_validator(mode="before")
    @classmethod
    def _one_length(cls, content: Any) -> Any:
        if isinstance(content, dict):
            given = [key for key in ("local_steps", "local_epochs") if content.get(key) is not None]
            if len(given) > 1:
                raise ValueError("local_steps and local_epochs cannot both be given; leave one out")
            if not given:
                return {**content, "local_steps": 10}
        return content


class AlignmentSpec(Spec):
    """Local alignment with preferences: the pairs, the rewards, and how boards step; two objectives, in this order:
    helpfulness, safety.
    """

    source: str = Field(
        description="preference pairs, as of data.source: columns prompt, chosen, rejected and kind (helpful or safety)"
    )
    fields: dict[str, str] = Field(default_factory=dict, description="column names, as of data.fields")
    max_pairs: int | None = Field(None, ge=2, description="use at most so many training pairs (a seeded draw)")
    partition: PartitionSpec = Field(
        PartitionSpec(), description="how the pairs are dealt, by prompt; label is the kind"
    )
    requires: tuple[Literal["helpful", "safety"], ...] = Field(
        ("helpful", "safety"), description="kinds of which every node must hold pairs; checked before anything is sent"
    )
    rewards: str = Field(
        "learned",
        description="learned: heads on the base model, trained on all training pairs; programmatic: overlap with the "
        "preferred response and share of listed words; opposed: number of listed words against brevity, in conflict by "
        "construction; or a folder of saved reward models",
    )
    listed: tuple[str, ...] = Field(
        (), description="words that programmatic safety, or opposed helpfulness, counts; a built-in list if empty"
    )
    method: Literal["dpo", "modpo", "ppo"] = Field(
        "ppo",
        description="dpo: on pairs of both kinds; modpo: on pairs of the weightier, margins from the other's reward "
        "(arXiv 2310.03708); ppo: on rewards of samples",
    )
    combine: Literal["weighted", "mgda", "safe"] = Field(
        "weighted",
        description="of the objectives: sum by the node's weights; the direction that improves both; or helpfulness "
        "under a limit on cost",
    )
    steps: int = Field(20, ge=1, description="optimiser steps of a node in a round of alignment")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    beta: float = Field(0.05, gt=0, description="strength of the leash to the policy before alignment")
    zeta: float = Field(0.0, ge=0, description="pull of trained shared values to where they were")
    batch_size: int = Field(8, ge=1, description="prompts, or pairs, of a step")
    group: int = Field(4, ge=2, description="responses sampled to each prompt")
    epochs: int = Field(1, ge=1, description="passes over each batch of samples")
    clip: float = Field(0.2, gt=0, lt=1, description="how far the ratio to the sampling policy may go from 1")
    max_tokens: int = Field(32, ge=1, description="most tokens of a sampled response")
    length: int = Field(192, ge=8, description="most tokens of prompt and response")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients longer than this are shortened to it")
    cost_limit: float = Field(0.0, description="most mean cost of combine safe, in reference deviations")
    queue_step: float = Field(1.0, gt=0, description="step of its virtual queue")
    kl_limit: float = Field(50.0, gt=0, description="nats a response at which alignment ends as diverged")
    reward_limit: float = Field(20.0, gt=0, description="mean normalised reward at which it does")
    reference_prompts: int = Field(32, ge=2, description="prompts whose samples set the scale of the rewards")
    measure_prompts: int = Field(16, ge=2, description="held-out prompts on which rewards and KL are measured")

    @model_validator(mode="after")
    def _room(self) -> AlignmentSpec:
        if self.max_tokens >= self.length:
            raise ValueError(f"max_tokens is {self.max_tokens}, and the whole length {self.length}; make it smaller")
        if self.combine == "safe" and self.method != "ppo":
            raise ValueError('combine = "safe" needs rewards of samples: use method = "ppo"')
        if self.combine == "mgda" and self.method == "modpo":
            raise ValueError('method = "modpo" has one loss, which mgda cannot combine: use dpo or ppo')
        return self


class JobSpec(Spec):
    """All that a node needs to take part in an experiment."""

    seed: int = Field(0, ge=0)
    nodes: tuple[str, ...] = Field(
        min_length=1, description="every node of the experiment, in the order of the partition"
    )
    model: ModelSpec = ModelSpec()
    lora: LoraSpec = LoraSpec()
    data: DataSpec = DataSpec()
    training: TrainingSpec = TrainingSpec()
    alignment: AlignmentSpec | None = None
