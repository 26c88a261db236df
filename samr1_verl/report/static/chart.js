// A line chart in SVG. Its legend shows the values at the step under the pointer, or the last values.

import { h, s, short } from "./dom.js";
import { extent, smooth, ticks } from "./scale.js";

const WIDTH = 420, HEIGHT = 210, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 26;
const COLOURS = 13; // number of the classes c0 … c12 in style.css

// `lines`: [{name, colour, dashed, steps, values}], one per series and run. A click calls `options.onpick(step)`.
export function chart({ title, note }, lines, options = {}) {
  const steps = lines.flatMap((line) => line.steps);
  let [first, last] = [Math.min(...steps), Math.max(...steps)];
  if (first === last) [first, last] = [first - 1, last + 1];
  const x = (step) => LEFT + ((step - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
  const [low, high] = extent(lines.flatMap((line) => line.values));
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const all = [...new Set(steps)].sort((a, b) => a - b);

  const curves = s("g", { class: "curves" });
  const mark = s("line", { class: "mark", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const cursor = s("g", { class: "cursor", visibility: "hidden" });
  const plot = s(
    "svg",
    { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": `${title}. Arrow keys read the values.` },
    axes(x, y, ticks(first, last, 6), ticks(low, high, 5)),
    mark,
    curves,
    cursor,
  );
  const legend = lines.map((line) => {
    const value = h("output", {}, "");
    const item = h("li", {}, swatch(line), h("span", { class: "name" }, line.name), value);
    return { line, value, item };
  });
  const when = h("span", { class: "when" }, "");
  const spoken = h("span", { class: "spoken", role: "status" }, "");

  let at = null; // index into `all` while the pointer or the keyboard is on a step
  const show = (index) => {
    at = index;
    const step = all[index ?? all.length - 1];
    when.textContent = index === null ? `last: step ${step}` : `step ${step}`;
    cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    cursor.replaceChildren(s("line", { x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }));
    for (const { line, value } of legend) {
      const position = index === null ? line.values.length - 1 : line.steps.indexOf(step);
      value.textContent = short(line.values[position]);
      if (index !== null && line.values[position] !== null && position >= 0)
        cursor.append(s("circle", { cx: x(step), cy: y(line.values[position]), r: 3.5, class: `c${line.colour % COLOURS}` }));
    }
  };
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const pointed = first + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) * ((last - first) / (WIDTH - LEFT - RIGHT));
    return all.reduce((best, step, i) => (Math.abs(step - pointed) < Math.abs(all[best] - pointed) ? i : best), 0);
  };
  plot.addEventListener("pointermove", (event) => show(nearest(event)));
  plot.addEventListener("pointerleave", () => show(null));
  plot.addEventListener("blur", () => show(null));
  plot.addEventListener("click", (event) => options.onpick?.(all[nearest(event)]));
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -all.length, End: all.length };
    if (event.key === "Enter" && at !== null) options.onpick?.(all[at]);
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(Math.min(all.length - 1, Math.max(0, (at ?? (moves[event.key] > 0 ? -1 : all.length)) + moves[event.key])));
    spoken.textContent = `step ${all[at]}: ${legend.map(({ line, value }) => `${line.name} ${value.textContent}`).join(", ")}`;
  });

  const figure = h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("h3", {}, title), h("p", {}, note)),
    plot,
    h("div", { class: "legend" }, when, h("ul", {}, legend.map(({ item }) => item)), spoken),
    table(lines, all),
  );
  figure.smooth = (weight) =>
    curves.replaceChildren(
      ...lines.flatMap((line) => [...(weight ? [path(line, line.values, x, y, "raw")] : []), path(line, smooth(line.values, weight), x, y, "line")]),
      ...lines.filter((line) => line.steps.length <= 30).flatMap((line) => dots(line, x, y)),
    );
  figure.mark = (step) => {
    const inside = step >= first && step <= last;
    mark.setAttribute("visibility", inside ? "visible" : "hidden");
    if (inside) for (const end of ["x1", "x2"]) mark.setAttribute(end, x(step));
  };
  figure.smooth(0);
  show(null);
  return figure;
}

function axes(x, y, across, up) {
  const frame = s("g", { class: "axes" });
  for (const value of up)
    frame.append(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }), s("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, short(value)));
  for (const step of across.filter(Number.isInteger))
    frame.append(s("text", { x: x(step), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, String(step)));
  return frame;
}

function path(line, values, x, y, kind) {
  let pen = "M", d = "";
  line.steps.forEach((step, i) => {
    if (values[i] === null) pen = "M";
    else {
      d += `${pen}${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`;
      pen = "L";
    }
  });
  return s("path", { d, class: `${kind} c${line.colour % COLOURS}${line.dashed ? " dashed" : ""}` });
}

function dots(line, x, y) {
  const shown = line.steps.map((step, i) => [step, line.values[i]]).filter(([, value]) => value !== null);
  return shown.map(([step, value]) => s("circle", { cx: x(step), cy: y(value), r: 2.2, class: `dot c${line.colour % COLOURS}` }));
}

function swatch(line) {
  const stroke = s("line", { x1: 1, x2: 17, y1: 5, y2: 5, class: `line c${line.colour % COLOURS}${line.dashed ? " dashed" : ""}` });
  return s("svg", { class: "swatch", viewBox: "0 0 18 10", "aria-hidden": "true" }, stroke);
}

// A table of all values in full precision. Its rows are made when it is opened.
function table(lines, all) {
  const details = h("details", { class: "values" }, h("summary", {}, "Values"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const head = h("tr", {}, h("th", { scope: "col" }, "step"), lines.map((line) => h("th", { scope: "col" }, line.name)));
    const columns = lines.map((line) => new Map(line.steps.map((step, i) => [step, line.values[i]])));
    const rows = all.map((step) => h("tr", {}, h("th", { scope: "row" }, String(step)), columns.map((column) => h("td", {}, String(column.get(step) ?? "–")))));
    details.append(h("div", { class: "scroll", tabindex: 0 }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))));
  });
  return details;
}
