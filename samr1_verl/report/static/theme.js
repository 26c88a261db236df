// The theme, light or dark: the system's theme until the reader chooses one.

import { byId } from "./dom.js";

const KEY = "samr1-theme";

export function startTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const show = () => {
    const dark = (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    byId("theme").setAttribute("aria-pressed", String(dark));
  };
  const kept = storage((store) => store.getItem(KEY));
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  system.addEventListener("change", show);
  byId("theme").addEventListener("click", toggleTheme);
  show();
}

export function toggleTheme() {
  const dark = byId("theme").getAttribute("aria-pressed") !== "true";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").setAttribute("aria-pressed", String(dark));
  storage((store) => store.setItem(KEY, dark ? "dark" : "light"));
}

// A page from a file may have no storage; the choice is then kept until the page is closed.
function storage(use) {
  try {
    return use(localStorage);
  } catch {
    return null;
  }
}
