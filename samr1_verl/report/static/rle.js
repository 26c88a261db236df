// Decoder of compressed COCO run lengths: base 32 with a continuation bit, delta-coded from the fourth run on, column by
// column.

export function runsOf(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0, shift = 0, code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value += (code & 0x1f) * 2 ** shift;
      shift += 5;
    } while (code & 0x20);
    if (code & 0x10) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// The mask with one byte per pixel, row by row: 1 inside the mask.
export function decode(counts, width, height) {
  const mask = new Uint8Array(width * height);
  let at = 0, inside = false;
  for (const run of runsOf(counts)) {
    if (inside) for (let i = at; i < at + run; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    at += run;
    inside = !inside;
  }
  return mask;
}

// Paint a mask on a canvas of its size: the area in `fill`, the contour in `edge`; each [red, green, blue, opacity], 0-255.
export function paint(canvas, mask, width, height, fill, edge) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const thick = Math.ceil(Math.max(width, height) / 200);
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && mask[y * width + x] === 1;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      const border = !inside(x - thick, y) || !inside(x + thick, y) || !inside(x, y - thick) || !inside(x, y + thick);
      image.data.set(border ? edge : fill, 4 * (y * width + x));
    }
  context.putImageData(image, 0, 0);
}
