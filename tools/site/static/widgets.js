// Where the widgets' modules and fonts are: beside this file. require.js is loaded before it, the widget manager after it.
(function () {
  const here = document.currentScript.src.replace(/widgets\.js.*$/, "widgets");
  window.sftbookWidgets = here + "/";
  requirejs.config({ baseUrl: here, paths: { "@jupyter-widgets": here, "@jupyter-widgets/html-manager/dist": here } });
  // the widget manager calls MathJax by the name it had in version 2
  window.addEventListener("load", () => {
    if (window.MathJax && !MathJax.Hub) MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
  });
})();
