"use strict";
// A phone's page starts short.
if (matchMedia("(max-width: 600px)").matches) {
  for (const block of document.querySelectorAll("details.charts-block")) block.open = false;
}

// The swipe views: pointer, touch and keyboard move the divider; the lists choose what is on its sides.
for (const result of document.querySelectorAll("[data-result]")) {
  const box = result.querySelector(".swipe");
  const range = box.querySelector("input");
  const pictures = [...box.querySelectorAll("img")];
  const lists = Object.fromEntries([...result.querySelectorAll("select")].map((s) => [s.dataset.side, s]));
  const colours = [...result.querySelectorAll("input[type=radio]")];

  const label = (side) => lists[side].selectedOptions[0].dataset.label;
  const place = () => {
    box.style.setProperty("--at", range.value + "%");
    range.setAttribute("aria-valuetext", `${range.value} % ${label("left")}, the rest ${label("right")}`);
  };
  const show = () => {
    const colour = colours.find((radio) => radio.checked).value;
    for (const picture of pictures) {
      const { view, colour: kind } = picture.dataset;
      const fits = kind === "any" || kind === colour;
      for (const side of ["left", "right"]) {
        picture.classList.toggle("is-" + side, fits && view === lists[side].value);
      }
    }
    for (const side of ["left", "right"]) {
      box.querySelector(`[data-tag=${side}]`).textContent = label(side);
    }
    for (const note of result.querySelectorAll("[data-note]")) {
      note.hidden = !Object.values(lists).some((list) => list.value === note.dataset.note);
    }
    place();
  };
  const move = (event) => {
    const { left, width } = box.getBoundingClientRect();
    range.value = String(Math.round((100 * (event.clientX - left)) / width));
    place();
  };

  box.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    box.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true, focusVisible: false });
    move(event);
  });
  box.addEventListener("pointermove", (event) => {
    if (box.hasPointerCapture(event.pointerId)) move(event);
  });
  range.addEventListener("input", place);
  for (const control of [...Object.values(lists), ...colours]) control.addEventListener("change", show);

  for (const hidden of [range, result.querySelector(".controls")]) hidden.hidden = false;
  box.classList.add("is-live");
  show();
}
