// The turns of a policy that looks at its mask: buttons, and the answer of the chosen turn.

import { h } from "./dom.js";
import { prompts, reasoning } from "./details.js";
import { viewer } from "./viewer.js";

// What is shown of a sample at a turn, from 0: a turn that says `done` keeps the mask and prompts of the turn before.
function at(sample, turn) {
  const answer = sample.turns.slice(0, turn + 1).findLast((told) => told.mask !== null);
  return { ...sample, ...answer, response: sample.turns[turn].response };
}

function name(turn, i) {
  return turn.mask === null ? `${i + 1}: done` : String(i + 1);
}

// Viewer, `more` (elements that belong to all turns), prompts and reasoning. A sample with turns gets buttons; the last
// turn is shown first.
export function answerOf(data, row, sample, layers, more = []) {
  if (!sample.turns) return [viewer(data, row, sample, layers), ...more, prompts(sample), ...reasoning(sample)];
  const picture = h("div", { class: "picture" }), words = h("div", { class: "words" });
  const buttons = sample.turns.map((turn, i) => h("button", { type: "button", "data-turn": i + 1, onclick: () => show(i) }, name(turn, i)));
  const step = (label, text, by) => h("button", { type: "button", "aria-label": label, onclick: () => show(chosen + by) }, text);
  const back = step("Turn before", "‹", -1), on = step("Next turn", "›", 1);
  let chosen = 0;
  function show(turn) {
    chosen = turn;
    const shown = at(sample, turn);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === turn)));
    back.disabled = turn === 0;
    on.disabled = turn === buttons.length - 1;
    picture.replaceChildren(viewer(data, row, shown, layers));
    words.replaceChildren(prompts(shown), ...reasoning(shown));
  }
  show(buttons.length - 1);
  return [picture, h("div", { class: "turns", role: "group", "aria-label": "Turns" }, h("span", {}, "Turn"), back, buttons, on), ...more, words];
}
