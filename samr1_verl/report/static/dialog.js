// The dialog of one row: the answer of each run at the step, and the row's score during training.

import { byId, h } from "./dom.js";
import { chart } from "./chart.js";
import { chips, scoreTable } from "./details.js";
import { layersOf } from "./gallery.js";
import { rowLines } from "./series.js";
import { answerOf } from "./turns.js";
import { viewer } from "./viewer.js";

export function startDialog(data, model, state, gallery) {
  const dialog = byId("sample");
  const position = () => data.rows.findIndex((row) => row.key === state.get("row"));
  const browse = (by) => {
    const rows = gallery.rows();
    if (!rows.length) return;
    const at = rows.indexOf(position());
    state.set({ row: data.rows[rows[(at + by + rows.length) % rows.length]].key });
  };
  dialog.addEventListener("close", () => state.set({ row: "" }));
  byId("step-back").addEventListener("click", () => gallery.move(-1));
  byId("step-on").addEventListener("click", () => gallery.move(1));
  byId("row-back").addEventListener("click", () => browse(-1));
  byId("row-on").addEventListener("click", () => browse(1));

  const draw = () => {
    const at = position();
    if (at < 0) {
      if (dialog.open) dialog.close();
      return;
    }
    byId("sample-body").replaceChildren(...body(data, model, state, at, gallery.step()));
    byId("sample-step").textContent = `step ${gallery.step()}`;
    if (!dialog.open) dialog.showModal();
  };
  state.listen((changed) => {
    if (changed.has("row") || dialog.open) draw();
  });
  draw();
  return { browse, isOpen: () => dialog.open };
}

function body(data, model, state, position, step) {
  const row = data.rows[position], samples = model.samples(step, position), layers = layersOf(state);
  const [height, width] = row.size;
  const [shownWidth, shownHeight] = data.images[row.image].size;
  const both = data.runs.length > 1;
  const sides = data.runs.map((run, i) =>
    h(
      "section",
      { class: "side" },
      both ? h("p", { class: "run-name" }, run.name) : null,
      samples[i]
        ? answerOf(data, row, samples[i], layers, [chips(data, samples[i])])
        : [viewer(data, row, null, layers), h("p", { class: "quiet" }, "No sample of this step.")],
    ),
  );
  const score = data.names.includes("acc") ? "acc" : data.names[0];
  const lines = score === undefined ? [] : rowLines(data, model, position, score);
  const progress = { title: `This row during training: ${score === "acc" ? "IoU" : score}`, note: "Click a step to show it" };
  return [
    h("h2", { class: "sentence", id: "sample-title" }, row.sentence),
    h(
      "p",
      { class: "quiet" },
      [row.key, row.category, `${width}×${height}`, shownWidth === width && shownHeight === height ? null : `masks drawn at ${shownWidth}×${shownHeight}`].filter(Boolean).join(" · "),
    ),
    h("div", { class: both ? "sides" : "alone" }, sides),
    h(
      "div",
      { class: "sides" },
      lines.length ? marked(chart(progress, lines, { onpick: (to) => state.set({ step: model.nearest(to) }) }), step) : null,
      h("section", {}, h("h3", {}, "Scores"), h("div", { class: "scroll", tabindex: 0 }, scoreTable(data, samples, both ? data.runs.map((run) => run.name) : ["value"]))),
    ),
  ];
}

function marked(figure, step) {
  figure.mark(step);
  return figure;
}
