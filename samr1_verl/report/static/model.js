// The samples by run, step and row, and the filters and orders of rows.

import { scoreOf } from "./details.js";

export function createModel(data) {
  const steps = [...new Set(data.runs.flatMap((run) => Object.keys(run.samples).map(Number)))].sort((a, b) => a - b);
  const byRow = data.runs.map((run) =>
    new Map(Object.entries(run.samples).map(([step, samples]) => [Number(step), new Map(samples.map((entry) => [entry.row, entry]))])),
  );
  const everything = data.runs.flatMap((run) => Object.values(run.samples).flat());
  const sample = (run, step, row) => byRow[run].get(step)?.get(row) ?? null;
  return {
    steps,
    sample,
    samples: (step, row) => data.runs.map((_, run) => sample(run, step, row)),
    sources: [...new Set(data.rows.map((row) => row.source))].sort(),
    reasons: [...new Set(everything.map((entry) => entry.reason).filter((reason) => reason !== null))].sort(),
    scores: data.names.filter((name) => !name.startsWith("answer/")),
    nearest: (step) => steps.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best), steps[0]),
    // Positions of the rows that have, in any run, a sample at `step` that fits the filters.
    rows(step, state) {
      const fits = filter(data, state);
      const fitting = data.rows.map((_, row) => row).filter((row) => this.samples(step, row).some((entry) => entry && fits(entry, data.rows[row])));
      return sorted(fitting, this, step, state, data);
    },
  };
}

function filter(data, state) {
  const [words, reason, source] = [state.get("q").toLowerCase(), state.get("reason"), state.get("source")];
  const [low, high] = ["min", "max"].map((key) => (state.get(key) === "" ? null : Number(state.get(key))));
  return (sample, row) => {
    if (source && row.source !== source) return false;
    if (reason === "usable" && sample.reason !== null) return false;
    if (reason === "unusable" && sample.reason === null) return false;
    if (reason && !["usable", "unusable"].includes(reason) && sample.reason !== reason) return false;
    if (words && !`${row.sentence}\n${row.category}\n${sample.response}`.toLowerCase().includes(words)) return false;
    const score = scoreOf(data, sample, state.get("by"));
    return (low === null || (score !== null && score >= low)) && (high === null || (score !== null && score <= high));
  };
}

// Rows in the order of the first run's score; rows without a score are last. `gain`: score minus that of the first sample.
function sorted(rows, model, step, state, data) {
  const order = state.get("sort");
  if (order === "row") return rows;
  const score = (at, row) => {
    const entry = model.sample(0, at, row);
    return entry === null ? null : scoreOf(data, entry, state.get("by"));
  };
  const value = (row) => {
    const now = score(step, row);
    if (order !== "gain" || now === null) return now;
    const first = model.steps.map((at) => score(at, row)).find((early) => early !== null);
    return now - first;
  };
  const sign = order === "worst" ? 1 : -1;
  const values = new Map(rows.map((row) => [row, value(row)]));
  return rows.toSorted((a, b) => {
    const [left, right] = [values.get(a), values.get(b)];
    if (left === null || right === null) return (left === null) - (right === null);
    return sign * (left - right);
  });
}
