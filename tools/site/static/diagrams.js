// Mermaid diagrams as SVG, drawn again when the reader switches between light and dark.
(function () {
  const sources = new Map();
  let count = 0, work = Promise.resolve();
  const dark = () => document.documentElement.dataset.theme === "dark";

  async function draw() {
    const fontFamily = getComputedStyle(document.body).fontFamily;
    mermaid.initialize({ startOnLoad: false, theme: dark() ? "dark" : "neutral", fontFamily, themeVariables: { fontFamily, fontSize: "15px" } });
    for (const [box, source] of sources) {
      const { svg } = await mermaid.render("diagram-" + count++, source);
      box.innerHTML = svg;
      box.classList.add("drawn");
      // on a phone a wide diagram scrolls in its own box instead of shrinking to dust
      const picture = box.firstElementChild;
      picture.style.minWidth = Math.min(picture.viewBox.baseVal.width, 800) + "px";
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll("pre.mermaid")) sources.set(box, box.textContent);
    work = draw();
    let last = dark();
    new MutationObserver(() => { if (dark() !== last) { last = dark(); work = work.then(draw); } })
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  });
})();
