// Which lines a panel of the page has: one for each series and run.

// Colour by series, dashes for the second run; where a panel has one series, colour by run.
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

// The curve of one row through training: the score `name` of its samples.
export function rowLines(data, model, row, name) {
  const at = data.names.indexOf(name);
  return data.runs.flatMap((run, i) => {
    const found = model.steps.map((step) => [step, model.sample(i, step, row)?.scores[at] ?? null]).filter(([, value]) => value !== null);
    if (!found.length) return [];
    return [{ name: data.runs.length === 1 ? name : run.name, colour: i, dashed: i > 0, steps: found.map(([step]) => step), values: found.map(([, value]) => value) }];
  });
}
