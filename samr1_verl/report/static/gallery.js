// The rows as cards at one step of training, with the controls for step, filters and order.

import { byId, h } from "./dom.js";
import { chips, parts, reasonName } from "./details.js";
import { LAYERS, viewer } from "./viewer.js";

const PAGE = 24; // number of cards that are drawn first and with each click on "Show more rows"
const PLAY_MS = 700; // time per step while playing

export function layersOf(state) {
  return new Set(state.get("layers").split(",").filter((layer) => LAYERS.includes(layer)));
}

export function startGallery(data, model, state) {
  const cards = byId("cards"), slider = byId("step");
  let page = PAGE, timer = null;
  slider.max = model.steps.length - 1;
  const step = () => model.nearest(state.get("step") === "" ? model.steps.at(-1) : Number(state.get("step")));
  const move = (by) => {
    const at = Math.min(model.steps.length - 1, Math.max(0, model.steps.indexOf(step()) + by));
    state.set({ step: model.steps[at] });
  };
  const play = (on) => {
    clearInterval(timer);
    timer = on ? setInterval(() => (step() === model.steps.at(-1) ? play(false) : move(1)), PLAY_MS) : null;
    if (on) step() === model.steps.at(-1) ? state.set({ step: model.steps[0] }) : move(1);
    byId("play").setAttribute("aria-pressed", String(on));
    byId("play").textContent = on ? "Pause" : "Play";
  };

  slider.addEventListener("input", () => state.set({ step: model.steps[slider.value] }));
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  byId("play").addEventListener("click", () => play(timer === null));
  byId("more").addEventListener("click", () => {
    page += PAGE;
    draw();
  });

  function draw() {
    const at = step(), rows = model.rows(at, state), layers = layersOf(state);
    slider.value = model.steps.indexOf(at);
    slider.setAttribute("aria-valuetext", `step ${at}`);
    byId("step-name").textContent = `step ${at} of ${model.steps.at(-1)}`;
    byId("count").textContent = `${rows.length} of ${data.rows.length} rows`;
    byId("none").hidden = rows.length > 0;
    byId("more").hidden = rows.length <= page;
    cards.replaceChildren(...rows.slice(0, page).map((row) => card(data, model, row, at, layers, () => state.set({ row: data.rows[row].key }))));
  }
  state.listen((changed) => {
    if ([...changed].some((key) => key !== "row" && key !== "smooth")) draw();
  });
  draw();
  return { step, move, play: () => play(timer === null), rows: () => model.rows(step(), state) };
}

function card(data, model, position, step, layers, open) {
  const row = data.rows[position];
  const answers = data.runs.map((run, i) => {
    const sample = model.sample(i, step, position);
    return h(
      "div",
      { class: "seen" },
      data.runs.length > 1 ? h("p", { class: "run-name" }, run.name) : null,
      viewer(data, row, sample, layers),
      sample ? chips(data, sample) : h("p", { class: "quiet" }, "No sample of this step."),
      sample ? h("p", { class: "thought clamped" }, parts(sample.response)[0] ?? sample.response) : null,
    );
  });
  return h(
    "li",
    { class: "card", "data-row": row.key },
    h("button", { class: "open", type: "button", onclick: open, "aria-label": `Open: ${row.sentence}` }, h("span", { class: "sentence" }, row.sentence)),
    h("div", { class: data.runs.length > 1 ? "sides" : "" }, answers),
  );
}

export function startFilters(data, model, state) {
  const fields = { q: byId("q"), reason: byId("reason"), source: byId("source"), by: byId("by"), min: byId("min"), max: byId("max"), sort: byId("sort") };
  const option = (value, text) => h("option", { value }, text);
  fields.reason.append(...model.reasons.map((reason) => option(reason, reasonName(reason))));
  fields.source.append(...model.sources.map((source) => option(source, source)));
  fields.by.append(...model.scores.map((name) => option(name, name === "acc" ? "IoU (acc)" : name)));
  for (const [key, field] of Object.entries(fields)) field.addEventListener("input", () => state.set({ [key]: field.value }));
  byId("clear").addEventListener("click", () => state.clear());

  const boxes = LAYERS.map((layer) => byId(`layer-${layer}`));
  const toggle = (layer) => {
    const shown = layersOf(state);
    if (!shown.delete(layer)) shown.add(layer);
    state.set({ layers: LAYERS.filter((other) => shown.has(other)).join(",") });
  };
  LAYERS.forEach((layer, i) => boxes[i].addEventListener("change", () => toggle(layer)));
  const show = () => {
    for (const [key, field] of Object.entries(fields)) if (field.value !== state.get(key)) field.value = state.get(key);
    const shown = layersOf(state);
    LAYERS.forEach((layer, i) => (boxes[i].checked = shown.has(layer)));
    byId("clear").disabled = !state.filtered();
    if (state.filtered()) byId("filters").open = true;
  };
  state.listen(show);
  show();
  return { toggle };
}
