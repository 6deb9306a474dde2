// Mermaid diagrams as SVG, drawn again when the reader switches between light and dark.
(function () {
  const sources = new Map();
  let count = 0;
  const colours = () => document.documentElement.dataset.theme === "dark" ? "dark" : "neutral";

  async function draw() {
    mermaid.initialize({ startOnLoad: false, theme: colours(), fontFamily: "inherit", flowchart: { useMaxWidth: true } });
    for (const [box, source] of sources) {
      const { svg } = await mermaid.render("diagram-" + count++, source);
      box.innerHTML = svg;
      box.classList.add("drawn");
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    for (const box of document.querySelectorAll("pre.mermaid")) sources.set(box, box.textContent);
    draw();
    let last = colours();
    new MutationObserver(() => { if (colours() !== last) { last = colours(); draw(); } })
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  });
})();
