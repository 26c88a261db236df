// The lines of a panel: one line per series and run.

// The colour depends on the series, and the second run is dashed. In a panel with one series the colour depends on the run.
export function linesOf(panel, runs) {
  const lines = [];
  panel.series.forEach(({ tag, label }, series) =>
    runs.forEach((run, i) => {
      if (!(tag in run.curves)) return;
      const [steps, values] = run.curves[tag];
      const name = runs.length === 1 ? label : panel.series.length === 1 ? run.name : `${label}, ${run.name}`;
      lines.push({ name, tag, colour: panel.series.length === 1 ? i : series, dashed: i > 0, steps, values });
    }),
  );
  return lines;
}

// The lines of one row during training: the score `name` of its samples, one line per run.
export function rowLines(data, model, row, name) {
  const at = data.names.indexOf(name);
  return data.runs.flatMap((run, i) => {
    const scored = model.steps.map((step) => [step, model.sample(i, step, row)?.scores[at] ?? null]).filter(([, value]) => value !== null);
    if (!scored.length) return [];
    return [{ name: data.runs.length === 1 ? name : run.name, colour: i, dashed: i > 0, steps: scored.map(([step]) => step), values: scored.map(([, value]) => value) }];
  });
}
