# samr1-verl for GPUs, with the tested versions of constraints-gpu.txt:
#   docker build -t samr1-verl .
#   docker run --gpus all --ipc=host -v $PWD/data:/workspace/data -v $PWD/runs:/workspace/runs samr1-verl samr1 doctor
#
# The wheels of torch and vLLM bring CUDA's libraries, so a plain Python image is enough; the host has the driver.
FROM python:3.11-slim-bookworm

# git: verl's tracking reads a checkout's revision. gcc, g++: Triton compiles kernels when a run starts.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/samr1-verl
COPY constraints-gpu.txt pyproject.toml README.md LICENSE ./
COPY hydra_plugins hydra_plugins
COPY recipes recipes
COPY reward_fns reward_fns
COPY samr1_verl samr1_verl
RUN pip install --no-cache-dir -c constraints-gpu.txt '.[vllm,service,report]' ijson

# Data, models and runs are mounted here; the recipes' paths are relative to it.
WORKDIR /workspace
CMD ["samr1", "doctor"]
