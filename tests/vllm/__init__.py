"""The vLLM rollout on the CPU, in an environment of its own: run.sh. The normal suite does not collect these files."""
