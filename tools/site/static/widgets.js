// Where the widgets' modules are: beside this file. require.js is loaded before it, the widget manager after it.
(function () {
  const here = document.currentScript.src.replace(/widgets\.js.*$/, "widgets/");
  window.sftbookWidgets = here;
  requirejs.config({ paths: { anywidget: here + "anywidget" } });
})();
