// Keyboard shortcuts, and the dialog that lists them.

import { byId } from "./dom.js";

// `actions`: key → function. Keys with Ctrl, Alt or Meta, and keys in an input field, are not handled.
export function startKeys(actions) {
  const help = byId("help");
  byId("open-help").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, textarea, svg.plot")) return;
    const action = event.key === "?" ? () => help.showModal() : actions[event.key];
    if (!action || help.open || (event.key === " " && event.target.closest("button, summary"))) return;
    event.preventDefault();
    action();
  });
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest(".close")) dialog.close();
    });
}
