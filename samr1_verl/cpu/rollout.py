"""The rollout `transformers` (`actor_rollout_ref.rollout.name`): verl's rollout interface for `generation.Generator`.

Each training worker has one server, a Ray actor with a whole copy of the policy. verl's agent loops send prompts to the
server (`TransformersServer.generate`). After each step the worker's adapter sends the new weights
(`ServerAdapter.update_weights`), and the server writes them into its parameters.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator as Iterator
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.model import convert_weight_keys, get_hf_auto_model_class
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.config import HFModelConfig, RolloutConfig
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from samr1_verl.cpu import ROLLOUT
from samr1_verl.cpu.batching import Batcher
from samr1_verl.cpu.generation import Answer, Generator, Request, RequestError, SamplingParams

QUIET_SECONDS = 0.05  # for Batcher: longer than an agent loop takes to prepare the next prompt
START_SECONDS = 600.0  # maximum time for the start of a server


def server_name(replica_rank: int) -> str:
    return f"{ROLLOUT}_server_{replica_rank}"


class TransformersServer:
    """A server with a copy of the policy: it answers prompts in batches and takes new weights between two batches."""

    def __init__(self, config: RolloutConfig, model_config: Any, replica_rank: int) -> None:
        self.config = config
        self.model_config: HFModelConfig = omega_conf_to_dataclass(model_config, dataclass_type=HFModelConfig)
        self.global_steps = -1  # version of the weights, under verl's name; -1: no update yet
        torch.manual_seed(config.seed + replica_rank)
        self.generator = self._load()
        # The same parameters under the names that the training worker sends.
        state = self.generator.model.state_dict()
        self.weights = convert_weight_keys(state, self.generator.model)
        self.missing = set(self.weights)
        self.batcher: Batcher[Request, Answer] = Batcher(self.generator.generate, config.max_num_seqs, QUIET_SECONDS)

    def _load(self) -> Generator:
        hf_config, tokenizer = self.model_config.hf_config, self.model_config.tokenizer
        model = get_hf_auto_model_class(hf_config).from_pretrained(
            self.model_config.local_path,
            config=hf_config,
            dtype=PrecisionType.to_dtype(self.config.dtype),
            attn_implementation="sdpa",
            trust_remote_code=self.model_config.trust_remote_code,
        )
        return Generator(model, self.model_config.processor, self._end_of_sequence(), tokenizer.pad_token_id)

    def _end_of_sequence(self) -> set[int]:
        """EOS tokens of the tokenizer and of the policy's generation_config.json; empty with `rollout.ignore_eos`."""
        if self.config.ignore_eos:
            return set()
        generation_config = self.model_config.generation_config
        more = None if generation_config is None else generation_config.eos_token_id
        return {self.model_config.tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])} - {None}

    async def ready(self) -> None:
        """Return when the policy is loaded."""

    async def generate(
        self,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        request_id: str,
        image_data: list[Any] | None = None,
        **others: Any,
    ) -> TokenOutput:
        """The answer to one prompt, with log-probs as in verl's actor.

        Raises:
            RequestError: the request has videos, audio, processor options or unknown sampling parameters, or its
                prompt is too long.
        """
        request = self._request(prompt_ids, sampling_params, image_data, **others)
        return self._output(await self.batcher.submit(request))

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Return when the running batch has ended. Other requests wait for `resume_generation`, and for new weights.

        verl's asynchronous trainers call it before an update. No request is aborted or rejected, because a batch
        cannot be interrupted.
        """
        await self.batcher.pause()

    async def resume_generation(self) -> None:
        """Let batches start again."""
        self.batcher.resume()

    async def generate_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[TokenOutput | RequestError]:
        """The answers to some prompts, computed together and in this order, so that they are the same to the bit.

        Args:
            requests: arguments of `generate` without `request_id`.

        Returns:
            For each request its answer, or the error that `generate` would raise.
        """
        outcomes: list[Any] = []
        for given in requests:
            try:
                outcomes.append(self._request(**given))
            except RequestError as error:
                outcomes.append(error)
        valid = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, Request)]
        if valid:
            answers = await self.batcher.run(self.generator.generate, [outcomes[number] for number in valid])
            for number, answer in zip(valid, answers, strict=True):
                outcomes[number] = self._output(answer)
        return outcomes

    def _request(
        self,
        prompt_ids: list[int],
        sampling_params: Mapping[str, Any],
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        **unsupported: Any,
    ) -> Request:
        if video_data or unsupported:
            others = (["video_data"] if video_data else []) + sorted(unsupported)
            raise RequestError(
                f"the rollout `transformers` takes text and images, found {others}; use `vllm` for these"
            )
        room = self._room(len(prompt_ids))
        config = self.config
        default = min(config.response_length, config.prompt_length + config.response_length - len(prompt_ids), room)
        params = SamplingParams.from_request(sampling_params, default_max_tokens=default)
        return Request(prompt_ids, params, image_data or ())

    def _output(self, answer: Answer) -> TokenOutput:
        return TokenOutput(
            token_ids=answer.token_ids,
            log_probs=answer.log_probs,
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _room(self, prompt_tokens: int) -> int:
        limit = self.config.max_model_len or self.model_config.hf_config.get_text_config().max_position_embeddings
        if prompt_tokens >= limit:
            raise RequestError(
                f"a prompt of {prompt_tokens} tokens leaves no room in a context of {limit}. Raise "
                "actor_rollout_ref.rollout.max_model_len, or shorten the prompt (data.max_prompt_length)"
            )
        return limit - prompt_tokens

    async def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Copy new values into some of the parameters, between two batches. Raises ValueError for unknown names."""
        await self.batcher.run(self._copy, weights)

    @torch.no_grad()
    def _copy(self, weights: dict[str, torch.Tensor]) -> None:
        unknown = sorted(set(weights) - set(self.weights))
        if unknown:
            raise ValueError(
                f"the training worker sent weights that {self.model_config.local_path} does not have: {unknown[:3]}"
            )
        for name, tensor in weights.items():
            self.weights[name].copy_(tensor)
        self.missing -= set(weights)

    async def finish_weights(self, global_steps: int | None) -> None:
        """End an update, and check that it had every parameter.

        Raises:
            ValueError: a parameter was not in the update.
        """
        missing, self.missing = sorted(self.missing), set(self.weights)
        if missing:
            raise ValueError(f"the training worker's update lacked {len(missing)} weights, among them {missing[:3]}")
        if global_steps is not None:
            self.global_steps = global_steps


