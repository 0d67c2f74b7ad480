// A box that scrolls must be within reach of the keyboard.
function reachScrollingBoxes() {
  for (const box of document.querySelectorAll("main mjx-container, main div.math, main div.text_html, main pre")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  reachScrollingBoxes();
});
window.addEventListener("resize", reachScrollingBoxes);
