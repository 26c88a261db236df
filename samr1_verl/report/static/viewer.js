// An image with its layers: predicted mask, true mask, ignored pixels, box and points.

import { h, s } from "./dom.js";
import { decode, paint } from "./rle.js";

export const LAYERS = ["mask", "truth", "box", "points"];
const COLOURS = {
  mask: [[255, 122, 24, 95], [255, 122, 24, 255]],
  truth: [[30, 190, 255, 0], [30, 190, 255, 255]],
  ignore: [[128, 128, 128, 130], [128, 128, 128, 160]],
};

// `data` has images and masks. `sample` null: only the row's truth is shown.
export function viewer(data, row, sample, layers) {
  const image = data.images[row.image];
  const [width, height] = image.size;
  const figure = h("div", { class: "viewer" });
  figure.style.aspectRatio = `${width} / ${height}`;
  figure.append(
    image.src === null
      ? h("p", { class: "missing" }, `The image is not in this page: ${image.problem}`)
      : h("img", { src: image.src, alt: "", width, height, decoding: "async" }),
  );
  const layer = (kind, counts) => {
    const canvas = h("canvas", { class: `layer ${kind}`, "data-mask": counts });
    paint(canvas, decode(data.masks[counts], width, height), width, height, ...COLOURS[kind]);
    figure.append(canvas);
  };
  if (row.ignore !== null && layers.has("truth")) layer("ignore", row.ignore);
  if (sample && layers.has("mask")) layer("mask", sample.mask);
  if (row.truth !== null && layers.has("truth")) layer("truth", row.truth);
  if (sample) figure.append(prompts(row, sample, layers));
  return figure;
}

function prompts(row, sample, layers) {
  const [height, width] = row.size;
  const drawing = s("svg", { class: "prompts", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const size = Math.max(width, height) / 60;
  for (const { box, points, labels } of sample.shapes) {
    if (box && layers.has("box")) {
      const [left, top, right, bottom] = box;
      const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
      drawing.append(s("rect", { ...place, class: "under" }), s("rect", { ...place, class: "box" }));
    }
    if (!layers.has("points")) continue;
    points.forEach(([x, y], i) => drawing.append(labels[i] ? dot(x, y, size) : cross(x, y, size)));
  }
  return drawing;
}

function dot(x, y, size) {
  return s("circle", { cx: x, cy: y, r: size, class: "point" });
}

function cross(x, y, size) {
  return s("path", { d: `M${x - size} ${y - size}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`, class: "point off" });
}
