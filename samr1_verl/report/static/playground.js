// The playground: reasoning, prompts and mask for an image and a sentence.

import { byId, h } from "./dom.js";
import { chips } from "./details.js";
import { startKeys } from "./keys.js";
import { startTheme, toggleTheme } from "./theme.js";
import { answerOf } from "./turns.js";
import { LAYERS } from "./viewer.js";

const data = JSON.parse(byId("data").textContent);
const layers = new Set(LAYERS);
let image = null, answered = null, asked = 0;

startTheme();
startDrop();
examples();
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
const toggles = ["mask", "box", "points"].map((layer) => {
  const box = byId(`layer-${layer}`);
  box.addEventListener("change", () => {
    box.checked ? layers.add(layer) : layers.delete(layer);
    if (answered) draw();
  });
  return [layer[0], () => box.click()];
});
startKeys({ ...Object.fromEntries(toggles), d: toggleTheme, "/": () => byId("sentence").focus() });

function startDrop() {
  const drop = byId("drop");
  byId("file").addEventListener("change", () => choose(byId("file").files[0]));
  for (const kind of ["dragenter", "dragover"])
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
}

// The preview is hidden where the browser cannot show the file; the server decides whether it is an image.
function choose(file, name = file?.name) {
  if (!file) return;
  image = file;
  const preview = byId("preview");
  URL.revokeObjectURL(preview.src);
  preview.onload = () => (preview.hidden = false);
  preview.onerror = () => (preview.hidden = true);
  preview.src = URL.createObjectURL(file);
  byId("drop-text").textContent = name;
  problem(null);
}

function problem(text) {
  byId("problem").hidden = text === null;
  byId("problem").textContent = text ?? "";
}

// fetch throws a TypeError where the server does not answer.
function words(error) {
  return error instanceof TypeError ? "The server does not answer. Is samr1 playground still running?" : error.message;
}

async function ask() {
  const sentence = byId("sentence").value.trim();
  if (image === null) return problem("Choose an image first.");
  if (sentence === "") return problem("Type what to segment.");
  if (image.size > data.max_bytes) return problem(`The image has ${image.size} bytes, the limit is ${data.max_bytes}.`);
  problem(null);
  const question = ++asked; // answers to earlier questions are ignored
  const go = byId("go");
  go.disabled = true;
  go.textContent = "Working …";
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await fetch(`predict?${new URLSearchParams({ sentence })}`, { method: "POST", body: image, headers });
    const body = await answer.json();
    if (question !== asked) return;
    if (!answer.ok) throw new Error(body.error.message);
    answered = body;
    draw();
    byId("result").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (question !== asked) return;
    answered = null;
    byId("result").hidden = true;
    problem(words(error));
  } finally {
    if (question === asked) {
      go.disabled = false;
      go.textContent = "Segment";
    }
  }
}

function draw() {
  const { sample, seconds } = answered;
  const row = answered.rows[sample.row];
  const [height, width] = row.size;
  byId("asked").textContent = row.sentence;
  byId("answer").replaceChildren(
    ...answerOf(answered, row, sample, layers, [chips(answered, sample), h("p", { class: "quiet" }, `${width}×${height} · ${seconds.toFixed(1)} s`)]),
  );
  byId("result").hidden = false;
}

function examples() {
  byId("examples-box").hidden = data.examples.length === 0;
  byId("examples").append(
    ...data.examples.map(({ sentence, src }, i) =>
      h("li", {}, h("button", { type: "button", class: "example", onclick: () => take(sentence, i) }, h("img", { src, alt: "" }), sentence)),
    ),
  );
}

async function take(sentence, i) {
  byId("sentence").value = sentence;
  try {
    const answer = await fetch(`examples/${i}`);
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    choose(await answer.blob(), `example ${i + 1}`);
  } catch (error) {
    return problem(words(error));
  }
  await ask();
}
