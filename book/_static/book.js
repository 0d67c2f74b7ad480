// A box that scrolls must be within reach of the keyboard.
const BOXES = "mjx-container, div.math, div.text_html, div.cell_output, figure, pre";

function reachScrollingBoxes() {
  for (const box of document.querySelectorAll(`main :is(${BOXES})`)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  reachScrollingBoxes();
});
window.addEventListener("resize", reachScrollingBoxes);
