// The details of a sample: reasoning, answer, prompts and scores.

import { h, short } from "./dom.js";

export const REASONS = {
  no_answer: "no answer",
  many_answers: "several answers",
  not_json: "not JSON",
  no_target: "says: nothing there",
  no_object: "no object",
  many_objects: "too many objects",
  missing_box: "no box",
  bad_box: "box is not four numbers",
  empty_box: "empty box",
  missing_points: "no points",
  bad_points: "points are not pairs",
  many_points: "too many points",
  outside: "outside the image",
  missing: "no prediction",
};

export function reasonName(reason) {
  return REASONS[reason] ?? reason;
}

export function scoreOf(data, sample, name) {
  return sample.scores[data.names.indexOf(name)] ?? null;
}

// [the reasoning or null, the response without the reasoning].
export function parts(response) {
  const match = /<think>([\s\S]*?)<\/think>/.exec(response);
  if (!match) return [null, response];
  return [match[1].trim(), (response.slice(0, match.index) + response.slice(match.index + match[0].length)).trim()];
}

export function chips(data, sample) {
  const list = h("ul", { class: "chips" });
  const chip = (name, kind, ...text) => list.append(h("li", { class: `chip ${kind}`, "data-score": name }, ...text));
  if (sample.reason !== null) chip("reason", "bad", reasonName(sample.reason));
  const iou = scoreOf(data, sample, "acc"), score = scoreOf(data, sample, "score");
  if (iou !== null) chip("acc", "", "IoU ", h("b", {}, iou.toFixed(2)));
  if (score !== null) chip("score", "", "reward ", h("b", {}, short(score)));
  if (sample.turns) chip("turns", "", h("b", {}, sample.turns.length), " turns");
  return list;
}

export function reasoning(sample) {
  const [thought, answer] = parts(sample.response);
  return [
    h("h3", {}, "Reasoning"),
    h("p", { class: "thought" }, thought ?? "none: the response has no <think>…</think>"),
    h("h3", {}, "Answer"),
    h("pre", { class: "answer", tabindex: 0 }, answer || "none"),
  ];
}

export function prompts(sample) {
  if (!sample.shapes.length) return h("p", { class: "quiet" }, "No prompts for the segmenter.");
  const lines = sample.shapes.map(({ box, points, labels }) => {
    const named = points.map((point, i) => `${labels[i] ? "" : "not "}(${point.join(", ")})`);
    return h("li", {}, `${box ? `box ${box.join(", ")}` : "no box"}; ${named.length ? `points ${named.join(" ")}` : "no points"}`);
  });
  return h("ul", { class: "figures" }, lines);
}

// All scores of the samples, one column per run. A flag answer/<reason> is shown only where it is not 0.
export function scoreTable(data, samples, headings) {
  const names = data.names.filter((name) => samples.some((sample) => sample && scoreOf(data, sample, name) !== null));
  const shown = names.filter((name) => !name.startsWith("answer/") || samples.some((sample) => sample && scoreOf(data, sample, name)));
  const head = h("tr", {}, h("th", { scope: "col" }, "term"), headings.map((text) => h("th", { scope: "col" }, text)));
  const rows = shown.map((name) =>
    h("tr", { "data-score": name }, h("th", { scope: "row" }, name), samples.map((sample) => h("td", {}, number(sample && scoreOf(data, sample, name))))),
  );
  return h("table", { class: "scores" }, h("thead", {}, head), h("tbody", {}, rows));
}

function number(value) {
  return value === null || value === undefined ? "–" : String(value);
}
