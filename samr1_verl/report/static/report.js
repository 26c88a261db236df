// The report of one run, or of two runs side by side.

import { byId, h, short } from "./dom.js";
import { chart } from "./chart.js";
import { startDialog } from "./dialog.js";
import { startFilters, startGallery } from "./gallery.js";
import { startKeys } from "./keys.js";
import { createModel } from "./model.js";
import { linesOf } from "./series.js";
import { createState } from "./state.js";
import { startTheme, toggleTheme } from "./theme.js";

const data = JSON.parse(byId("data").textContent);
const model = createModel(data), state = createState();

document.body.classList.toggle("compared", data.runs.length > 1);
startTheme();
summary();
const charts = startCurves();
const gallery = model.steps.length ? startGallery(data, model, state) : null;
const filters = gallery ? startFilters(data, model, state) : null;
const dialog = gallery ? startDialog(data, model, state, gallery) : null;
byId("samples").hidden = !gallery;
byId("no-samples").hidden = Boolean(gallery);
if (gallery) {
  byId("drawn-at").textContent = drawnAt();
  const mark = () => charts.forEach((figure) => figure.mark(gallery.step()));
  state.listen((changed) => changed.has("step") && mark());
  mark();
}
startKeys({
  ArrowLeft: () => gallery?.move(-1),
  ArrowRight: () => gallery?.move(1),
  j: () => dialog?.browse(1),
  k: () => dialog?.browse(-1),
  " ": () => gallery?.play(),
  m: () => filters?.toggle("mask"),
  t: () => filters?.toggle("truth"),
  b: () => filters?.toggle("box"),
  p: () => filters?.toggle("points"),
  "/": () => {
    byId("filters").open = true;
    byId("q").focus();
  },
  d: toggleTheme,
});
for (const link of document.querySelectorAll("[data-to]"))
  link.addEventListener("click", () => byId(link.dataset.to).scrollIntoView());

// First and last value of the most important figures.
function summary() {
  const important = ["gIoU", "Mask IoU,", "cIoU", "Reward,", "Reward"];
  const order = (panel) => important.findIndex((start) => panel.title.startsWith(start));
  const panels = data.panels.filter((panel) => order(panel) >= 0 && panel.title !== "Reward latency" && panel.series.length);
  panels.sort((a, b) => order(a) - order(b));
  for (const panel of panels.slice(0, 4)) {
    const figures = linesOf({ ...panel, series: panel.series.slice(0, 1) }, data.runs).map((line) => {
      const [first, last] = [line.values[0], line.values.at(-1)];
      return h("p", { class: "figure", "data-tag": line.tag }, data.runs.length > 1 ? h("span", { class: "run-name" }, line.name) : null, `${short(first)} → `, h("b", {}, short(last)));
    });
    const name = `${panel.group}: ${panel.title}`;
    byId("summary").append(h("li", {}, h("p", { class: "label" }, panel.series.length > 1 ? `${name} (${panel.series[0].label})` : name), figures));
  }
}

function startCurves() {
  const smoothing = byId("smooth"), place = byId("charts");
  const figures = [];
  for (const group of new Set(data.panels.map((panel) => panel.group))) {
    const grid = h("div", { class: "grid" });
    for (const panel of data.panels.filter((member) => member.group === group)) {
      const lines = linesOf(panel, data.runs);
      if (!lines.length) {
        grid.append(h("p", { class: "chart quiet" }, `${panel.title}: ${panel.note}`));
        continue;
      }
      const figure = chart(panel, lines, { onpick: (step) => gallery && state.set({ step: model.nearest(step) }) });
      figures.push(figure);
      grid.append(figure);
    }
    place.append(h("section", { "aria-label": group }, h("h2", { class: "group" }, group), grid));
  }
  byId("no-curves").hidden = figures.length > 0;
  byId("smoothing").hidden = figures.length === 0;
  const show = () => {
    smoothing.value = state.get("smooth");
    byId("smooth-value").textContent = Number(smoothing.value) === 0 ? "off" : smoothing.value;
    figures.forEach((figure) => figure.smooth(Number(smoothing.value)));
  };
  smoothing.addEventListener("input", () => state.set({ smooth: smoothing.value }));
  state.listen((changed) => changed.has("smooth") && show());
  show();
  return figures;
}

function drawnAt() {
  const small = data.rows.filter((row) => data.images[row.image].size[0] < row.size[1]);
  if (!small.length) return "";
  const sizes = [...new Set(small.map((row) => data.images[row.image].size.join("×")))];
  const named = sizes.length > 3 ? `${sizes.slice(0, 3).join(", ")} …` : sizes.join(", ");
  return `Images and masks are drawn at ${named}. Scores are the logged values, computed from the full masks.`;
}
