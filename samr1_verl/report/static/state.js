// The state of the page, in the URL's fragment, so that a link opens the same view.

const DEFAULTS = { step: "", row: "", q: "", reason: "", source: "", by: "score", min: "", max: "", sort: "row", layers: "mask,truth,box,points", smooth: "0" };

export function createState() {
  let values = read();
  const listeners = [];
  const tell = (changed) => listeners.forEach((listener) => listener(changed));
  window.addEventListener("hashchange", () => {
    const before = values;
    values = read();
    const changed = new Set(Object.keys(DEFAULTS).filter((key) => values[key] !== before[key]));
    if (changed.size) tell(changed);
  });
  return {
    get: (key) => values[key],
    set(patch) {
      const changed = new Set(Object.keys(patch).filter((key) => String(patch[key]) !== values[key]));
      if (!changed.size) return;
      for (const key of changed) values[key] = String(patch[key]);
      const kept = Object.entries(values).filter(([key, value]) => value !== DEFAULTS[key]);
      history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
      tell(changed);
    },
    listen: (listener) => listeners.push(listener),
    filtered: () => ["q", "reason", "source", "min", "max"].some((key) => values[key] !== DEFAULTS[key]),
    clear() {
      this.set({ q: "", reason: "", source: "", min: "", max: "" });
    },
  };
}

function read() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, fragment.get(key) ?? value]));
}
