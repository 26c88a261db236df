#!/usr/bin/env bash
# Every reward through every trainer. Makes the corpus and the exported rows, makes an environment for each trainer that
# does not share one with verl, runs the checks, and prints the table. `make venv weights data` must have run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$PWD/runs/trainers
export SAMR1_CORPUS=$work/corpus SAMR1_EXPORTED=$work/exported OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
rm -rf "$work"

environment() { # trainer: .venv-TRAINER with the exact versions of its requirements, and this package
    local venv=.venv-$1 list=tests/trainers/$1/requirements.txt
    local stamp=$venv/.installed wanted
    wanted=$(cat "$list" pyproject.toml | sha256sum)
    [[ -e $stamp && $(< "$stamp") == "$wanted" ]] && return
    "${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$venv"
    # The list is complete, so there is nothing to resolve. The rewards need neither verl nor Ray.
    local pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install --no-deps --requirement "$list"
    "${pip[@]}" install --no-deps --no-build-isolation --editable .
    echo "$wanted" > "$stamp"
}

.venv/bin/python -m tests.trainers.corpus "$SAMR1_CORPUS"
for trainer in verl trl verifiers swift; do
    .venv/bin/samr1 data export data/shapes/val.parquet --for $trainer --recipe samr1_tiny --out "$SAMR1_EXPORTED/$trainer"
done

status=0
.venv/bin/python -m pytest tests/trainers || status=1
for trainer in verifiers swift; do
    environment $trainer
    # A warning of a trainer is shown; only in the tests without it is a warning an error.
    .venv-$trainer/bin/python -m pytest -W default tests/trainers/$trainer/check_$trainer.py || status=1
done
.venv/bin/python -m tests.trainers.table "$SAMR1_CORPUS" || status=1
exit $status
