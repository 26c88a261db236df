// The comparison of two evaluations: their differences, and the rows that changed most.

import { byId, h } from "./dom.js";
import { prompts, reasonName, reasoning } from "./details.js";
import { startKeys } from "./keys.js";
import { startTheme, toggleTheme } from "./theme.js";
import { LAYERS, viewer } from "./viewer.js";

const data = JSON.parse(byId("data").textContent);
const { comparison, changes } = data;
const names = [`A: ${comparison.a}`, `B: ${comparison.b}`];
const layers = new Set(LAYERS);
const signed = (value, digits) => `${value < 0 ? "-" : "+"}${Math.abs(value).toFixed(digits)}`;
const percent = (share) => `${Math.round(100 * share)} %`;
let opened = null;

document.body.classList.add("compared");
startTheme();
summary();
byId("direction").addEventListener("input", draw);
const toggles = LAYERS.map((layer) => {
  const box = byId(`layer-${layer}`);
  box.addEventListener("change", () => {
    box.checked ? layers.add(layer) : layers.delete(layer);
    draw();
  });
  return [layer[0], () => box.click()];
});
startKeys({ ...Object.fromEntries(toggles), d: toggleTheme });
byId("sample").addEventListener("close", () => (opened = null));
draw();

function summary() {
  const { level } = comparison.test;
  for (const [key, name] of [["giou", "gIoU"], ["ciou", "cIoU"]]) {
    const figure = comparison[key];
    const interval = figure.interval === null ? "one image: no interval" : `${percent(1 - level)} interval ${figure.interval.map((end) => signed(end, 4)).join(" to ")}, p ${figure.p.toFixed(4)}`;
    byId("summary").append(
      h(
        "li",
        { "data-figure": key },
        h("p", { class: "label" }, `${name}, protocol ${comparison.protocol}`),
        h("p", { class: "figure" }, `${figure.a.toFixed(4)} → `, h("b", {}, figure.b.toFixed(4)), ` (${signed(figure.difference, 4)})`),
        h("p", { class: "label" }, interval),
        h("p", {}, figure.found ? "difference found" : "no difference found"),
      ),
    );
  }
  byId("summary").append(
    h(
      "li",
      {},
      h("p", { class: "label" }, `${comparison.rows} rows about ${comparison.images} images`),
      h("p", { class: "figure" }, h("b", {}, comparison.better), " better in B, ", h("b", {}, comparison.worse), " worse, ", h("b", {}, comparison.alike), " alike"),
    ),
  );
  byId("promise").textContent = `A difference is found where the interval leaves out 0 and p is at most ${percent(level)}. Of equal policies, at most ${percent(2 * level)} of the comparisons find a difference.`;
}

function draw() {
  const direction = byId("direction").value;
  const shown = changes.filter(({ change }) => direction === "" || change > 0 === (direction === "better"));
  byId("count").textContent = `${shown.length} of ${changes.length} rows shown; ${comparison.better + comparison.worse} changed`;
  byId("cards").replaceChildren(...shown.map(card));
  if (opened) open(opened);
}

function card(entry) {
  const row = data.rows[entry.sides[0].row];
  return h(
    "li",
    { class: "card", "data-row": row.key },
    h("button", { class: "open", type: "button", onclick: () => open(entry) }, h("span", { class: "sentence" }, row.sentence)),
    h("div", {}, h("p", { class: "quiet" }, `${row.key} · ${signed(entry.change, 3)}`)),
    h("div", { class: "sides" }, sides(entry)),
  );
}

// Image, layers and IoU of both answers; `more` adds what belongs below a side.
function sides(entry, more = () => []) {
  return entry.sides.map((sample, i) =>
    h(
      "section",
      { class: "seen" },
      h("p", { class: "run-name" }, names[i]),
      viewer(data, data.rows[sample.row], sample, layers),
      h(
        "ul",
        { class: "chips" },
        sample.reason === null ? null : h("li", { class: "chip bad" }, reasonName(sample.reason)),
        h("li", { class: "chip", "data-score": "iou" }, "IoU ", h("b", {}, [entry.a, entry.b][i].toFixed(3))),
      ),
      more(sample),
    ),
  );
}

function open(entry) {
  opened = entry;
  const row = data.rows[entry.sides[0].row];
  byId("sample-body").replaceChildren(
    h("h2", { class: "sentence", id: "sample-title" }, row.sentence),
    h("div", { class: "sides" }, sides(entry, (sample) => [prompts(sample), ...reasoning(sample)])),
  );
  if (!byId("sample").open) byId("sample").showModal();
}
