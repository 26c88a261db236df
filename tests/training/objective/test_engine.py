"""verl's own engine, on one and on two real processes, against the formula on whole groups."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.training.objective import reference
from tests.training.objective.engine_process import BETA, SPLITS, VOCABULARY, anchors, rollout_batch
from tests.training.objective.world import PROMPT, Rollout

pytestmark = pytest.mark.slow  # verl training workers in processes of their own
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes meet, with a small language model in `model`."""
    folder = tmp_path_factory.mktemp("engine")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the paper's formula, one unpadded rollout at a time."""
    model = Qwen2ForCausalLM.from_pretrained(folder / "model", attn_implementation="sdpa")

    def log_prob(rollout: Rollout) -> torch.Tensor:
        ids = torch.cat([torch.zeros(PROMPT, dtype=torch.int64), rollout.tokens_T])
        log_probs_TV = model(ids[None]).logits[0, PROMPT - 1 : -1].log_softmax(-1)
        return log_probs_TV.gather(-1, rollout.tokens_T[:, None]).squeeze(-1)

    objectives = [
        reference.group_objective(
            [rollout.reward for rollout in group],
            [log_prob(rollout) for rollout in group],
            [anchors(rollout)[0] for rollout in group],
            [anchors(rollout)[1] for rollout in group],
            low=0.2,
            high=0.3,
            beta=BETA,
            standardize=True,
        )
        for group in rollout_batch().groups.values()
    ]
    loss = -torch.stack(objectives).mean()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def run_engine(folder: Path, world_size: int) -> list[dict]:
    """One result for each of SPLITS, from `world_size` processes that average their gradients over gloo."""
    environment = {**os.environ, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(world_size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.objective.engine_process", str(folder), str(rank), str(world_size)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return torch.load(folder / f"results{world_size}.pt", weights_only=True)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.thorough), 2])
def test_loss_and_gradients_are_the_papers(
    folder: Path, expected: tuple[float, dict[str, torch.Tensor]], world_size: int
) -> None:
    loss, gradients = expected
    largest = max(gradient.abs().max() for gradient in gradients.values())
    results = run_engine(folder, world_size)
    assert len({result["micro_batches"] for result in results}) == len(SPLITS)
    for result in results:
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert result["gradients"].keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (result["gradients"][name] - gradient).abs().max() <= 1e-5 * largest, name
