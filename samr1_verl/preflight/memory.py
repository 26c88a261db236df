"""The parts of the memory plan of `samr1 doctor`: terms, stages, and the numbers of a run on which they depend.

A term is a number of bytes with its formula in words. Terms whose formula says "estimate" have no measured or derived
constant. GB are 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from samr1_verl.config import ACTOR, ROLLOUT
from samr1_verl.preflight.policy_size import PolicySize

GB = 10**9
REF = "actor_rollout_ref.ref"
# Bytes per number, by the names that verl's PrecisionType accepts.
_BYTES = {"fp32": 4, "float32": 4, "32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2, "16": 2}


@dataclass(frozen=True)
class Term:
    """One use of memory. `remedy` names the key that makes it smaller; empty: there is none."""

    name: str
    size: int  # bytes
    formula: str
    remedy: str = ""


@dataclass(frozen=True)
class Stage:
    """The terms that lie in memory at the same time."""

    name: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """Bytes of all terms."""
        return sum(term.size for term in self.terms)

    def lines(self) -> list[str]:
        """The stage as text: its sum, then one line per term, the largest first."""
        terms = sorted((term for term in self.terms if term.size), key=lambda term: -term.size)
        return [f"{gb(self.size)}  {self.name}", *(f"  {gb(term.size)}  {term.name}: {term.formula}" for term in terms)]

    def remedies(self, count: int = 3) -> str:
        """What to change: the remedies of the largest terms that have one."""
        terms = sorted((term for term in self.terms if term.remedy), key=lambda term: -term.size)[:count]
        return "; ".join(f"{term.name} ({gb(term.size).strip()}): {term.remedy}" for term in terms)


def gb(size: float) -> str:
    """Bytes as text in GB, aligned."""
    return f"{size / GB:7.2f} GB"


def bytes_of(dtype: Any) -> int:
    """Bytes per number of a dtype's name in verl's configuration."""
    return _BYTES[str(dtype).removeprefix("torch.").lower()]


@dataclass(frozen=True)
class Shape:
    """The numbers of a run, from its configuration."""

    size: PolicySize
    nodes: int
    local: int  # training workers, and GPUs, per node
    ranks: int  # workers among which FSDP2 shares one copy of the policy
    param: int  # bytes per parameter of the policy and its gradients and states (fsdp_config.model_dtype)
    compute: int  # bytes per number in the forward pass (mixed_precision.param_dtype)
    reference: int  # bytes per parameter of the reference model; 0: no reference model
    tokens: int  # per rollout: longest prompt and answer
    patches: int  # per rollout, of the images of all its turns
    rollouts: int  # per step
    on_cpu: bool

    @classmethod
    def of(cls, config: DictConfig, size: PolicySize) -> Shape:
        """The numbers of a composed recipe."""
        fsdp, workers = (
            config.actor_rollout_ref.actor.fsdp_config,
            config.trainer.n_gpus_per_node * config.trainer.nnodes,
        )
        kl = config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward
        mixed = fsdp.get("mixed_precision") or {}
        return cls(
            size=size,
            nodes=config.trainer.nnodes,
            local=config.trainer.n_gpus_per_node,
            ranks=fsdp.fsdp_size if 0 < fsdp.fsdp_size < workers else workers,
            param=bytes_of(fsdp.model_dtype or "fp32"),
            compute=bytes_of(mixed.get("param_dtype", "bf16")),
            # with LoRA the reference is the policy without its adapter
            reference=bytes_of(OmegaConf.select(config, f"{REF}.fsdp_config.model_dtype") or "bf16")
            if kl and not size.adapter
            else 0,
            tokens=config.data.max_prompt_length + config.data.max_response_length,
            patches=_patches(config, size),
            rollouts=config.data.train_batch_size * config.actor_rollout_ref.rollout.n,
            on_cpu=config.trainer.device == "cpu",
        )

    @property
    def workers(self) -> int:
        """Training workers of all nodes."""
        return self.nodes * self.local

    @property
    def image_bytes(self) -> int:
        """Bytes of a rollout's pixel_values, float32, as the processor makes them."""
        return self.patches * self.size.patch_values * 4


def _patches(config: DictConfig, size: PolicySize) -> int:
    """Patches per rollout; without samr1.policy_size, an image has as many as a whole prompt of image tokens."""
    policy_wh, refine = config.samr1.policy_size, config.samr1.get("refine")
    images = 1 if refine is None else refine.max_turns
    if policy_wh is None:
        return images * config.data.max_prompt_length * size.merge**2
    return images * (policy_wh[0] // size.patch) * (policy_wh[1] // size.patch)


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass holds: `rows` rollouts with `tokens` tokens together."""

    rows: int
    tokens: int
    key: str  # the key that sets its size
    value: int


def micro_batch(config: DictConfig, shape: Shape, section: str) -> MicroBatch:
    """The micro-batch of the update (section `actor`), or of the log-probs (`rollout`, `ref`)."""
    names = {
        "actor": (ACTOR, "use_dynamic_bsz", "ppo_max_token_len_per_gpu", "ppo_micro_batch_size_per_gpu"),
        "rollout": (
            ROLLOUT,
            "log_prob_use_dynamic_bsz",
            "log_prob_max_token_len_per_gpu",
            "log_prob_micro_batch_size_per_gpu",
        ),
        "ref": (REF, "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu", "log_prob_micro_batch_size_per_gpu"),
    }
    prefix, dynamic, limit, rows = names[section]
    values = OmegaConf.select(config, prefix)
    if values.get(dynamic):
        tokens = int(values[limit])
        image_tokens = shape.patches // shape.size.merge**2
        return MicroBatch(max(1, tokens // max(1, image_tokens)), tokens, f"{prefix}.{limit}", tokens)
    count = int(values[rows] or 1)
    return MicroBatch(count, count * shape.tokens, f"{prefix}.{rows}", count)