class TransformersReplica(RolloutReplica):
    """Starts a server on the node of its training worker.

    The methods for sleep and caches do nothing, because keys and values exist only during a batch.
    """

    async def launch_servers(self) -> None:
        if self.world_size != 1:
            raise ValueError(
                "actor_rollout_ref.rollout.{tensor,data,pipeline}_model_parallel_size make "
                f"{self.world_size} workers per replica; the rollout `transformers` holds the whole policy. Set each "
                "to 1"
            )
        node_id = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(TransformersServer)
            .options(
                name=server_name(self.replica_rank),
                max_concurrency=self.max_concurrency,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
            )
            .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
        )
        try:
            await asyncio.wait_for(server.ready.remote(), START_SECONDS)
        except asyncio.TimeoutError as error:
            raise RuntimeError(
                f"the rollout server {server_name(self.replica_rank)} did not start within {START_SECONDS:.0f} s. It "
                f"needs one CPU of Ray; free now: {ray.available_resources()}. Raise ray_kwargs.ray_init.num_cpus, "
                "or lower actor_rollout_ref.rollout.agent.num_workers and reward.num_workers"
            ) from error
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.replica_rank)

    async def sleep(self) -> None: ...

    async def wake_up(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def start_profile(self, **kwargs: Any) -> None: ...

    async def stop_profile(self) -> None: ...


class ServerAdapter(BaseRollout):
    """The rollout interface in a training worker: it sends the worker's weights to the server of the same rank."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.server: Any = None  # set later: the server is started after the training worker

    async def resume(self, tags: list[str]) -> None:
        """Do nothing: the weights stay in memory."""

    async def release(self) -> None:
        """Do nothing: no memory is in use between batches."""

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterator[tuple[str, torch.Tensor], None, None],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        peft_config: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Send all weights, in parts of at most `checkpoint_engine.update_weights_bucket_megabytes`.

        Raises:
            NotImplementedError: the weights are a LoRA adapter that is not merged, or a delta update.
        """
        if peft_config is not None:
            raise NotImplementedError(
                "the rollout `transformers` takes whole weights. Set actor_rollout_ref.model.lora.merge=true"
            )
        if wire_format != "named_tensors":
            raise NotImplementedError(
                f"the rollout `transformers` takes wire_format named_tensors, found {wire_format!r}"
            )
        if self.server is None:
            self.server = ray.get_actor(server_name(self.replica_rank))
        limit = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        part: dict[str, torch.Tensor] = {}
        size = 0
        for name, tensor in weights:
            if part and size + tensor.nbytes > limit:
                await self.server.load_weights.remote(part)
                part, size = {}, 0
            part[name] = tensor
            size += tensor.nbytes
        await self.server.load_weights.remote(part)
        await self.server.finish_weights.remote(global_steps)
